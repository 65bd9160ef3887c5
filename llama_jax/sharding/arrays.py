"""How a model lies on a mesh: the only file that says what is cut along which axis.

Change the mesh's shape, not the tables.
"""

from __future__ import annotations

import contextlib
import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, Sharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from llama_jax.config import Config
from llama_jax.ops import sampling
from llama_jax.sharding.mesh import ROWS, TENSOR, mesh_for
from llama_jax.weights.params import PADDED, Params, WeightPath, nested, true_shape

# A column-parallel weight is cut along its outputs, a row-parallel one along its inputs;
# a column followed by a row costs one all-reduce, which XLA inserts.
COLUMN, ROW, REPLICATED = P("fsdp", TENSOR), P(TENSOR, "fsdp"), P()  # of an [in, out] weight
KEYS = P("fsdp", "tensor")  # a key-value head stays whole, on every device that shares it
LAYER = {
    "attention_norm": {"scale": REPLICATED},
    "attention": {"wq": COLUMN, "wk": KEYS, "wv": KEYS, "wo": ROW},
    "ffn_norm": {"scale": REPLICATED},
    "feed_forward": {"w1": COLUMN, "w3": COLUMN, "w2": ROW},
}
# A bias lies as the outputs it is added to.
ATTENTION_BIASES = {"bq": P(TENSOR), "bk": P("tensor"), "bv": P("tensor"), "bo": REPLICATED}
MLP_BIASES = {"b1": P(TENSOR), "b3": P(TENSOR), "b2": REPLICATED}
MODEL = {
    "tok_embeddings": {"weight": P(TENSOR, "fsdp")},  # [vocab, dim]
    "norm": {"scale": REPLICATED},
    "output": {"weight": COLUMN},
}
ACTIVATION = P(ROWS, None, None)  # [batch, time, dim]
LOGITS = P(ROWS, None, TENSOR)  # [batch, time, vocab]
NEXT = P(ROWS, TENSOR)  # [batch, vocab]: of one position
CACHE = P(ROWS, "tensor", None, None)  # [batch, kv_heads, slots, head_dim]
QUERIES = P(ROWS, None, TENSOR, None)  # [batch, time, heads, head_dim]
NEW_KEYS = P(ROWS, None, "tensor", None)  # [batch, time, kv_heads, head_dim]
LENGTHS = P(ROWS)  # [batch]


def weight_shardings(config: Config, mesh: Mesh | AbstractMesh) -> dict[WeightPath, NamedSharding]:
    """The sharding of every weight of a model, by its path in `Params.weights`."""
    specs: dict[WeightPath, P] = {
        (group, name): spec for group, rows in MODEL.items() for name, spec in rows.items()
    }
    if config.tie_embeddings:
        del specs["output", "weight"]
    layer = {group: dict(rows) for group, rows in LAYER.items()}
    if config.attention_bias:
        layer["attention"] |= ATTENTION_BIASES
    if config.mlp_bias:
        layer["feed_forward"] |= MLP_BIASES
    for i in range(config.n_layers):
        for group, rows in layer.items():
            specs |= {(f"layers_{i}", group, name): spec for name, spec in rows.items()}
    mesh = mesh_for(config, mesh)
    return {path: sharding_of(mesh, spec) for path, spec in specs.items()}


def sharding_of(mesh: Mesh | AbstractMesh, spec: P) -> NamedSharding:
    """What a table's `spec` says on a mesh, which may lack `copies`."""
    return NamedSharding(mesh, _on(mesh, spec))  # type: ignore[arg-type]  # abstract ones too


def padded_shape(shape: tuple[int, ...], sharding: Sharding) -> tuple[int, ...]:
    """`shape`, each axis rounded up to what the sharding cuts into equal parts."""
    if not isinstance(sharding, NamedSharding):
        return shape
    cuts = [(axes,) if isinstance(axes, str) else axes or () for axes in sharding.spec]
    parts = [math.prod(sharding.mesh.shape[axis] for axis in cut) for cut in cuts]
    parts += [1] * (len(shape) - len(parts))
    return tuple(math.ceil(n / part) * part for n, part in zip(shape, parts, strict=True))


def shard_params(params: Params, mesh: Mesh) -> Params:
    """The same params, laid out over `mesh`."""
    shardings = weight_shardings(params.config, mesh)
    weights: dict[WeightPath, Any] = {}
    for path, sharding in shardings.items():
        weight: Any = functools.reduce(operator.getitem, path, params.weights)
        if path[-2:] in PADDED:
            weight = _padded(weight, true_shape(params.config, path, weight.shape), sharding)
        weights[path] = jax.device_put(weight, sharding)
    return params.replace(weights=nested(weights))


def mesh_of(params: Params) -> Mesh | None:
    """The mesh on which the weights lie, or None where they lie on a single device."""
    for leaf in jax.tree.leaves(params.weights):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh if sharding.mesh.size > 1 else None
    return None


def on_mesh_of(params: Params) -> contextlib.AbstractContextManager[Any]:
    """A context in which the model's mesh is the current one, if it has a mesh; in jit too."""
    leaf = jax.tree.leaves(params.weights)[0]
    if isinstance(leaf, jax.core.Tracer):
        traced = jax.typeof(leaf).sharding.mesh
        if traced.size > 1:
            return jax.sharding.use_abstract_mesh(traced)
    elif (mesh := mesh_of(params)) is not None:
        return jax.set_mesh(mesh)
    return contextlib.nullcontext()


