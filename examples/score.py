"""Score texts: the log-probability of every token, and perplexity.

    python examples/score.py [CHECKPOINT]

Run it from the repository's root. Without a checkpoint it runs a small random model, which has no
tokenizer: the texts are then token ids.
"""

import math
import sys

import llama_jax

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/hf/llama2"
params = llama_jax.load(checkpoint)

# `score` takes texts, which get bos before them, or token ids, which it takes as they are.
if params.tokenizer is None:
    # The first 6 ids are a prompt. The others are what this model writes after it.
    ids = [39, 145, 38, 101, 176, 203, 212, 114, 53, 130, 237, 247, 3, 182, 146, 121, 163, 255]
    ids += [222, 178, 33, 130, 233, 237, 24, 227, 105, 164, 92, 244, 105, 222, 232, 39, 40, 187]
    texts = [ids, ids[::-1]]
else:
    texts = [
        "Once upon a time there was a little girl.",
        "Girl little a was there time a upon once.",
    ]

likely, unlikely = llama_jax.score(params, texts)
print(f"The text:           perplexity {likely.perplexity:.2f}")
print(f"The same backwards: perplexity {unlikely.perplexity:.2f}")

# The first token follows nothing, so there is one log-probability fewer than tokens.
print("\nLog-probabilities of its first tokens, each given those before it:")
for token, logprob in zip(likely.tokens[1:9], likely.logprobs, strict=False):
    print(f"  token {token:>6}: {logprob:6.2f}")

# `perplexity` reads a text of any length through windows, and yields the perplexity so far. Each
# window of 8 tokens begins 4 after the one before. So a token is given 4 to 7 tokens before it, and
# not the whole text. (In the first window it is given all.)
print("\nThe text through windows of 8 tokens:")
for found in llama_jax.perplexity(params, likely.tokens, context=8, stride=4):
    print(f"  after {found.tokens:>2} tokens: {found.value:.2f}")

# One window that holds the whole text gives what `score` gives.
(whole,) = llama_jax.perplexity(params, likely.tokens, context=len(likely.tokens))
assert math.isclose(whole.value, likely.perplexity, rel_tol=1e-4)
print(f"In one window: {whole.value:.2f}, as score says.")
