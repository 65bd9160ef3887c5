"""A small model with quantized weights of every kind, which 8 devices may cut on any axis."""

import functools

import jax

import llama_jax

KINDS = ("int8", "int4", "fp8")
CONFIG = llama_jax.Config.named("tiny").replace(
    n_layers=len(KINDS), dim=256, n_heads=8, n_kv_heads=4, head_dim=32, hidden_dim=256
)


@functools.cache
def of_every_kind():
    """Layer 0 is int8, layer 1 int4, layer 2 fp8, and the output int4."""
    params = llama_jax.init_params(jax.random.key(0), CONFIG)
    return llama_jax.quantize(params, kind_of)


def kind_of(name):
    if name.startswith("layers_"):
        return KINDS[int(name.split(".")[0].removeprefix("layers_"))]
    return "int4" if name == "output.weight" else None
