"""Where a model lies: its mesh, platform, kind of cache and limits. Asked once a call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from llama_jax.generation.limits import Limits, limits_on
from llama_jax.jax_settings import AS_RUN, as_written
from llama_jax.kernels import cache_dtype
from llama_jax.model.cache import Cache, KVCache
from llama_jax.sharding.arrays import mesh_of
from llama_jax.validation import wrong_kind
from llama_jax.weights.params import Params, check_params
from llama_jax.weights.table import BATCH, REPLICATED


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a model's weights."""

    mesh: Mesh | None
    """None where all weights are on one device."""
    platform: str
    """As JAX names it."""
    cache_dtype: Any
    """The dtype of cached keys and values."""
    cache: type[Cache]
    """The kind of cache that holds them."""
    limits: Limits
    """The platform's sizes of batches, chunks and rounds."""

    @classmethod
    def of(cls, params: Params, cache: type[Cache] = KVCache) -> Placement:
        """The placement of these params, whose weights may be shapes."""
        check_params(params)
        if not isinstance(cache, type) or not hasattr(cache, "grown") or cache is Cache:
            raise wrong_kind("cache", cache, "pass a class, such as llama_jax.Int8KVCache")
        leaf = jax.tree.leaves(params.weights)[0]
        sharding = getattr(leaf, "sharding", None)
        devices = None if sharding is None else sharding.device_set
        platform = next(iter(devices)).platform if devices else jax.default_backend()
        dtype = cache_dtype(platform, params.dtype)
        return cls(mesh_of(params), platform, dtype, cache, limits_on(platform))

    @property
    def batch_divisor(self) -> int:
        """The number of rows must be a multiple of this: `data * fsdp`."""
        if self.mesh is None:
            return 1
        sizes = [self.mesh.shape[axis] for axis in BATCH]
        return sizes[0] * sizes[1]

    def put(self, tree: Any) -> Any:
        """Puts NumPy arrays on the model's devices, replicated."""
        return jax.device_put(tree, self.mesh and NamedSharding(self.mesh, REPLICATED))

    @contextlib.contextmanager
    def use_mesh(self) -> Iterator[None]:
        """A context in which the model's programs run: as written, and in its mesh, if any."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(as_written(AS_RUN))
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
            yield
