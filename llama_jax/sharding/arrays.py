"""Arrays on a mesh: weights are put there, activations constrained, the mesh found and used."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from llama_jax.config import Config
from llama_jax.sharding.mesh import mesh_for
from llama_jax.weights.params import Params, Weights, check_params, nested, true_shape, weight_at
from llama_jax.weights.table import Specs, WeightPath, weight_table
from llama_jax.weights.weight import (
    PartAxis,
    check_groups,
    is_value,
    map_parts,
    padded_shape,
    part_shape,
    part_spec,
)


def weight_shardings(config: Config, mesh: Mesh | AbstractMesh) -> dict[WeightPath, NamedSharding]:
    """The sharding of every weight of a model, by its path in `Params.weights`."""
    mesh = mesh_for(config, mesh)
    return {path: sharding_of(mesh, row.spec) for path, row in weight_table(config).items()}


def sharding_of(mesh: Mesh | AbstractMesh, spec: P) -> NamedSharding:
    """A spec on a mesh, without the axes that the mesh lacks (`copies`)."""
    return NamedSharding(mesh, _on(mesh, spec))  # type: ignore[arg-type]  # abstract ones too


def shard_params(params: Params, mesh: Mesh) -> Params:
    """The same params, laid out over `mesh`.

    ValueError where the mesh does not fit the model: see `make_mesh`.
    """
    check_params(params)
    weights = {}
    for path, sharding in weight_shardings(params.config, mesh).items():
        weight = weight_at(params.weights, path)
        shape = true_shape(params.config, path, weight.shape)
        weights[path] = put_weight(weight, shape, sharding, name=".".join(path))
    return params.replace(weights=nested(weights))


def put_weight(weight: Any, shape: tuple[int, ...], sharding: NamedSharding, *, name: str) -> Any:
    """Shards a weight: each part along the axes it follows, padded with zeros."""
    check_groups(name, weight, shape, sharding)
    padded = padded_shape(shape, sharding)

    def put(part: Any, axes: tuple[PartAxis, ...]) -> Array:
        here = sharding
        if is_value(weight):
            here = NamedSharding(sharding.mesh, part_spec(axes, sharding.spec))
        return jax.device_put(
            resized(part, part_shape(axes, shape), part_shape(axes, padded)), here
        )

    return map_parts(weight, put)


def mesh_of(params: Params) -> Mesh | None:
    """The mesh of the weights, or None where they are on a single device."""
    for leaf in jax.tree.leaves(params.weights):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh if sharding.mesh.size > 1 else None
    return None


def use_mesh_of(weights: Weights) -> contextlib.AbstractContextManager[Any]:
    """A context in which the weights' mesh is the current one, if they have one.

    Inside `jit` the mesh is read from the tracers' shardings.
    """
    leaf = jax.tree.leaves(weights)[0]
    if isinstance(leaf, jax.core.Tracer):
        traced = jax.typeof(leaf).sharding.mesh
        if traced.size > 1:
            return jax.sharding.use_abstract_mesh(traced)
        return contextlib.nullcontext()
    sharding = getattr(leaf, "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.size > 1:
        return jax.set_mesh(sharding.mesh)  # type: ignore[arg-type]
    return contextlib.nullcontext()


def constrain(x: Array, spec: P, otherwise: P | None = None) -> Array:
    """`x` sharded by `spec` on the mesh of `jax.set_mesh`; without a mesh, `x`.

    Where `spec` would cut `x` into unequal parts, it is sharded by `otherwise`, if that is given.
    A program's result needs that: JAX 0.11.2 and later cannot name a cut into unequal parts.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    if otherwise is not None and not cuts_evenly(x, spec):
        spec = otherwise
    return jax.lax.with_sharding_constraint(x, _on(mesh, spec))


