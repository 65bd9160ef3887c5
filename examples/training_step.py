"""Write your own training step: the gradient of a loss over `forward`, and optax.

    python examples/training_step.py [CHECKPOINT]

Run it from the repository's root. Without a checkpoint it trains a tiny model from random weights
to predict the bytes of the README. With one, it goes on training that model on the README, in its
tokenizer's tokens.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import llama_jax

text = Path("README.md").read_text()
if len(sys.argv) > 1:
    params = llama_jax.load(sys.argv[1], dtype="float32")
    ids = llama_jax.load_tokenizer(sys.argv[1]).encode(text, bos=True, eos=False)
else:
    params = llama_jax.init_params(jax.random.key(0), llama_jax.Config.named("tiny"))
    ids = list(text.encode())  # a byte is a token; the tiny model knows 256
print(params)


def loss_of(params, batch):
    """The mean cross-entropy of each token given those before it, for a batch [rows, time + 1]."""
    inputs, targets = batch[:, :-1], batch[:, 1:]  # [rows, time]
    positions = jnp.broadcast_to(jnp.arange(inputs.shape[1]), inputs.shape)
    logits, _ = llama_jax.forward(params, inputs, positions)  # [rows, time, vocab], float32
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


optimizer = optax.adamw(optax.warmup_constant_schedule(0.0, 3e-3, warmup_steps=5))


def step(params, state, batch):
    loss, gradients = jax.value_and_grad(loss_of)(params, batch)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, loss


# The old weights and the old state are donated: the new ones take their memory.
step = jax.jit(step, donate_argnames=("params", "state"))

state = optimizer.init(params)  # two moments, each a pytree like the weights
draw = np.random.default_rng(0)
for i in range(20):
    starts = draw.integers(0, len(ids) - 65, size=8)
    batch = jnp.array([ids[start : start + 65] for start in starts])  # [8, 65]
    params, state, loss = step(params, state, batch)
    print(f"step {i:>2}: loss {loss:.3f}")

# The trained params are a model like any other: `llama_jax.save(params, path)` writes it.
