"""Meshes of devices, and what a model asks of one.

A mesh has three axes: `data` splits the batch, `fsdp` the batch and every matrix, `tensor` the
heads, the feed-forward width and the vocabulary. Where `tensor` has more devices than the model has
key-value heads, several devices share a head: the model's own mesh splits `tensor` into `tensor`
and `copies`.
"""

from __future__ import annotations

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from llama_jax.config import Config, check_count
from llama_jax.weights.table import AXES


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1) -> Mesh:
    """A mesh over the first `data * fsdp * tensor` devices."""
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor}
    for axis, size in sizes.items():
        check_count(axis, size)
    wanted, devices = data * fsdp * tensor, jax.devices()
    if wanted > len(devices):
        raise ValueError(
            f"data={data} x fsdp={fsdp} x tensor={tensor} needs {wanted} devices and there are "
            f"{len(devices)}; lower one of the three, or, to try it on a CPU, make as many of it "
            f'before JAX is first used: jax.config.update("jax_num_cpu_devices", {wanted})'
        )
    types = (AxisType.Auto,) * 3
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), types, devices=devices[:wanted])


def mesh_for(config: Config, mesh: Mesh | AbstractMesh) -> Mesh | AbstractMesh:
    """`mesh` as a model needs it: as it is, or with the devices that share a head as `copies`.

    ValueError where the model cannot be cut so.
    """
    data, fsdp, tensor = _sizes(mesh)
    elsewhere = "and put the other devices on another axis"
    check_divides(config, "n_heads", "tensor", tensor, elsewhere)
    check_divides(config, "dim", "fsdp", fsdp, elsewhere)
    check_shares_heads(config, "tensor", tensor, f"use one that does, {elsewhere}")
    copies = max(1, tensor // config.n_kv_heads)
    axes = AXES[: 3 if copies == 1 else 4]
    if mesh.axis_names == axes:
        return mesh
    shape = (data, fsdp, tensor // copies, copies)[: len(axes)]
    types = (AxisType.Auto,) * len(axes)
    if isinstance(mesh, AbstractMesh):
        return AbstractMesh(shape, axes, axis_types=types)
    return Mesh(mesh.devices.reshape(shape), axes, axis_types=types)


def check_divides(config: Config, name: str, axis: str, parts: int, way_out: str) -> None:
    """ValueError where a size of the model cannot be cut into so many equal parts."""
    if getattr(config, name) % parts:
        raise ValueError(
            f"{axis}={parts} does not divide {name}={getattr(config, name)}; "
            f"use a divisor, {way_out}"
        )


def check_shares_heads(config: Config, axis: str, parts: int, way_out: str) -> None:
    """ValueError where parts would neither hold whole key-value heads nor share whole ones."""
    if config.n_kv_heads % parts and parts % config.n_kv_heads:
        raise ValueError(
            f"{axis}={parts} neither divides n_kv_heads={config.n_kv_heads} nor is a multiple of "
            f"it; {way_out}"
        )


def _sizes(mesh: Mesh | AbstractMesh) -> tuple[int, int, int]:
    """How many devices each of the three axes has; `copies` are some of `tensor`."""
    if not isinstance(mesh, Mesh | AbstractMesh):
        raise ValueError(f"mesh={mesh!r} is no mesh; make one: make_mesh(tensor=2), say")
    axes, shape = mesh.axis_names, mesh.shape
    if axes not in (AXES[:3], AXES):
        raise ValueError(f"the mesh has the axes {axes}; make it with make_mesh")
    if set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"the mesh's axes are {mesh.axis_types}, not Auto; make it with make_mesh")
    return shape["data"], shape["fsdp"], shape["tensor"] * shape.get("copies", 1)
