"""A model's weights rounded to 8 or 4 bits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from llama_jax.validation import wrong_kind
from llama_jax.weights.fp8 import Fp8
from llama_jax.weights.int4 import GROUP, Int4
from llama_jax.weights.int8 import Int8
from llama_jax.weights.int8_dynamic import Int8Dynamic
from llama_jax.weights.params import Params, check_params, nested, weight_at
from llama_jax.weights.table import EMBEDDING, WeightPath, weight_table
from llama_jax.weights.weight import Weight, check_groups, is_value, map_parts, part_spec

Rule = str | Callable[[str], str | None]
"""A kind for every matrix but the embedding, or the kind of each matrix by its name, None for one
that stays: `lambda name: "int4" if "feed_forward" in name else "int8"`."""


def _int8_in_groups(array: Any) -> Int8:
    return Int8.of(array, None if array.shape[0] % GROUP else GROUP)


ROUNDED: dict[str, Callable[[Any], Weight]] = {
    "int8": _int8_in_groups,
    "int8_channel": Int8.of,
    "int4": Int4.of,
    "fp8": Fp8.of,
    "int8_dynamic": Int8Dynamic.of,
}
"""What each kind makes of an array."""


def quantize(params: Params, kind: Rule) -> Params:
    """The same model with matrices of 8 or 4 bits: "int8", "int8_channel", "int4", "fp8" or
    "int8_dynamic".

    Every matrix is rounded but the embedding; norms and biases stay. A function in place of a kind
    is given each matrix's name, as "layers_0.attention.wq", and returns its kind, or None where it
    is to stay. Each 32 inputs of an output share a scale in "int8" and "int4", all of them in the
    others. A matrix whose inputs are no multiple of 32 cannot be int4; it becomes int8 with a
    scale an output. Only "int8_dynamic" also rounds activations,
    the rows that a matrix multiplies, to 8 bits.

    One matrix at a time is in memory besides `params` and the result. ValueError where the kind is
    unknown, or a weight is quantized already.
    """
    check_params(params)
    weights = {}
    for path in weight_table(params.config):
        weight = weight_at(params.weights, path)
        how = kind_of(kind, path, tuple(weight.shape))
        weights[path] = weight if how is None else rounded_weight(weight, how, path)
    return params.replace(weights=nested(weights))


def kind_of(rule: Rule | None, path: WeightPath, shape: tuple[int, ...]) -> str | None:
    """The kind that a rule gives a weight of this shape; None where it stays an array.

    ValueError where there is no such kind.
    """
    if rule is None or len(shape) != 2:
        return None
    if isinstance(rule, str):
        found: str | None = _known(rule)
        return None if path == EMBEDDING else _possible(found, shape)
    if not callable(rule):
        names = ", ".join(ROUNDED)
        raise wrong_kind("quantize", rule, f"pass {names}, or a function of a weight's name")
    name = ".".join(path)
    found = rule(name)
    return None if found is None else _possible(_known(found, f" for {name}"), shape)


def rounded_weight(array: Any, kind: str, path: WeightPath, dtype: Any = None) -> Any:
    """A weight's array, or its shape, as a value of a kind, for activations of `dtype`.

    On a mesh its parts are cut as the array is. ValueError where it is a value already, or a mesh
    splits a group.
    """
    name = ".".join(path)
    if is_value(array):
        raise ValueError(
            f"{name} is {array.kind} already; quantize the model that it was made from, or round a "
            "second time what `llama-jax convert --quantize none` makes of this one"
        )
    of = ROUNDED[kind]
    value = jax.eval_shape(of, array) if isinstance(array, jax.ShapeDtypeStruct) else of(array)
    value = dataclasses.replace(value, dtype=np.dtype(dtype or array.dtype))  # type: ignore[type-var]
    sharding = getattr(array, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return jax.block_until_ready(value)
    check_groups(name, value, tuple(array.shape), sharding)

    def cut(part: Any, axes: Any) -> Any:
        return jax.device_put(part, NamedSharding(sharding.mesh, part_spec(axes, sharding.spec)))

    return jax.block_until_ready(map_parts(value, cut))


def _known(kind: Any, where: str = "") -> str:
    if kind not in ROUNDED:
        raise ValueError(f"quantize={kind!r}{where} is no kind; use one of {', '.join(ROUNDED)}")
    return kind


def _possible(kind: str | None, shape: tuple[int, ...]) -> str | None:
    return "int8" if kind == "int4" and shape[0] % GROUP else kind
