"""The trained part of a model: all of its weights, or only its adapters."""

from __future__ import annotations

from llama_jax.config import Config
from llama_jax.sharding.adapters import adapters_of, with_adapters, without_adapters
from llama_jax.sharding.arrays import constrain, constrain_weights
from llama_jax.weights.lora import Adapter
from llama_jax.weights.params import Params
from llama_jax.weights.table import weight_table
from llama_jax.weights.weight import part_spec

Trained = Params | dict[str, Adapter]
"""What gradients and moments are of: a whole model, or adapters by their weights' names."""


def split(params: Params) -> tuple[Trained, Params | None]:
    """What training changes, and the model that it leaves alone, if it changes only adapters."""
    adapters = adapters_of(params)
    if not adapters:
        return params, None
    return {".".join(path): one for path, one in adapters.items()}, without_adapters(params)


def joined(trained: Trained, frozen: Params | None) -> Params:
    """The whole model again."""
    if isinstance(trained, Params):
        return trained
    if frozen is None:
        raise ValueError("adapters alone are no model; give the frozen one too")
    return with_adapters(frozen, {tuple(name.split(".")): one for name, one in trained.items()})


def constrain_trained(config: Config, trained: Trained) -> Trained:
    """Weights, or their gradients, cut as the table says, on the mesh of `jax.set_mesh`."""
    if isinstance(trained, Params):
        return constrain_weights(trained)
    table, cut = weight_table(config), {}
    for name, one in trained.items():
        spec, axes = table[tuple(name.split("."))].spec, one.axes()
        a, b = (
            constrain(part, part_spec(axes[key], spec))
            for key, part in (("a", one.a), ("b", one.b))
        )
        cut[name] = Adapter(a, b, one.scale)
    return cut
