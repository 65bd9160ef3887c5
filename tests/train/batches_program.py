"""One process of several that make a batch: it prints each row that its devices hold."""

import sys

import jax
import numpy as np

coordinator, process, folder, mesh = sys.argv[1:]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(coordinator, 2, int(process))

from llama_jax.sharding.mesh import make_mesh  # noqa: E402
from llama_jax.train.batches import batch_sharding, put  # noqa: E402
from llama_jax.train.rows import TextRows  # noqa: E402
from llama_jax.train.token_folder import open_tokens  # noqa: E402

data, fsdp, tensor = map(int, mesh.split(","))
rows = TextRows(open_tokens(folder).train, 16, "separate")
sharding = batch_sharding(make_mesh(data=data, fsdp=fsdp, tensor=tensor), 8)
batch = put(rows, rows.order(8, seed=5).at(7), sharding)
assert batch.tokens.shape == (8, 16)
for shards in zip(*(leaf.addressable_shards for leaf in jax.tree.leaves(batch)), strict=True):
    begin = shards[0].index[0].indices(8)[0]
    for offset in range(shards[0].data.shape[0]):
        row = [int(x) for shard in shards for x in np.asarray(shard.data)[offset]]
        print(begin + offset, *row, flush=True)
