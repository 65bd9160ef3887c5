"""What XLA makes of reading a prompt with cuDNN's attention, for an H100."""

import re

import jax
import pytest
from compiled_text import program
from programs import LLAMA_8B, cache_of, compiled_step, mesh_of, params_of, shallow

LAYERS, TIME = 2, 2304  # a time that no weight has for an axis


def prompt_step(devices, **sizes):
    config, mesh = shallow(LLAMA_8B, LAYERS), mesh_of(devices, **sizes)
    cache = cache_of(config, mesh, batch=1, slots=TIME, fresh=True)
    return compiled_step(params_of(config, mesh), cache, mesh, time=TIME)


def squares(text: str) -> list[str]:
    """Arrays with two axes of a prompt's length."""
    shapes = re.findall(r"= \(?\w+\[([\d,]+)\]", text)
    return [shape for shape in shapes if shape.split(",").count(str(TIME)) > 1]


@pytest.mark.usefixtures("cudnn")
@pytest.mark.parametrize("tensor", [1, 8])
def test_a_fresh_prompt_has_no_array_of_time_by_time(h100s, tensor):
    text = prompt_step(h100s, tensor=tensor).as_text()
    kernels = program(text).kernels
    assert sum("__cudnn$fmha" in i.rest for i in kernels) == LAYERS
    assert squares(text) == []


def test_without_cudnn_it_has_one(h100s, monkeypatch):
    monkeypatch.setattr("llama_jax.kernels.has_prompt_kernel", lambda *_: False)
    for blocks in ("QUERIES", "KEYS", "OWN"):  # nor blocks of it
        monkeypatch.setattr(f"llama_jax.ops.attention.{blocks}", 1 << 20)
    jax.clear_caches()
    assert squares(prompt_step(h100s).as_text()) != []
