"""On a GPU that is there: the kernels against XLA's own attention, and a GPU against a CPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import kernels
from llama_jax.completions import generate
from llama_jax.config import Config
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward, init_params

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    try:
        return jax.devices("gpu")[0]
    except RuntimeError:
        pytest.skip("this machine has no GPU that JAX can use")


def config(head_dim: int) -> Config:
    """A small model with heads of a true one's size."""
    tiny = Config.named("tiny")
    return tiny.replace(dim=4 * head_dim, n_heads=4, n_kv_heads=2, head_dim=head_dim)


def prompt_and_step(params, tokens):
    """Logits of a prompt, and of a step that follows it."""
    batch, time = tokens.shape
    positions = jnp.broadcast_to(jnp.arange(time), tokens.shape)
    cache = KVCache.empty(params.config, batch=batch, slots=256, dtype=params.dtype)
    logits, cache = jax.jit(forward)(params, tokens, positions, cache)
    newest = jnp.argmax(logits[:, -1:], axis=-1)
    after, _ = jax.jit(forward)(params, newest, jnp.full((batch, 1), time), cache)
    return np.asarray(logits), np.asarray(after)


def without_kernels(monkeypatch):
    for name in ("has_prompt_kernel", "has_step_kernel"):
        monkeypatch.setattr(kernels.gpu, name, lambda *_, **__: False)
    jax.clear_caches()


@pytest.mark.parametrize("head_dim", [64, 128])
def test_the_kernels_give_the_logits_of_xlas_own_attention(gpu, monkeypatch, head_dim):
    params = init_params(jax.random.key(0), config(head_dim), jnp.bfloat16)
    tokens = jax.random.randint(jax.random.key(1), (3, 130), 0, params.config.vocab_size)
    dtype = params.dtype
    assert kernels.gpu.has_step_kernel(dtype, dtype, group=2, slots=256, head_dim=head_dim)
    assert kernels.gpu.has_prompt_kernel(dtype, head_dim)
    ours = prompt_and_step(params, tokens)
    without_kernels(monkeypatch)
    for one, other in zip(ours, prompt_and_step(params, tokens), strict=True):
        np.testing.assert_allclose(one, other, atol=0.02 * np.abs(other).max())


def test_in_float32_the_step_kernel_is_exact(gpu, monkeypatch):
    params = init_params(jax.random.key(0), config(64))
    tokens = jax.random.randint(jax.random.key(1), (3, 130), 0, params.config.vocab_size)
    ours = prompt_and_step(params, tokens)
    without_kernels(monkeypatch)
    for one, other in zip(ours, prompt_and_step(params, tokens), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4 * np.abs(other).max())


def test_a_gpu_and_a_cpu_write_the_same_tokens_in_float32(gpu):
    params = init_params(jax.random.key(0), config(64))
    asked = {"max_new_tokens": 40, "temperature": [0.0, 0.8], "top_p": 0.9, "stop_ids": ()}
    prompts = [[1, 2, 3], [7, 8, 9, 10]]
    on_gpu, on_cpu = (
        generate(jax.device_put(params, device), prompts, seed=3, **asked)
        for device in (gpu, jax.devices("cpu")[0])
    )
    assert [c.tokens for c in on_gpu] == [c.tokens for c in on_cpu]
