"""Run a model on a mesh of devices: see how its weights lie, and that its tokens stay the same.

    python examples/several_devices.py [CHECKPOINT]

Run it from the repository's root. It makes four devices of one CPU, so that it runs everywhere.
Where you have GPUs or TPUs, leave the two lines with `jax.config` out.
"""

import sys

import jax

import llama_jax

# Before anything asks JAX for a device.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)

checkpoint = sys.argv[1] if len(sys.argv) > 1 else "tests/golden/hf/llama2"
prompts = [[39, 145, 38, 101, 176, 203], [46, 182, 24]]

# `tensor` splits heads, the feed-forward width and the vocabulary. `data` splits the batch. The
# third axis, `fsdp`, splits the batch and every matrix, for training.
mesh = llama_jax.make_mesh(data=2, tensor=2)
print(f"{len(jax.devices())} devices as a mesh of {dict(mesh.shape)}")

# Each weight goes straight from the file to its shards. No device holds the whole model.
sharded = llama_jax.load(checkpoint, mesh=mesh)
single = llama_jax.load(checkpoint)

attention = sharded.weights["layers_0"]["attention"]
for name in ("wq", "wo"):
    weight = attention[name]  # [in, out]
    print(f"\n{name} {list(weight.shape)} is cut by {weight.sharding.spec}:")
    for shard in weight.addressable_shards:
        row, column = (axis.start or 0 for axis in shard.index)
        print(f"  {shard.device} holds {list(shard.data.shape)}, from row {row}, column {column}")

held = sum(w.addressable_shards[0].data.nbytes for w in jax.tree.leaves(sharded))
print(f"\nOne device of the mesh holds {held:,} bytes of {single.nbytes:,}")

# `generate`, `score` and `forward` find the mesh in the weights. No other argument changes.
settings = {"temperature": 0.8, "seed": [1, 2], "max_new_tokens": 16}
on_mesh = [done.tokens for done in llama_jax.generate(sharded, prompts, **settings)]
on_one = [done.tokens for done in llama_jax.generate(single, prompts, **settings)]
print(f"\non the mesh   {on_mesh[0]}\non one device {on_one[0]}")
assert on_mesh == on_one
print("The tokens are equal.")
