"""The programs that the contracts are about, made from shapes alone."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from compiled_text import Program
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from llama_jax.config import Config
from llama_jax.generation import driver
from llama_jax.generation.batch import Batch, batch_settings
from llama_jax.generation.loop import prefill
from llama_jax.generation.placement import Placement
from llama_jax.generation.state import NewCache
from llama_jax.model.cache import KVCache
from llama_jax.model.paged import PAGE, Paged
from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.arrays import sharding_of, weight_shardings
from llama_jax.sharding.specs import CACHE, NEXT_LOGITS
from llama_jax.weights.params import Params, nested

LLAMA_8B, LLAMA_70B = Config.named("llama-3.1-8b"), Config.named("llama-3.1-70b")
SMALLEST = LLAMA_8B.dim * LLAMA_8B.n_kv_heads * LLAMA_8B.head_dim * 2
"""The bytes of wk: of the smallest matrix, and as many as a layer's keys take in 4,096 slots."""


def shallow(config: Config, layers: int) -> Config:
    """The same model with fewer layers, which compiles sooner."""
    return dataclasses.replace(config, n_layers=layers)


def mesh_of(devices, **sizes: int) -> Mesh:
    shape = tuple(sizes.get(axis, 1) for axis in ("data", "fsdp", "tensor"))
    chosen = np.array(devices[: np.prod(shape)]).reshape(shape)
    return Mesh(chosen, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def params_of(config: Config, mesh: Mesh) -> Params:
    make = functools.partial(init_params, config=config, dtype=jnp.bfloat16)
    params = jax.eval_shape(make, jax.random.key(0))
    shardings = nested(weight_shardings(config, mesh))
    return params.replace(weights=jax.tree.map(laid_out, params.weights, shardings))


def cache_of(config: Config, mesh: Mesh, *, batch: int, slots: int, fresh: bool = False) -> KVCache:
    make = functools.partial(KVCache.empty, config, batch=batch, slots=slots, dtype=jnp.bfloat16)
    cache = dataclasses.replace(jax.eval_shape(make), fresh=fresh)
    return jax.tree.map(lambda x: laid_out(x, NamedSharding(mesh, CACHE)), cache)


def paged_of(config: Config, mesh: Mesh, *, batch: int, slots: int, kind=Paged) -> Paged:
    """As many pages as the rows have slots for, and a page more: all their sizes differ."""
    sizes = {"pages": batch * slots // PAGE + 1, "rows": batch, "width": slots // PAGE}
    cache = jax.eval_shape(functools.partial(kind.empty, config, **sizes, dtype=jnp.bfloat16))
    return jax.tree.map(lambda x, spec: laid_out(x, sharding_of(mesh, spec)), cache, cache.specs())


def compiled_step(params: Params, cache, mesh: Mesh, *, time: int, run=forward, donate=2):
    """One step compiled: `time` tokens a row, and the logits after the last."""
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    batch = len(cache.table if isinstance(cache, Paged) else cache.k[0])
    tokens = jax.ShapeDtypeStruct((batch, time), jnp.int32, sharding=rows)
    last = jax.ShapeDtypeStruct((batch, 1), jnp.int32, sharding=rows)

    def step(params, tokens, cache, positions, last):
        return run(params, tokens, positions, cache, at=last)

    with jax.set_mesh(mesh):
        jitted = jax.jit(step, donate_argnums=donate)
        return jitted.lower(params, tokens, cache, tokens, last).compile()


def compiled_loop(config: Config, cache: KVCache, mesh: Mesh, *, chunk: int, loop=driver.decode):
    """The loop that decodes, compiled for a mesh: `chunk` tokens between two questions."""
    params, batch = params_of(config, mesh), cache.k[0].shape[0]
    settings = _whole(jax.tree.map(np.asarray, batch_settings(config, [], batch)), mesh)
    numbers, prompts = (jax.ShapeDtypeStruct((batch, *time), jnp.int32) for time in ((), (16,)))
    new = NewCache(KVCache, batch, cache.slots, jnp.bfloat16)
    make = functools.partial(prefill, tokens_per_read=16)
    with jax.set_mesh(mesh):
        state = jax.eval_shape(make, params, new, prompts, numbers, np.int32(0), settings)
        state = jax.tree.map(lambda x: laid_out(x, _lies(x, config, mesh)), state)
        state = dataclasses.replace(state, cache=cache)
        taken, until = _whole((numbers, jax.ShapeDtypeStruct((), jnp.int32)), mesh)
        return loop.lower(params, state, settings, taken, until, tokens_per_check=chunk).compile()


def compiled_prefill(config: Config, mesh: Mesh, *, batch: int, time: int):
    """The program that reads prompts, as `generate` has it compiled."""
    params = params_of(config, mesh)
    settings = _whole(jax.tree.map(np.asarray, batch_settings(config, [], batch)), mesh)
    arrays = np.zeros((batch, time), np.int32), np.zeros(batch, np.int32)
    texts, lengths = _whole(arrays, mesh)
    asked = Batch([], texts, lengths, settings, slots=2 * time)
    call = driver.prefill_of(params, Placement.of(params), asked)
    with jax.set_mesh(mesh):
        return call.compiled()


def tokens_of(loop: Program, chunk: int) -> list[Program]:
    """A token of its loop for greedy ones, and a token of its loop for all else."""
    bodies = [loop.computations[i.body] for i in loop.executed[loop.entry] if i.op == "while"]
    inner = [i for body in bodies for i in body if i.op == "while" and i.trips == chunk]
    assert len(inner) == len(bodies) == 2
    return [loop.inside(i.body) for i in inner]


def nbytes(tree, *, of_a_device: bool = False) -> int:
    """Bytes of a tree's arrays, or of one device's parts of them."""
    shape = lambda x: x.sharding.shard_shape(x.shape) if of_a_device else x.shape  # noqa: E731
    return sum(int(np.prod(shape(x))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def laid_out(x, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def _lies(x, config: Config, mesh: Mesh) -> NamedSharding:
    """Where a part of what is decoded lies: cut if it has a number for each id."""
    return sharding_of(mesh, NEXT_LOGITS if x.shape[-1:] == (config.vocab_size,) else P())


def _whole(tree, mesh: Mesh):
    return jax.tree.map(lambda x: laid_out(x, NamedSharding(mesh, P())), tree)