def constrain_weights(params: Params) -> Params:
    """Weights, or their gradients, sharded as the table says, on the mesh of `jax.set_mesh`."""
    weights = {}
    for path, row in weight_table(params.config).items():
        spec = row.spec

        def cut(part: Any, axes: tuple[PartAxis, ...], spec: P = spec) -> Array:
            return constrain(part, part_spec(axes, spec))

        weights[path] = map_parts(weight_at(params.weights, path), cut)
    return params.replace(weights=nested(weights))


def per_device(f: Callable[..., Array], specs: tuple[Any, ...], out: P) -> Callable[..., Array]:
    """`jax.shard_map` of `f` on the mesh of `jax.set_mesh`; without a mesh, `f` itself.

    Use it for kernels, which XLA cannot partition. `specs` are the arguments' trees of specs.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f
    here = jax.tree.map(functools.partial(_on, mesh), specs)
    return jax.shard_map(f, in_specs=here, out_specs=_on(mesh, out), check_vma=False)


def axis_parts(axes: tuple[str, ...]) -> int:
    """Into how many parts these axes cut an array on the mesh of `jax.set_mesh`; without one, 1."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape.get(axis, 1) for axis in axes)


def cuts_evenly(x: Array, spec: P) -> bool:
    """Whether `spec` cuts `x` into equal parts on the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return True
    return x.shape == padded_shape(x.shape, NamedSharding(mesh, _on(mesh, spec)))  # type: ignore[arg-type]


def gather_weights(weights: Weights, specs: Specs) -> Weights:
    """Groups of weights, all-gathered over `fsdp` and still sharded over `tensor`."""
    if jax.sharding.get_abstract_mesh().empty:
        return {group: weights[group] for group in specs}
    return {
        group: {name: gather_fsdp(weights[group][name], spec) for name, spec in names.items()}
        for group, names in specs.items()
    }


def gather_fsdp(weight: Any, spec: P) -> Any:
    """One weight, all-gathered over `fsdp`.

    The constraint is explicit, because at some sizes XLA would move the activations instead.
    """
    if "fsdp" not in spec:
        return weight
    whole = P(*(None if axes == "fsdp" else axes for axes in spec))
    return map_parts(weight, lambda part, axes: constrain(part, part_spec(axes, whole)))


def gather_every_step(weights: Weights, before: Array) -> Weights:
    """The weights, with a data dependency on `before`: XLA then gathers them at every step.

    Otherwise XLA would gather all of them before the loop, and every device would hold the whole
    model.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return weights
    return jax.lax.optimization_barrier((weights, before))[0]


@jax.custom_vjp
def gradients_before(weights: Weights, x: Array) -> tuple[Weights, Array]:
    """The same arrays. Backwards, the gradient of `x` waits until those of the weights are there.

    Otherwise XLA puts the gradients of all layers' weights off, and keeps every layer's
    activations for them.
    """
    return weights, x


def _same(weights: Weights, x: Array) -> tuple[tuple[Weights, Array], None]:
    return (weights, x), None


def _in_turn(_: None, gradients: tuple[Weights, Array]) -> tuple[Weights, Array]:
    return jax.lax.optimization_barrier(gradients)


gradients_before.defvjp(_same, _in_turn)


def _on(mesh: Mesh | AbstractMesh, spec: P) -> P:
    """`spec` without the axes that the mesh does not have."""
    return P(*(_known(mesh, axes) if isinstance(axes, tuple) else axes for axes in spec))


def _known(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> str | tuple[str, ...]:
    known = tuple(axis for axis in axes if axis in mesh.axis_names)
    return known[0] if len(known) == 1 else known


def resized(part: Any, shape: tuple[int, ...], wanted: tuple[int, ...]) -> Any:
    """A part cut to its true `shape`, and then zeros up to the `wanted` one."""
    if part.shape == wanted:
        return part
    part = jax.lax.slice(jnp.asarray(part), (0,) * len(shape), shape)
    return jnp.pad(part, [(0, n - m) for n, m in zip(wanted, shape, strict=True)])
