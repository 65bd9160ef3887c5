"""Every weight of a LLaMA model: its path, shape, sharding, initialiser and padding.

Flax, sharding, checkpoints and padding all read this table. A matrix is [in, out], the embedding
[vocab, dim]. To shard a model differently, choose another mesh shape; leave the specs alone.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
from jax.nn.initializers import Initializer
from jax.sharding import PartitionSpec as P
from jaxtyping import PRNGKeyArray

from llama_jax.config import Config

WeightPath = tuple[str, ...]
"""A weight's keys in `Params.weights`, outermost first: ("layers_0", "attention", "wq")."""

# A mesh has the axes data, fsdp and tensor. Where tensor has more devices than the model has
# key-value heads, it is split into tensor and copies: the copies share a head. With tensor=8 and 4
# key-value heads the axes are tensor=4 and copies=2.
AXES = ("data", "fsdp", "tensor", "copies")
BATCH, TENSOR = ("data", "fsdp"), ("tensor", "copies")

# A column-parallel weight is cut along its outputs, a row-parallel one along its inputs.
# A column followed by a row costs one all-reduce, which XLA inserts.
COLUMN, ROW, REPLICATED = P("fsdp", TENSOR), P(TENSOR, "fsdp"), P()
KV_HEADS = P("fsdp", "tensor")  # a key-value head stays whole, on every device that shares it

EMBEDDING, NORM, OUTPUT = ("tok_embeddings", "weight"), ("norm", "scale"), ("output", "weight")

_normal = jax.nn.initializers.normal(0.02)
_zeros, _ones = jax.nn.initializers.zeros, jax.nn.initializers.ones


class WeightRow(NamedTuple):
    """One weight of a model."""

    path: WeightPath
    shape: tuple[int, ...]
    spec: P
    init: Initializer
    padded: int | None = None
    """The axis that gets zeros at its end on a mesh that does not divide it. The zeros change no
    number that the model computes."""


def weight_table(config: Config) -> dict[WeightPath, WeightRow]:
    """Every weight of a model by its path, in the order in which activations meet them."""
    embedding, *output = model_table(config)
    rows = [embedding]
    for i in range(config.n_layers):
        rows += [row._replace(path=(f"layers_{i}", *row.path)) for row in layer_table(config)]
    return {row.path: row for row in (*rows, *output)}


@functools.cache
def model_table(c: Config) -> tuple[WeightRow, ...]:
    """The weights outside the layers: the embedding, and those of the output."""
    embedding = WeightRow(EMBEDDING, (c.vocab_size, c.dim), P(TENSOR, "fsdp"), _normal, padded=0)
    norm = WeightRow(NORM, (c.dim,), REPLICATED, _ones)
    output = WeightRow(OUTPUT, (c.dim, c.vocab_size), COLUMN, _normal, padded=1)
    return (embedding, norm) if c.tie_embeddings else (embedding, norm, output)


@functools.cache
def layer_table(c: Config) -> tuple[WeightRow, ...]:
    """The weights of one layer, by their paths within it."""
    attention, ffn = ("attention",), ("feed_forward",)
    query_dim, kv_dim = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    rows = [
        WeightRow(("attention_norm", "scale"), (c.dim,), REPLICATED, _ones),
        WeightRow((*attention, "wq"), (c.dim, query_dim), COLUMN, _normal),
        WeightRow((*attention, "bq"), (query_dim,), P(TENSOR), _zeros),
        WeightRow((*attention, "wk"), (c.dim, kv_dim), KV_HEADS, _normal),
        WeightRow((*attention, "bk"), (kv_dim,), P("tensor"), _zeros),
        WeightRow((*attention, "wv"), (c.dim, kv_dim), KV_HEADS, _normal),
        WeightRow((*attention, "bv"), (kv_dim,), P("tensor"), _zeros),
        WeightRow((*attention, "wo"), (query_dim, c.dim), ROW, _to_residual(c)),
        WeightRow((*attention, "bo"), (c.dim,), REPLICATED, _zeros),
        WeightRow(("ffn_norm", "scale"), (c.dim,), REPLICATED, _ones),
        WeightRow((*ffn, "w1"), (c.dim, c.hidden_dim), COLUMN, _normal, padded=1),
        WeightRow((*ffn, "b1"), (c.hidden_dim,), P(TENSOR), _zeros, padded=0),
        WeightRow((*ffn, "w3"), (c.dim, c.hidden_dim), COLUMN, _normal, padded=1),
        WeightRow((*ffn, "b3"), (c.hidden_dim,), P(TENSOR), _zeros, padded=0),
        WeightRow((*ffn, "w2"), (c.hidden_dim, c.dim), ROW, _to_residual(c), padded=0),
        WeightRow((*ffn, "b2"), (c.dim,), REPLICATED, _zeros),
    ]
    has_bias = {"attention": c.attention_bias, "feed_forward": c.mlp_bias}
    return tuple(row for row in rows if row.path[1][0] != "b" or has_bias[row.path[0]])


def weight_keys(key: PRNGKeyArray, config: Config) -> dict[WeightPath, PRNGKeyArray]:
    """A key for each weight's random numbers."""
    table = weight_table(config)
    return dict(zip(table, jax.random.split(key, len(table)), strict=True))


Specs = dict[str, dict[str, P]]
"""How weights are cut, by group and name: {"attention": {"wq": COLUMN, ...}, ...}."""


@functools.cache
def layer_specs(c: Config) -> Specs:
    """How each weight of a layer is cut."""
    return _by_group(layer_table(c))


@functools.cache
def model_specs(c: Config) -> Specs:
    """How each weight outside the layers is cut."""
    return _by_group(model_table(c))


def _by_group(rows: Iterable[WeightRow]) -> Specs:
    specs: Specs = {}
    for row in rows:
        group, name = row.path
        specs.setdefault(group, {})[name] = row.spec
    return specs


def _to_residual(c: Config) -> Initializer:
    """A smaller deviation for `wo` and `w2`: the residual sums 2 * n_layers of their outputs."""
    return jax.nn.initializers.normal(0.02 / (2 * c.n_layers) ** 0.5)
