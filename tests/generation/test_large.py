"""Models that no device here could hold, compiled for devices that are not there."""

import jax.numpy as jnp
import pytest
from step_memory import step_memory

from llama_jax.config import Config
from llama_jax.model.memory import memory
from llama_jax.sharding.mesh import make_mesh

H100 = 80e9


@pytest.mark.parametrize("layers", [1, pytest.param(80, marks=pytest.mark.slow)])
def test_70b_lies_on_eight_devices_as_memory_says(layers):
    """With 8 texts of 8,192 tokens. Temporaries are CPU's, which turns bfloat16 into float32."""
    config = Config.named("llama-3.1-70b").replace(n_layers=layers)
    asked = {"dtype": "bfloat16", "batch": 8, "context": 8192, "tensor": 8}
    needed = memory(config, **asked)
    found = step_memory(
        config, make_mesh(tensor=8), dtype=jnp.bfloat16, batch=8, slots=8192, time=1
    )
    assert (found.weights, found.cache) == (needed.weights_per_device, needed.cache_per_device)
    whole = memory(Config.named("llama-3.1-70b"), **asked)
    assert whole.per_device < H100 / 3
