"""The mesh, and how weights lie on it."""

import math

import jax
import pytest

from llama_jax.sharding.arrays import mesh_of, shard_params
from llama_jax.sharding.mesh import make_mesh


def test_the_mesh_has_three_auto_axes():
    mesh = make_mesh(data=2, tensor=4)
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.shape == {"data": 2, "fsdp": 1, "tensor": 4}
    assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_the_mesh_is_read_off_the_arrays(params):
    mesh = make_mesh(tensor=2)
    assert mesh_of(shard_params(params, mesh)) == mesh
    assert mesh_of(params) is None


def test_a_weight_is_cut_over_tensor_and_fsdp(params, config):
    sharded = shard_params(params, make_mesh(fsdp=2, tensor=4))
    wq = sharded.weights["layers_0"]["attention"]["wq"]
    wo = sharded.weights["layers_0"]["attention"]["wo"]
    assert wq.addressable_shards[0].data.shape == (config.dim // 2, wq.shape[1] // 4)
    assert wo.addressable_shards[0].data.shape == (wo.shape[0] // 4, config.dim // 2)


def test_a_mesh_that_does_not_fit_is_refused_with_the_way_out(params):
    for axes in ({"data": 4, "tensor": 4}, {"fsdp": 9}):
        wanted = math.prod(axes.values())
        way_out = rf'jax.config.update\("jax_num_cpu_devices", {wanted}\)'
        with pytest.raises(ValueError, match=f"needs {wanted} devices and there are 8.*{way_out}"):
            make_mesh(**axes)
    with pytest.raises(ValueError, match="tensor=0 must be a positive integer"):
        make_mesh(tensor=0)
