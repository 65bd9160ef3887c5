"""What a compiled step takes on a device, of a model of any size: nothing is allocated.

`python tests/step_memory.py` prints the table of docs/guides/distributed.md.
"""

import dataclasses

import jax
import jax.numpy as jnp

from llama_jax.config import Config
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward, init_params
from llama_jax.sharding.arrays import sharding_of, weight_shardings
from llama_jax.sharding.mesh import make_mesh, mesh_for
from llama_jax.sharding.specs import CACHE
from llama_jax.weights.params import nested
from llama_jax.weights.weight import padded_shape


@dataclasses.dataclass(frozen=True)
class StepMemory:
    """Bytes on each device."""

    weights: int
    cache: int
    temporaries: int
    """As the mesh's own platform compiles the step."""

    @property
    def together(self) -> int:
        return self.weights + self.cache + self.temporaries


def step_memory(config, mesh, *, dtype, batch, slots, time) -> StepMemory:
    """Of one `forward` of `time` tokens a row on a cache: prefill where there are several.

    The mesh's devices may be a topology's, which nobody has.
    """
    params = jax.eval_shape(lambda: init_params(jax.random.key(0), config, dtype))
    shardings = nested(weight_shardings(config, mesh))
    weights = jax.tree.map(_laid_out, params.weights, shardings)
    cache = jax.eval_shape(lambda: KVCache.empty(config, batch=batch, slots=slots, dtype=dtype))
    lies = sharding_of(mesh_for(config, mesh), CACHE)
    cache = jax.tree.map(lambda x: _laid_out(x, lies), cache)
    cache = dataclasses.replace(cache, fresh=False)
    tokens = jax.ShapeDtypeStruct((batch, time), jnp.int32)

    def step(params, tokens, positions, cache):
        return forward(params, tokens, positions, cache, at=positions[:, :1])

    jitted = jax.jit(step, donate_argnums=3)
    compiled = jitted.lower(params.replace(weights=weights), tokens, tokens, cache).compile()
    held = [_bytes(leaf) for leaf in jax.tree.leaves(cache)]
    found = compiled.memory_analysis()
    assert found.alias_size_in_bytes >= sum(held), "the cache is not written where it lies"
    return StepMemory(
        weights=sum(_bytes(leaf) for leaf in jax.tree.leaves(weights)),
        cache=sum(held),
        temporaries=found.temp_size_in_bytes,
    )


def _laid_out(x, sharding):
    return jax.ShapeDtypeStruct(padded_shape(x.shape, sharding), x.dtype, sharding=sharding)


def _bytes(x):
    part = x.sharding.shard_shape(x.shape)
    return jax.ShapeDtypeStruct(part, x.dtype).size * x.dtype.itemsize


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    print("| Llama-3.1-70B, tensor=8, 8 x 8,192 | weights | cache | temporaries (CPU) |")
    for time in (1, 512):
        found = step_memory(
            Config.named("llama-3.1-70b"),
            make_mesh(tensor=8),
            dtype=jnp.bfloat16,
            batch=8,
            slots=8192,
            time=time,
        )
        sizes = (found.weights, found.cache, found.temporaries)
        print(
            f"| {time} tokens a row |",
            " | ".join(f"{n / 1e9:.2f} GB" for n in sizes),
            "|",
            flush=True,
        )
