"""The memory of a training step on each device, part by part, before anything is allocated.

The state is there all the time. What comes on top is largest at one of three moments:

    the loss             all that the backward pass needs is kept, and a tile of logits is there
    the first gradient   it is still kept, and the last layer's activations are computed again
    the last gradient    all gradients are there, and the first layer's activations

Each part is counted from shapes, as XLA compiles the step for a GPU; `tests/gpu/test_training.py`
holds the sum against programs compiled for H100s. On a CPU, XLA keeps all activations whatever
`remat` says.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from llama_jax.config import Config
from llama_jax.kernels import PLANNED_PLATFORM, computes_again, flash_attends
from llama_jax.kernels.causal import kept_scores, pair_scores
from llama_jax.model.memory import weight_bytes
from llama_jax.sharding.arrays import weight_shardings
from llama_jax.train.loss import tile_tokens
from llama_jax.train.recipe import Lora, Mesh, Recipe, Step
from llama_jax.weights.params import Params, weight_at
from llama_jax.weights.table import WeightPath, weight_table
from llama_jax.weights.weight import is_value, padded_shape


@dataclasses.dataclass(frozen=True)
class Plan:
    """Bytes on each device of a mesh."""

    devices: int
    state: Mapping[str, int]
    """What is there all the time, by part."""
    moments: Mapping[str, Mapping[str, int]]
    """What comes on top at each moment, by part."""

    @property
    def fullest(self) -> str:
        """The moment at which most is there."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def parts(self) -> dict[str, int]:
        """All that is there at the fullest moment."""
        found = {**self.state, **self.moments[self.fullest]}
        return {name: size for name, size in found.items() if size}

    @property
    def total(self) -> int:
        """Bytes at the fullest moment."""
        return sum(self.parts.values())


def plan(
    recipe: Recipe,
    config: Config,
    *,
    platform: str = PLANNED_PLATFORM,
    frozen: Params | None = None,
) -> Plan:
    """What training a model by a recipe takes. The devices of its mesh need not be there.

    `frozen` is the model beside adapters, of which shapes will do: quantized weights stay so.
    Without it, its weights are counted as arrays.

    ValueError where the mesh does not fit the model, or the batch not the mesh.
    """
    m, s = recipe.mesh, recipe.step
    if s.batch % (m.data * m.fsdp * s.micro_batches):
        raise ValueError(
            f"batch={s.batch} is not a multiple of data x fsdp x micro_batches = "
            f"{m.data * m.fsdp * s.micro_batches}; choose a multiple"
        )
    numbers = _numbers(config, m)
    rows = s.batch // (m.data * m.fsdp * s.micro_batches)
    trained = numbers if recipe.lora is None else _adapter_numbers(config, m, recipe.lora)
    held = 4 * sum(trained.values())
    values = {} if recipe.lora is None or frozen is None else _values(frozen)
    axes = dataclasses.asdict(m)
    stays = 0 if recipe.lora is None else weight_bytes(config, s.dtype, values, **axes)
    muon = (path for path, row in weight_table(config).items() if _is_muons(path, row.shape))
    matrices = 4 * sum(trained.get(path, 0) for path in muon)
    state = {
        "weights that stay as they are": stays,
        "weights": held,
        "the optimizer's moments": 2 * held - (matrices if recipe.optimizer.kind == "muon" else 0),
        "the weights' average": held if s.average else 0,
        "sums of gradients": held if s.micro_batches > 1 else 0,
        "batch": 16 * rows * s.micro_batches * s.context,
    }
    remat = s.remat if computes_again(platform) else "none"
    moments = _moments(s, m, config, numbers, trained, rows, remat, platform)
    layer = sum(numbers[path] for path in values if path[0] == "layers_0")
    decoded = {"one layer's weights, dequantised": jnp.dtype(s.dtype).itemsize * layer}
    moments = {name: parts | decoded for name, parts in moments.items()}
    return Plan(m.devices, state, moments)


def _values(params: Params) -> dict[WeightPath, Any]:
    """The weights that are no arrays, quantized ones."""
    found = {path: weight_at(params.weights, path) for path in weight_table(params.config)}
    return {path: weight for path, weight in found.items() if is_value(weight)}