def rows_divisor(params: Params) -> int:
    """What the rows of a batch must be a multiple of: a device has as many as any other."""
    mesh = mesh_of(params)
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def platform_of(params: Params) -> str:
    """Of the devices on which the weights lie, or will: "cpu", "gpu"."""
    leaf = jax.tree.leaves(params.weights)[0]
    sharding = getattr(leaf, "sharding", None)
    return jax.default_backend() if sharding is None else next(iter(sharding.device_set)).platform


def cache_dtype(params: Params) -> Any:
    """The dtype of a model's keys and values, where it lies."""
    return cache_dtype_on(platform_of(params), params.dtype)


def cache_dtype_on(platform: str, dtype: Any) -> Any:
    """The dtype of keys and values beside weights of `dtype`: on a CPU float32, whatever it is.

    XLA writes one slot of a 16-bit array there by a pass over all of it.
    """
    return jnp.dtype("float32") if platform == "cpu" else dtype


def replicated(params: Params, tree: Any) -> Any:
    """NumPy arrays as a model's programs take them: put on its devices once, whole on each."""
    mesh = mesh_of(params)
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, REPLICATED))


def constrain(x: Array, spec: P) -> Array:
    """States how an activation lies on the mesh of `jax.set_mesh`; without one, nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, _on(mesh, spec))


def on_each_device(f: Callable[..., Array], specs: tuple[P, ...], out: P) -> Callable[..., Array]:
    """`f` of every device's own parts, on the mesh of `jax.set_mesh`; without one, `f` itself.

    For what XLA cannot cut: a kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return f
    here = tuple(_on(mesh, spec) for spec in specs)
    return jax.shard_map(f, in_specs=here, out_specs=_on(mesh, out), check_vma=False)


def cuts_evenly(x: Array, spec: P) -> bool:
    """Whether `spec` cuts `x` into equal parts on the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return True
    return x.shape == padded_shape(x.shape, NamedSharding(mesh, _on(mesh, spec)))  # type: ignore[arg-type]


def gathered(weight: Any, group: str, name: str) -> Any:
    """A weight as a product takes it: its parts on `fsdp` brought together, those on `tensor` not.

    Said, not left to XLA, which would at some sizes rather move the activations.
    """
    spec = (LAYER.get(group) or MODEL[group]).get(name, REPLICATED)  # no bias is on `fsdp`
    if "fsdp" not in spec or not isinstance(weight, jax.Array):
        return weight
    return constrain(weight, P(*(None if axes == "fsdp" else axes for axes in spec)))


def kept_cut(weights: Any, before: Array) -> Any:
    """Weights that XLA cannot gather before `before` is known: not once for all steps of a loop.

    Gathered once, they would all lie whole on every device, and `fsdp` would have saved nothing.
    """
    if jax.sharding.get_abstract_mesh().shape.get("fsdp", 1) == 1:
        return weights
    return jax.lax.optimization_barrier((weights, before))[0]


def top_k(x: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k` of [batch, ..., vocab] that lies as logits do: each device looks at its own.

    XLA would bring the vocabulary together first, and the rows as well.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = () if mesh.empty else tuple(axis for axis in TENSOR if mesh.shape.get(axis, 1) > 1)
    rows = () if mesh.empty else tuple(axis for axis in ROWS if mesh.shape[axis] > 1)
    if not axes + rows or x.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        return sampling.top_k(x, k)
    lies = P(rows, *[None] * (x.ndim - 2), axes)
    wanted = padded_shape(x.shape, NamedSharding(mesh, lies))  # type: ignore[arg-type]
    more = [(0, n - m) for n, m in zip(wanted, x.shape, strict=True)]

    def found(part: Array) -> tuple[Array, Array]:
        width = part.shape[-1]
        values, ids = sampling.top_k(part, min(k, width))
        if not axes:
            return values, ids
        ids += jax.lax.axis_index(axes) * width
        gather = functools.partial(jax.lax.all_gather, axis_name=axes, axis=x.ndim - 1, tiled=True)
        best, places = jax.lax.top_k(gather(values), k)
        return best, jnp.take_along_axis(gather(ids), places, axis=-1)

    whole = P(rows)
    mapped = jax.shard_map(found, in_specs=lies, out_specs=(whole, whole), check_vma=False)
    return mapped(jnp.pad(x, more, constant_values=-jnp.inf))


def _on(mesh: Mesh | AbstractMesh, spec: P) -> P:
    """`spec` without the axes that the mesh does not have."""
    return P(*(_known(mesh, axes) if isinstance(axes, tuple) else axes for axes in spec))


def _known(mesh: Mesh | AbstractMesh, axes: tuple[str, ...]) -> str | tuple[str, ...]:
    known = tuple(axis for axis in axes if axis in mesh.axis_names)
    return known[0] if len(known) == 1 else known


def _padded(weight: Any, shape: tuple[int, ...], sharding: NamedSharding) -> Any:
    """A weight with as many zeros after its true `shape` as its sharding wants."""
    wanted = padded_shape(shape, sharding)
    if weight.shape == wanted:
        return weight
    weight = jax.lax.slice(jnp.asarray(weight), (0,) * len(shape), shape)
    return jnp.pad(weight, [(0, n - m) for n, m in zip(wanted, shape, strict=True)])
