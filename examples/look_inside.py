"""Look inside: the residual stream, the attention weights and the logits of every layer.

    python examples/look_inside.py [CHECKPOINT]

Run it from the repository's root; without a checkpoint it looks into the small model that comes
with the package. A model is a few pure functions, in `llama_jax/model/transformer.py`. This page
calls them layer by layer and keeps what they give.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp

import llama_jax
from llama_jax.kernels import embed
from llama_jax.model.cache import Uncached
from llama_jax.model.transformer import block, output, rotations_of
from llama_jax.ops.attention import attention_weights
from llama_jax.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Watched:
    """One layer's past, as a cache is, but empty. It returns the attention weights."""

    def attend(self, q, k, v, positions):
        out, _ = Uncached().attend(q, k, v, positions)  # [batch, time, heads, head_dim]
        return out, attention_weights(q, k, None, positions[:, 0])  # [batch, heads, time, keys]


params = llama_jax.load(sys.argv[1] if len(sys.argv) > 1 else None, dtype="float32")
c, w = params.config, params.weights
tokenizer = llama_jax.load_tokenizer(params.tokenizer)
ids = tokenizer.encode("Lily saw a dog. She said to the", bos=True, eos=False)
words = [tokenizer.decode([id]) or "<s>" for id in ids]
tokens, positions = jnp.array([ids]), jnp.arange(len(ids))[None]  # both [batch, time]

x = embed(w["tok_embeddings"]["weight"], tokens)  # [batch, time, dim]
rotation = rotations_of(c, positions)  # [batch, time, head_dim / 2]
residuals, attentions = [x], []
for i in range(c.n_layers):
    x, weights = block(c, w[f"layers_{i}"], x, rotation, positions, Watched())
    residuals.append(x)  # to patch the residual stream, change x here
    attentions.append(weights)  # attentions[layer] is [batch, heads, time, keys]

print(f"After {' '.join(words)!r}: the residual stream, and the token that it gives (logit lens):")
for i, x in enumerate(residuals):
    probs = jax.nn.softmax(output(c, w, x)[0, -1])  # [vocab]
    norm, best = jnp.linalg.norm(x[0, -1]), int(jnp.argmax(probs))
    word = repr(tokenizer.decode([best]))
    print(f"  after {i:>2} layers: norm {norm:6.2f}, {word:>8} with {probs[best]:.3f}")

print("\nThe last layer's head 0: how much each token (row) attends to each (column)")
print(" " * 8 + "".join(f"{word:>6.5}" for word in words))
for word, row in zip(words, attentions[-1][0, 0], strict=True):  # [time, keys]
    print(f"{word:>8.7}" + "".join(f"{share:6.2f}" for share in row))

logits, _ = llama_jax.forward(params, tokens, positions)
assert jnp.allclose(output(c, w, x), logits, rtol=1e-4, atol=1e-4)  # `x` is the last residual
print("\nThe last layer's logits are those of llama_jax.forward.")
