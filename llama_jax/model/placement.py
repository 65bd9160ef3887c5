"""Where a model lies, and what follows from it: asked once a call."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from llama_jax.compilation import AS_RUN, as_written
from llama_jax.kernels import cache_dtype
from llama_jax.model.cache import Cache, KVCache
from llama_jax.sharding.arrays import mesh_of
from llama_jax.weights.params import Params, check_params
from llama_jax.weights.table import BATCH, REPLICATED


@dataclasses.dataclass(frozen=True)
class Placement:
    """The devices of a model's weights."""

    mesh: Mesh | None
    """None where the weights lie on one device."""
    platform: str
    """As JAX names it."""
    cache_dtype: Any
    """The dtype that keys and values have there."""
    cache: type[Cache] = KVCache
    """The kind of cache that they lie in."""

    @classmethod
    def of(cls, params: Params, cache: type[Cache] = KVCache) -> Placement:
        """Where these params lie, or, if their weights are only shapes, will lie."""
        check_params(params)
        leaf = jax.tree.leaves(params.weights)[0]
        sharding = getattr(leaf, "sharding", None)
        devices = None if sharding is None else sharding.device_set
        platform = next(iter(devices)).platform if devices else jax.default_backend()
        return cls(mesh_of(params), platform, cache_dtype(platform, params.dtype), cache)

    @property
    def batch_divisor(self) -> int:
        """What a batch's rows must be a multiple of, so that every device has as many."""
        if self.mesh is None:
            return 1
        sizes = [self.mesh.shape[axis] for axis in BATCH]
        return sizes[0] * sizes[1]

    def put(self, tree: Any) -> Any:
        """NumPy arrays as the model's programs take them: on its devices, whole on each."""
        return jax.device_put(tree, self.mesh and NamedSharding(self.mesh, REPLICATED))

    @contextlib.contextmanager
    def use_mesh(self) -> Iterator[None]:
        """A context in which the model's programs run: as written, and in its mesh, if any."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(as_written(AS_RUN))
            if self.mesh is not None:
                stack.enter_context(jax.set_mesh(self.mesh))
            yield