def _moments(
    s: Step,
    m: Mesh,
    c: Config,
    numbers: Mapping[WeightPath, int],
    trained: Mapping[WeightPath, int],
    rows: int,
    remat: str,
    platform: str,
) -> dict[str, dict[str, int]]:
    width, tokens = jnp.dtype(s.dtype).itemsize, rows * s.context
    kept = _kept(s, m, c, rows, platform)
    again = kept["none"] - kept[remat] + _at_work(s, m, c, rows, platform)
    vocabulary = c.dim * c.vocab_size // m.tensor
    tile = tile_tokens(s.context, rows, c.vocab_size // m.tensor, platform)
    # Of one tile, the logits are gone when the output's gradient is there.
    summed = 4 if tile < tokens else 0
    all_trained = sum(trained.values())
    layer = sum(n for path, n in numbers.items() if path[0] == "layers_0") * m.fsdp
    copies = f"{s.dtype} copies of the weights"
    activations = f"activations that are kept (remat {remat})"
    narrow = {copies: width * all_trained if width < 4 else 0}
    one = {"one layer's activations": again}
    if m.fsdp > 1:
        one["one layer's weights and gradients, gathered"] = 2 * width * layer
    output = "the output's weight and gradient"
    return {
        "the loss": narrow
        | {
            activations: c.n_layers * kept[remat],
            # Narrow twice where no device has to gather it: as a product's input, transposed too.
            output: ((2 if m.fsdp == 1 else 1) * width + summed) * vocabulary,
            "a tile of logits": tile * (4 + width) * c.vocab_size // m.tensor,
            "the tiles' tokens": 2 * width * c.dim * tokens,
        },
        "the first gradient": narrow
        | {activations: c.n_layers * kept[remat], output: 4 * vocabulary}
        | one,
        "the last gradient": {
            "gradients": 4 * all_trained if s.micro_batches == 1 else 0,
            activations: kept[remat],
        }
        | one,
    }


def _kept(s: Step, m: Mesh, c: Config, rows: int, platform: str) -> dict[str, int]:
    """Bytes that a layer keeps for its gradient, by `remat`."""
    dim, query, keys, hidden = _widths(s, m, c)
    tokens = rows * s.context
    attention = 2 * query + keys
    scores = 0
    if not flash_attends(platform, s.dtype, separate=s.documents == "separate"):
        attention += 2 * query + keys + query * 4 // jnp.dtype(s.dtype).itemsize
        scores = kept_scores(rows * c.n_heads // m.tensor, s.context)
    return {
        # x, the two norms' results, x after attention; w1's, w3's and their product
        "none": tokens * (4 * dim + attention + 3 * hidden) + scores,
        "dots": tokens * (2 * dim + query + keys + 2 * hidden),
        "layer": tokens * dim,
    }


def _at_work(s: Step, m: Mesh, c: Config, rows: int, platform: str) -> int:
    """Bytes that a layer's gradient takes while it is computed."""
    *_, hidden = _widths(s, m, c)
    scores = 0
    if not flash_attends(platform, s.dtype, separate=s.documents == "separate"):
        heads = rows * c.n_heads // m.tensor
        # A loop holds a pair's scores, weights and their gradients; without one they are kept.
        scores = pair_scores(heads, s.context) * (1 if kept_scores(heads, s.context) else 3)
    return rows * s.context * hidden + scores


def _widths(s: Step, m: Mesh, c: Config) -> tuple[int, int, int, int]:
    """Bytes of a token's x, queries, keys with values, and hidden numbers on a device."""
    width = jnp.dtype(s.dtype).itemsize
    keys = 2 * math.ceil(c.n_kv_heads / m.tensor) * c.head_dim
    query = c.n_heads * c.head_dim // m.tensor
    return c.dim * width, query * width, keys * width, c.hidden_dim // m.tensor * width


def _is_muons(path: WeightPath, shape: tuple[int, ...]) -> bool:
    """Whether Muon takes a weight, of which it keeps one moment."""
    return path[0].startswith("layers_") and len(shape) == 2


def _numbers(c: Config, m: Mesh) -> dict[WeightPath, int]:
    """How many numbers of each weight a device holds."""
    return {path: math.prod(shape) for path, shape in _shards(c, m).items()}


def _adapter_numbers(c: Config, m: Mesh, lora: Lora) -> dict[WeightPath, int]:
    """How many numbers of each weight's adapter a device holds."""
    return {
        path: lora.rank * sum(shape)
        for path, shape in _shards(c, m).items()
        if path[-1] in lora.targets
    }


def _shards(c: Config, m: Mesh) -> dict[WeightPath, tuple[int, ...]]:
    """The shape of each weight on a device."""
    axes, types = ("data", "fsdp", "tensor"), (AxisType.Auto,) * 3
    mesh = AbstractMesh((m.data, m.fsdp, m.tensor), axes, axis_types=types)
    shardings = weight_shardings(c, mesh)
    return {
        path: shardings[path].shard_shape(padded_shape(row.shape, shardings[path]))
        for path, row in weight_table(c).items()
    }
