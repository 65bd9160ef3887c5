"""Change a weight, or take a head away, and see what it does to the next token.

    python examples/change_a_weight.py [CHECKPOINT]

Run it from the repository's root; without a checkpoint it changes the small model that comes with
the package, in memory. `Params` is a pytree of arrays. A changed model is a new value
that shares the other arrays with the old one, which stays as it was.
"""

import sys

import jax
import jax.numpy as jnp

import llama_jax

params = llama_jax.load(sys.argv[1] if len(sys.argv) > 1 else None, quantize="none")
c = params.config
tokenizer = llama_jax.load_tokenizer(params.tokenizer)
text = "Once upon a time, there was a little girl named"
ids = tokenizer.encode(text, bos=True, eos=False)
tokens = jnp.array([ids])  # [batch, time]
positions = jnp.arange(len(ids))[None]  # [batch, time]


@jax.jit  # compiled once: all changed models have the same shapes
def next_logprobs(params):
    """The log-probability of each token of the vocabulary as the next one: [vocab]."""
    last = jnp.array([[len(ids) - 1]])
    logits, _ = llama_jax.forward(params, tokens, positions, at=last)  # [1, 1, vocab]
    return jax.nn.log_softmax(logits[0, 0])


before = next_logprobs(params)
token = int(jnp.argmax(before))
word = tokenizer.decode([token])
print(f"After {text!r} comes {word!r}, with log-probability {before[token]:.3f}.")
print("After each change: its log-probability, the likeliest token, the KL divergence.\n")


def report(name, changed):
    after = next_logprobs(changed)
    kl = jnp.sum(jnp.exp(before) * (before - after))
    best = tokenizer.decode([int(jnp.argmax(after))])
    print(f"{name:<23} {word!r}: {after[token]:7.3f}   likeliest {best!r:>8}   KL {kl:.4f}")


layer = f"layers_{c.n_layers - 1}"
w2 = params.weights[layer]["feed_forward"]["w2"]  # [hidden_dim, dim]
for scale in (1.0, 0.9, 0.5, 0.0):
    report(
        f"w2 of {layer} times {scale}",
        params.with_weight((layer, "feed_forward", "w2"), w2 * scale),
    )

# Head h writes to the residual stream through rows h * head_dim to (h + 1) * head_dim of `wo`.
wo = params.weights[layer]["attention"]["wo"]  # [n_heads * head_dim, dim]
for head in range(c.n_heads):
    rows = slice(head * c.head_dim, (head + 1) * c.head_dim)
    ablated = wo.at[rows].set(0)
    report(f"{layer} without head {head}", params.with_weight((layer, "attention", "wo"), ablated))

assert jnp.array_equal(next_logprobs(params), before)
print("\nThe model itself is as it was.")
