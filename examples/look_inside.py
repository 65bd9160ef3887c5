"""Look inside: the residual stream, the attention weights and the logits of every layer.

    python examples/look_inside.py [CHECKPOINT]

Run it from the repository's root. The model is a few pure functions, in
`llama_jax/model/transformer.py`. This page calls them layer by layer and keeps what they give.
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


checkpoint = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/hf/llama2"
params = llama_jax.load(checkpoint, dtype="float32")
c, w = params.config, params.weights
ids = [39, 145, 38, 101, 176, 203]
if params.tokenizer is not None:
    ids = llama_jax.load_tokenizer(params.tokenizer).encode("Once upon a time", bos=True, eos=False)
tokens, positions = jnp.array([ids]), jnp.arange(len(ids))[None]  # both [batch, time]


x = embed(w["tok_embeddings"]["weight"], tokens)  # [batch, time, dim]
rotation = rotations_of(c, positions)  # [batch, time, head_dim / 2]
residuals, attentions = [x], []
for i in range(c.n_layers):
    x, weights = block(c, w[f"layers_{i}"], x, rotation, positions, Watched())
    residuals.append(x)  # to patch the residual stream, change x here
    attentions.append(weights)  # attentions[layer] is [batch, heads, time, keys]

print("The residual stream at the last token, and the next token that it gives (logit lens):")
for i, x in enumerate(residuals):
    probs = jax.nn.softmax(output(c, w, x)[0, -1])  # [vocab]
    norm, best = jnp.linalg.norm(x[0, -1]), int(jnp.argmax(probs))
    print(f"  after {i:>2} layers: norm {norm:7.2f}, token {best:>6} with {probs[best]:.3f}")

print("\nLayer 0, head 1: how much each token (row) attends to each (column)")
print(jnp.array_str(attentions[0][0, 1], precision=2, suppress_small=True))  # [time, keys]

logits, _ = llama_jax.forward(params, tokens, positions)
assert jnp.allclose(output(c, w, x), logits, rtol=1e-4, atol=1e-4)  # `x` is the last residual
print("\nThe last layer's logits are those of llama_jax.forward.")
