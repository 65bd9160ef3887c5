"""Which attention is chosen: without a GPU XLA's own, and on a mesh each device its own part."""

import jax
import jax.numpy as jnp
import pytest

from llama_jax import kernels
from llama_jax.kernels.decode_attention import decode_attention
from llama_jax.sharding.mesh import make_mesh
from llama_jax.sharding.specs import CACHE

pytestmark = pytest.mark.bits

BF16, F32 = jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32)
TAKEN = {"dtype": F32, "past_dtype": F32, "group": 4, "slots": 64, "head_dim": 64}


@pytest.fixture
def step():
    keys = jax.random.split(jax.random.key(0), 5)
    own, past = (4, 1, 2, 64), (4, 2, 64, 64)
    shapes = (4, 1, 8, 64), own, own, past, past
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


@pytest.fixture
def gpu(monkeypatch):
    """Has the process take its CPU for a GPU, on which it has tried no kernel yet."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    tried = kernels.gpu.has_step_kernel, kernels.gpu.has_prompt_kernel
    for one in tried:
        one.cache_clear()
    yield
    for one in tried:
        one.cache_clear()


@pytest.fixture
def plus_one(monkeypatch):
    """Stands for attention without a kernel."""
    monkeypatch.setattr(kernels.blockwise, "attention", lambda q, *_: q + 1)


def test_without_a_gpu_there_are_no_kernels():
    assert not kernels.gpu.has_step_kernel(BF16, BF16, group=1, slots=64, head_dim=64)
    assert not kernels.gpu.has_prompt_kernel(BF16, 64)


@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_does_not_compile_is_not_there():
    x = jax.ShapeDtypeStruct((1,), jnp.float32)

    def refuses(x):
        raise RuntimeError("cuDNN not found.")

    assert not kernels.gpu.compiles_here(refuses, x)
    assert kernels.gpu.compiles_here(jnp.sin, x)


def step_of(*, dtype, past_dtype, group, slots, head_dim):
    """One row's queries, own keys and past, of 2 key heads."""
    q, own = jnp.ones((1, 1, 2 * group, head_dim), dtype), jnp.ones((1, 1, 2, head_dim), dtype)
    return q, own, jnp.ones((1, 2, slots, head_dim), past_dtype)


@pytest.mark.usefixtures("gpu", "plus_one")
@pytest.mark.parametrize(
    "refused",
    [{"dtype": BF16}, {"past_dtype": BF16}, {"group": 8}, {"slots": 128}, {"head_dim": 128}],
    ids=lambda refused: next(iter(refused)),
)
def test_a_step_that_the_kernel_refuses_falls_back_and_others_do_not(monkeypatch, refused):
    def kernel(q, k, v, past, lengths):
        group, (slots, head_dim) = q.shape[2] // k.shape[2], past[0].shape[2:]
        if (q.dtype, past[0].dtype, group, slots, head_dim) == tuple({**TAKEN, **refused}.values()):
            raise RuntimeError("no such kernel")
        return q - 1

    monkeypatch.setattr(jax.lax, "platform_dependent", lambda cuda, default: cuda())
    monkeypatch.setattr(kernels.gpu, "step_kernel", kernel)
    for sizes, added in ((TAKEN, -1), ({**TAKEN, **refused}, 1)):
        q, own, past = step_of(**sizes)
        lengths = jnp.zeros(1, jnp.int32)
        out = kernels.attention(q, own, own, (past, past), lengths)
        assert jnp.array_equal(out, q + added)


@pytest.mark.usefixtures("gpu", "plus_one")
@pytest.mark.parametrize("refused", [(BF16, 64), (F32, 128)], ids=["dtype", "head_dim"])
def test_a_prompt_that_cudnn_refuses_falls_back_and_others_do_not_and_it_is_tried_once(
    monkeypatch, refused
):
    tried = []

    def kernel(q, k, v):
        tried.append(q.shape)
        if (q.dtype, q.shape[-1]) == refused:
            raise RuntimeError("No cuDNN attention for these.")
        return q - 1

    monkeypatch.setattr(jax.lax, "platform_dependent", lambda cuda, default: cuda())
    monkeypatch.setattr(kernels.gpu, "prompt_kernel", kernel)
    for (dtype, head_dim), added in (((F32, 64), -1), (refused, 1)):
        q = jnp.ones((1, 16, 4, head_dim), dtype)
        for _ in range(2):
            out = kernels.attention(q, q[:, :, :2], q[:, :, :2], None, jnp.zeros(1, int))
            assert jnp.array_equal(out, q + added)
    assert sum(shape[1] != 16 for shape in tried) == 2  # a probe a kind of heads


@pytest.mark.usefixtures("plus_one")
def test_a_program_for_a_cpu_holds_no_kernel_though_the_process_has_some(monkeypatch, step):
    monkeypatch.setattr(kernels.gpu, "has_step_kernel", lambda *_, **__: True)
    q, k, v, *past = step
    out = jax.jit(kernels.attention)(q, k, v, tuple(past), jnp.full(4, 3))
    assert jnp.array_equal(out, q + 1)


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"data": 2, "tensor": 2}, {"fsdp": 4}])
def test_on_a_mesh_each_device_runs_the_kernel_on_its_own_part(monkeypatch, step, sizes):
    q, k, v, *past = step
    lengths = jnp.array([0, 3, 63, 64])
    whole = decode_attention(q, k, v, tuple(past), lengths, interpret=True)
    seen = []

    def interpreted(q, k, v, past, lengths):
        seen.append(q.shape)
        return decode_attention(q, k, v, past, lengths, interpret=True)

    monkeypatch.setattr(kernels.gpu, "has_step_kernel", lambda *_, **__: True)
    monkeypatch.setattr(kernels.gpu, "step_kernel", interpreted)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda cuda, default: cuda())
    with jax.set_mesh(make_mesh(**sizes)):
        past = jax.device_put(tuple(past), jax.NamedSharding(make_mesh(**sizes), CACHE))
        cut = jax.jit(kernels.attention)(q, k, v, past, lengths)
    rows = sizes.get("data", 1) * sizes.get("fsdp", 1)
    assert seen == [(4 // rows, 1, 8 // sizes.get("tensor", 1), 64)]
    assert jnp.allclose(cut, whole, atol=1e-6)


@pytest.mark.usefixtures("plus_one")
def test_what_the_mesh_does_not_divide_is_left_to_xla(monkeypatch, step):
    monkeypatch.setattr(kernels.gpu, "has_step_kernel", lambda *_, **__: pytest.fail("asked for"))
    q, k, v, *past = step
    with jax.set_mesh(make_mesh(tensor=4)):  # and 2 key heads
        out = kernels.attention(q, k, v, past, jnp.zeros(4, jnp.int32))
    assert jnp.array_equal(out, q + 1)
