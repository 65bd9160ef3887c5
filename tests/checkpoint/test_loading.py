"""A model's programs are ready when its weights are: the shapes are enough to make them."""

import jax
import pytest

import llama_jax
from llama_jax.checkpoint import shapes
from llama_jax.cli import devices, options
from llama_jax.cli.loading import load_ahead
from llama_jax.completions import prepare

PROMPTS = [[1, 2, 3]]


@pytest.fixture
def checkpoint(params, tmp_path):
    llama_jax.save(params, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def programs():
    """The names of the decoder's programs that XLA compiles from here on."""
    from jax._src import monitoring

    names = []

    def listen(event, duration, fun_name="", **_):
        ours = any(name in fun_name for name in ("prefill", "decode"))
        if event == "/jax/core/compile/backend_compile_duration" and ours:
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)


def test_shapes_are_those_of_what_load_returns(checkpoint):
    described, loaded = shapes(checkpoint), llama_jax.load(checkpoint)
    assert jax.tree.structure(described) == jax.tree.structure(loaded)
    for a, b in zip(jax.tree.leaves(described), jax.tree.leaves(loaded), strict=True):
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding)
    half = shapes(checkpoint, dtype="bfloat16")
    assert {leaf.dtype.name for leaf in jax.tree.leaves(half)} == {"bfloat16"}


def test_what_was_prepared_from_shapes_is_not_compiled_again(checkpoint, programs):
    jax.clear_caches()
    for done, _ in enumerate(prepare(shapes(checkpoint), PROMPTS, max_new_tokens=4), 1):
        assert len(programs) == done
    assert len(programs) == 2
    params = llama_jax.load(checkpoint)
    assert list(llama_jax.stream(params, PROMPTS, max_new_tokens=4))
    assert len(programs) == 2


def test_a_failure_to_prepare_is_left_to_who_generates(checkpoint):
    def fail(_):
        raise ValueError("not heard")

    params, ready = load_ahead(checkpoint, fail)
    ready()
    assert params.config == llama_jax.load(checkpoint).config


def test_a_command_with_nothing_to_prepare_starts_no_thread_for_it(checkpoint, monkeypatch):
    monkeypatch.setattr(devices, "load_ahead", None)
    params = devices.Devices().load(checkpoint, options.Weights(), lambda source: (1, 16))
    assert params.config == shapes(checkpoint).config
