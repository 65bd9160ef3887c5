"""Generate completions of prompts: the likeliest tokens, drawn ones, and several of one prompt.

    python examples/generate.py [CHECKPOINT]

Run it from the repository's root. CHECKPOINT is a native checkpoint, Meta's or Hugging Face's
folder, or a GGUF file. Without one it runs the small model that comes with the package, which tells
stories.
"""

import sys

import llama_jax

params = llama_jax.load(sys.argv[1] if len(sys.argv) > 1 else None)
tokenizer = llama_jax.load_tokenizer(params.tokenizer)
prompts = ["Once upon a time", "One day, a dog"]
print(params)


def show(title, completions):
    print(f"\n{title}")
    for done in completions:
        print(f"  {done.text!r} ({done.finish_reason})")


# Temperature 0 takes the likeliest token at each step.
greedy = llama_jax.generate(params, prompts, temperature=0, max_new_tokens=12)
show("The likeliest token at each step, two prompts in one batch:", greedy)

# A setting that is a list has one value for each prompt. The same seed draws the same tokens.
drawn = llama_jax.generate(params, prompts, temperature=0.8, seed=[10, 11], max_new_tokens=12)
show("Drawn at temperature 0.8, with seeds 10 and 11:", drawn)

# Settings can also be one value. The seeds of `n` completions count up, so the first is as before.
settings = llama_jax.SamplingSettings(temperature=0.8, seed=10, max_new_tokens=12)
several = llama_jax.generate(params, prompts[:1], settings, n=2)
show("Two completions of the first prompt, with seeds 10 and 11:", several)

# A prompt may be token ids, and echo=True keeps it in the completion.
ids = tokenizer.encode(prompts[0], bos=True, eos=False)
show("Of these token ids:", llama_jax.generate(params, [ids], settings, echo=True))

# With logprobs=2 each new token comes with its log-probability and the two likeliest there.
done, _ = llama_jax.generate(params, prompts, temperature=0, max_new_tokens=3, logprobs=2)
print("\nLog-probabilities of three new tokens:")
for entry in done.logprobs:
    top = ", ".join(f"{tokenizer.decode([id])!r} {prob:.2f}" for id, prob in entry.top.items())
    print(f"  {tokenizer.decode([entry.token])!r}: {entry.logprob:.2f}   the likeliest: {top}")
