"""The model as a Flax module, for use inside other Flax modules.

The only file that imports Flax. That takes 0.2 seconds, for which `forward` need not wait.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from llama_jax.config import Config
from llama_jax.model.cache import ModelCache, Positions, Uncached
from llama_jax.model.transformer import Logits, Tokens, transformer
from llama_jax.sharding.arrays import use_mesh_of
from llama_jax.weights.params import Weights, nested
from llama_jax.weights.table import WeightPath, WeightRow, weight_table


class Transformer(nn.Module):
    """Declares the rows of `weights/table.py` as its parameters and calls `transformer`.

    `Transformer(config).init(key, tokens, positions)["params"]` has the tree of `Params.weights`
    (and other random numbers than `init_params`). `Transformer(config).apply({"params":
    params.weights}, tokens, positions)` gives the logits of `forward`.
    """

    config: Config
    init_dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        tokens: Tokens,
        positions: Positions,
        cache: ModelCache | None = None,
        at: Int[Array, "batch wanted"] | None = None,
    ) -> tuple[Logits, Any]:
        groups: dict[str, dict[WeightPath, WeightRow]] = {}
        for path, row in weight_table(self.config).items():
            groups.setdefault(path[0], {})[path[1:]] = row
        weights = {name: self._group(name, rows) for name, rows in groups.items()}
        past: ModelCache = Uncached() if cache is None else cache
        with use_mesh_of(weights):
            return transformer(self.config, weights, tokens, positions, past, at)

    def _group(self, name: str, rows: dict[WeightPath, WeightRow]) -> Weights:
        """The weights of one layer, or of one group outside the layers; random ones in `init`."""
        if self.has_variable("params", name):  # `self.param` refuses shapes that a mesh has padded
            return self.get_variable("params", name)
        return self.param(name, _initialised, rows, self.init_dtype)


def _initialised(key: PRNGKeyArray, rows: dict[WeightPath, WeightRow], dtype: Any) -> Weights:
    keys = jax.random.split(key, len(rows))
    flat = {
        path: row.init(one, row.shape, dtype)
        for one, (path, row) in zip(keys, rows.items(), strict=True)
    }
    return nested(flat)
