"""Quantize: a model of 8 or 5 bits a number, how much smaller it is, and what it costs.

    python examples/quantize.py [CHECKPOINT]

Run it from the repository's root. CHECKPOINT is a native checkpoint, or Meta's or Hugging Face's
folder. Without one it runs the small model that comes with the package, which tells stories.
"""

import sys

import llama_jax

checkpoint = sys.argv[1] if len(sys.argv) > 1 else None
params = llama_jax.load(checkpoint, dtype="float32", quantize="none")  # plain, whatever it holds
text = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big dog. The dog wanted to play with her, and they were very happy."
)


def by_name(name):
    """A matrix's kind. The embedding is rounded too, which a kind for all leaves as it is."""
    return "int4" if "feed_forward" in name else "int8"


def report(name, params):
    (found,) = llama_jax.score(params, [text])
    share = params.nbytes / whole
    print(f"{name:<26} {share:6.1%} of the bytes   perplexity {found.perplexity:.3f}")


whole = params.nbytes
report("float32", params)
report("int8", llama_jax.quantize(params, "int8"))
small = llama_jax.quantize(params, by_name)
report("int4, and int8 by name", small)

# A quantized model is a model like any other.
matrix = small.weights["layers_0"]["feed_forward"]["w1"]  # [dim, hidden_dim]
print(f"w1 of layer 0 is now {type(matrix).__name__}, of shape {list(matrix.shape)}")
(done,) = llama_jax.generate(small, [text[:16]], temperature=0, max_new_tokens=24, echo=True)
print(repr(done.text))

# `llama_jax.save(small, path)` writes it; `load(path, quantize="int4")` rounds as it reads.
