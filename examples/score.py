"""Score texts: the log-probability of every token, and perplexity.

    python examples/score.py [CHECKPOINT]

Run it from the repository's root. Without a checkpoint it runs the small model that comes with the
package.
"""

import math
import sys

import llama_jax

params = llama_jax.load(sys.argv[1] if len(sys.argv) > 1 else None)
tokenizer = llama_jax.load_tokenizer(params.tokenizer)

# `score` takes texts, which get bos before them, or token ids, which it takes as they are.
text = "Once upon a time, there was a little girl named Lily. She loved to play with her toys."
backwards = " ".join(reversed(text.split()))
likely, unlikely = llama_jax.score(params, [text, backwards])
print(f"{text}\n  perplexity {likely.perplexity:.2f}")
print(f"{backwards}\n  perplexity {unlikely.perplexity:.2f}")

# The first token follows nothing, so there is one log-probability fewer than tokens.
print("\nLog-probabilities of its first tokens, each given those before it:")
for token, logprob in zip(likely.tokens[1:9], likely.logprobs, strict=False):
    print(f"  {tokenizer.decode([token])!r:>8}: {logprob:6.2f}")

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
