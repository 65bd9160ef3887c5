"""Stream two completions: print what each row gains while the other still runs.

    python examples/stream.py [CHECKPOINT]

Run it from the repository's root. Without a checkpoint it runs the small model that comes with the
package.
"""

import sys

import llama_jax

params = llama_jax.load(sys.argv[1] if len(sys.argv) > 1 else None)
prompts = ["Once upon a time", "One day, a dog"]

# The second row asks for fewer tokens, so it ends first.
settings = {"temperature": 0.8, "seed": [1, 2], "max_new_tokens": [24, 8]}

texts, counts = ["", ""], [0, 0]
for delta in llama_jax.stream(params, prompts, **settings):
    # `text` holds only what is certain: half a character waits for its other bytes.
    texts[delta.row] += delta.text
    counts[delta.row] += len(delta.tokens)
    print(f"row {delta.row}: {delta.text!r}", flush=True)
    if delta.finish_reason is not None:
        print(f"row {delta.row} ends ({delta.finish_reason}): {counts[delta.row]} tokens")

# A row's deltas, joined, are what `generate` returns for the same settings.
whole = llama_jax.generate(params, prompts, **settings)
assert [done.text for done in whole] == texts
print("The deltas, joined, are the completions of generate:")
for prompt, text in zip(prompts, texts, strict=True):
    print(f"  {prompt}{text}")
