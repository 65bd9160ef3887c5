"""Every mesh gives the tokens of one device with quantized weights of every kind."""

import functools
import itertools

import pytest
from quantized_model import of_every_kind

import llama_jax

PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 11]]
ASKED = {"max_new_tokens": 8, "temperature": [0.0, 1.0], "seed": 3}
SHAPES = [
    {"data": data, "fsdp": fsdp, "tensor": tensor}
    for data, fsdp, tensor in itertools.product((1, 2, 4, 8), repeat=3)
    if data * fsdp * tensor == 8
]
SOME = [{"data": 1, "fsdp": 1, "tensor": 8}, {"data": 2, "fsdp": 2, "tensor": 2}]


@functools.cache
def written():
    """What one device writes."""
    return [done.tokens for done in llama_jax.generate(of_every_kind(), PROMPTS, **ASKED)]


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=() if shape in SOME else pytest.mark.slow, id=str(shape))
        for shape in SHAPES
    ],
)
def test_a_mesh_writes_what_one_device_writes(shape):
    sharded = llama_jax.shard_params(of_every_kind(), llama_jax.make_mesh(**shape))
    assert [done.tokens for done in llama_jax.generate(sharded, PROMPTS, **ASKED)] == written()
