"""Generate completions of prompts: the likeliest tokens, drawn ones, and several of one prompt.

    python examples/generate.py [CHECKPOINT]

Run it from the repository's root. CHECKPOINT is a native checkpoint, or Meta's or Hugging Face's
folder. Without one it runs a small random model in Hugging Face's format. That model has no
tokenizer, so prompts and completions are token ids, and they mean nothing.
"""

import sys

import llama_jax

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/hf/llama2"
params = llama_jax.load(checkpoint)
print(f"{checkpoint}: {params}")

if params.tokenizer is None:
    prompts = [[39, 145, 38, 101, 176, 203], [46, 182, 24]]
else:
    prompts = ["Once upon a time", "One day, a dog"]


def show(title, completions):
    print(f"\n{title}")
    for done in completions:
        print(f"  {done.tokens if done.text is None else repr(done.text)} ({done.finish_reason})")


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

# With logprobs=2 each new token comes with its log-probability and the two likeliest there.
done, _ = llama_jax.generate(params, prompts, temperature=0, max_new_tokens=3, logprobs=2)
print("\nLog-probabilities of three new tokens:")
for entry in done.logprobs:
    top = ", ".join(f"{id}: {logprob:.2f}" for id, logprob in entry.top.items())
    print(f"  token {entry.token}: {entry.logprob:.2f}   the likeliest {{{top}}}")
