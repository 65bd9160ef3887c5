"""Stream two completions: print what each row gains while the other still runs.

    python examples/stream.py [CHECKPOINT]

Run it from the repository's root. Without a checkpoint it runs a small random model, which has no
tokenizer: a delta then has tokens and no text.
"""

import sys

import llama_jax

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/hf/llama2"
params = llama_jax.load(checkpoint)

if params.tokenizer is None:
    prompts = [[39, 145, 38, 101, 176, 203], [46, 182, 24]]
else:
    prompts = ["Once upon a time", "One day, a dog"]

# The second row asks for fewer tokens, so it ends first.
settings = {"temperature": 0.8, "seed": [1, 2], "max_new_tokens": [24, 8]}

tokens = [[] for _ in prompts]
texts = ["" for _ in prompts]
for delta in llama_jax.stream(params, prompts, **settings):
    # `text` holds only what is certain: half a character waits for its other bytes.
    tokens[delta.row] += delta.tokens
    texts[delta.row] += delta.text
    new = delta.tokens if params.tokenizer is None else repr(delta.text)
    print(f"row {delta.row}: {new}", flush=True)
    if delta.finish_reason is not None:
        print(f"row {delta.row} ends ({delta.finish_reason}): {len(tokens[delta.row])} tokens")

# A row's deltas, joined, are what `generate` returns for the same settings.
whole = llama_jax.generate(params, prompts, **settings)
assert [done.tokens for done in whole] == tokens
assert params.tokenizer is None or [done.text for done in whole] == texts
print("The deltas, joined, are the completions of generate.")
