"""How a model lies on a mesh: the only file that knows the axes.

Three axes: `data` splits the batch, `fsdp` the batch and every weight, `tensor` the heads, the
feed-forward width and the vocabulary. Change the mesh's shape, not the tables.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from llama_jax.config import Config
from llama_jax.params import Params, WeightPath, nested

# A column-parallel weight is cut along its outputs, a row-parallel one along its inputs;
# a column followed by a row costs one all-reduce, which XLA inserts.
COLUMN, ROW, REPLICATED = P("fsdp", "tensor"), P("tensor", "fsdp"), P()  # of an [in, out] weight
LAYER = {
    "attention_norm": {"scale": REPLICATED},
    "attention": {"wq": COLUMN, "wk": COLUMN, "wv": COLUMN, "wo": ROW},
    "ffn_norm": {"scale": REPLICATED},
    "feed_forward": {"w1": COLUMN, "w3": COLUMN, "w2": ROW},
}
# A bias lies as the outputs it is added to.
ATTENTION_BIASES = {"bq": P("tensor"), "bk": P("tensor"), "bv": P("tensor"), "bo": REPLICATED}
MLP_BIASES = {"b1": P("tensor"), "b3": P("tensor"), "b2": REPLICATED}
MODEL = {
    "tok_embeddings": {"weight": P("tensor", "fsdp")},  # [vocab, dim]
    "norm": {"scale": REPLICATED},
    "output": {"weight": COLUMN},
}
ACTIVATION = P(("data", "fsdp"), None, None)  # [batch, time, dim]
LOGITS = P(("data", "fsdp"), None, "tensor")  # [batch, time, vocab]
CACHE = P(("data", "fsdp"), "tensor", None, None)  # [batch, kv_heads, slots, head_dim]
QUERIES = P(("data", "fsdp"), None, "tensor", None)  # [batch, time, heads, head_dim]
NEW_KEYS = P(("data", "fsdp"), None, "tensor", None)  # [batch, time, kv_heads, head_dim]
LENGTHS = P(("data", "fsdp"))  # [batch]


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first `data * fsdp * tensor` devices."""
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for axis, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{axis}={size!r} must be a positive integer")
    wanted, devices = data * fsdp * tensor, jax.devices()
    if wanted > len(devices):
        raise ValueError(
            f"data={data} x fsdp={fsdp} x tensor={tensor} needs {wanted} devices and there are "
            f"{len(devices)}; lower one of the three"
        )
    types = (AxisType.Auto,) * 3
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), types, devices=devices[:wanted])


def weight_shardings(config: Config, mesh: Mesh) -> dict[WeightPath, NamedSharding]:
    """The sharding of every weight of a model, by its path in `Params.weights`."""
    _check_divides(config, mesh)
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
    return {path: NamedSharding(mesh, spec) for path, spec in specs.items()}


def shard_params(params: Params, mesh: Mesh) -> Params:
    """The same params, laid out over `mesh`."""
    shardings = nested(weight_shardings(params.config, mesh))
    return params.replace(weights=jax.device_put(params.weights, shardings))


def mesh_of(params: Params) -> Mesh | None:
    """The mesh on which the weights lie, or None where they lie on a single device."""
    for leaf in jax.tree.leaves(params.weights):
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, Mesh):
            return sharding.mesh if sharding.mesh.size > 1 else None
    return None


def on_mesh_of(params: Params) -> contextlib.AbstractContextManager[Any]:
    """A context in which the model's mesh is the current one, if it has a mesh."""
    mesh = mesh_of(params)
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)


def replicated(params: Params, tree: Any) -> Any:
    """NumPy arrays as a model's programs take them: put on its devices once, whole on each."""
    mesh = mesh_of(params)
    return jax.device_put(tree, None if mesh is None else NamedSharding(mesh, REPLICATED))


def constrain(x: Array, spec: P) -> Array:
    """States how an activation lies on the mesh of `jax.set_mesh`; without one, nothing."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec)


def on_each_device(f: Callable[..., Array], specs: tuple[P, ...], out: P) -> Callable[..., Array]:
    """`f` of every device's own parts, on the mesh of `jax.set_mesh`; without one, `f` itself.

    For what XLA cannot cut: a kernel.
    """
    mesh = jax.sharding.get_abstract_mesh()
    return f if mesh.empty else jax.shard_map(f, in_specs=specs, out_specs=out, check_vma=False)


def cuts_evenly(x: Array, spec: P) -> bool:
    """Whether `spec` cuts `x` into equal parts on the mesh of `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    cuts = [(axes,) if isinstance(axes, str) else axes or () for axes in spec]
    parts = [1 if mesh.empty else math.prod(mesh.shape[axis] for axis in cut) for cut in cuts]
    return all(size % part == 0 for size, part in zip(x.shape, parts, strict=False))


def _check_divides(config: Config, mesh: Mesh) -> None:
    by_tensor = ("n_kv_heads", "hidden_dim", "vocab_size")
    for axis, names in {"tensor": by_tensor, "fsdp": ("dim", "hidden_dim")}.items():
        for name in names:
            if getattr(config, name) % mesh.shape[axis]:
                raise ValueError(
                    f"{axis}={mesh.shape[axis]} does not divide {name}={getattr(config, name)}; "
                    f"use a divisor, and put the other devices on another axis"
                )
