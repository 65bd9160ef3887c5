"""The layers in training: what each keeps for its gradient, and what fsdp moves beside what.

forwards    layer i multiplies    beside    layer i + 1 is gathered
backwards   layer i multiplies    beside    the next weight of layer i is gathered, and the
                                            gradients of layer i + 1 are added and cut
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

from llama_jax.config import Config
from llama_jax.kernels import embed
from llama_jax.model.cache import Packed, Positions, Uncached
from llama_jax.model.transformer import Hidden, Tokens, block, rotations_of
from llama_jax.sharding.arrays import axis_parts, constrain, gradients_before
from llama_jax.sharding.specs import ACTIVATION
from llama_jax.weights.lora import Adapter, Lora
from llama_jax.weights.params import Weights
from llama_jax.weights.weight import is_value

Block = Callable[..., tuple[Hidden, Any]]


def _keep_all(block: Block) -> Block:
    return block


# Weights are arguments of what is computed again, so that fsdp gathers them again too.
REMAT: dict[str, Callable[[Block], Block]] = {
    "none": _keep_all,
    "layer": functools.partial(jax.checkpoint, static_argnums=0),
    "dots": functools.partial(
        jax.checkpoint,
        static_argnums=0,
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    ),
}
"""What the backward pass computes again, by the recipe's word for it."""


def residual_stream(
    remat: str,
    c: Config,
    w: Weights,
    tokens: Tokens,
    positions: Positions,
    past: Packed | Uncached,
    after: Any,
) -> tuple[Hidden, Any]:
    """The tokens after all layers, and `after`: a weight that is used behind them.

    Over fsdp the gradients of a layer, or of `after`, are added and cut while the backward pass is
    in the layer below, and are there before it goes on to the next.
    """
    run, rotation = REMAT[remat](block), rotations_of(c, positions)
    x = _embedded(w["tok_embeddings"]["weight"], tokens)
    layers = [w[f"layers_{i}"] for i in range(c.n_layers)] + [after]
    for i in range(c.n_layers):
        if axis_parts(("fsdp",)) > 1:
            trained, put_back = _trained_part(layers[i + 1], w)
            trained, x = gradients_before(trained, x)
            layers[i + 1] = put_back(trained)
        x, _ = run(c, layers[i], x, rotation, positions, past)
    return x, layers[-1]


def _trained_part(weights: Any, model: Weights) -> tuple[Any, Callable[[Any], Any]]:
    """Weights that have gradients, or the adapters alone where a model has any; and their return.

    A gradient that is waited for is made, whether anybody wants it or not.
    """
    if not any(isinstance(one, Lora) for one in jax.tree.leaves(model, is_leaf=is_value)):
        return weights, lambda trained: trained
    leaves, tree = jax.tree_util.tree_flatten(weights, is_leaf=is_value)
    adapters = {n: one.adapter for n, one in enumerate(leaves) if isinstance(one, Lora)}

    def put_back(trained: dict[int, Adapter]) -> Any:
        whole = [
            Lora.of(one.base, trained[n]) if n in trained else one for n, one in enumerate(leaves)
        ]
        return jax.tree.unflatten(tree, whole)

    return adapters, put_back


def _embedded(table: Any, tokens: Tokens) -> Hidden:
    """The rows of a table of which each device holds some columns, for all rows of its group.

    Numbers of the batch's tokens are sent, there and back, and not the table.
    """
    x = embed(table, constrain(tokens, P("data")))
    return constrain(constrain(x, P("data", None, "fsdp")), ACTIVATION)
