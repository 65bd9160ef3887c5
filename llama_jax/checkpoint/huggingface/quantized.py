"""Matrices of quantized Hugging Face folders: AWQ, GPTQ, compressed-tensors, fp8, bitsandbytes.

Integers and scales stay as they are; only their order changes. What has no such form (bitsandbytes'
4 bits, GPTQ in the order of activations) becomes an array.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from llama_jax.checkpoint.blocks import Stored
from llama_jax.checkpoint.computed import ComputedTensor, DenseTensor, declared
from llama_jax.checkpoint.files.mapped import still_whole
from llama_jax.checkpoint.huggingface.bitsandbytes import nf4
from llama_jax.checkpoint.huggingface.packed import Tensors, awq_unpacked, unpacked
from llama_jax.weights.int4 import GROUP, packed

Arranged = Callable[[np.ndarray], np.ndarray]
"""Puts the last axis, the outputs, in our order."""


def awq(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    """`(q - zero) * scale`: q int32 [in, out / 8], zeros alike, scales [groups, out]."""
    inputs, outputs = shape
    groups = len(t.matrix("scales"))
    t.check("qweight", inputs, outputs // 8)
    t.check("qzeros", groups, outputs // 8)
    t.check("scales", groups, outputs)
    return four_bits(
        "AWQ",
        shape,
        lambda: awq_unpacked(t["qweight"]),
        t["scales"],
        lambda: awq_unpacked(t["qzeros"]),
        arranged,
    )


def gptq(t: Tensors, shape: tuple[int, int], arranged: Arranged, bits: int, second: bool) -> Stored:
    """`(q - zero) * scale` with q int32 [in * bits / 32, out], zeros [groups, out * bits / 32].

    Zeros are stored less 1, but in the `second` version of the format. Of a folder quantized in
    the order of activations, `g_idx` names each input's group; it becomes an array.
    """
    inputs, outputs = shape
    groups, each = len(t.matrix("scales")), 32 // bits
    t.check("qweight", inputs // each, outputs)
    t.check("qzeros", groups, outputs // each)
    t.check("scales", groups, outputs)
    group = -(-inputs // groups)

    def zeros() -> np.ndarray:
        stored = unpacked(t["qzeros"], bits, 1)
        middle = 2 ** (bits - 1)
        # GPTQModel writes the second version under the first's name; a symmetric zero tells.
        if second or (stored == middle).all():
            return stored
        return (stored + np.uint8(1)) & np.uint8(2**bits - 1)

    def integers() -> np.ndarray:
        return unpacked(t["qweight"], bits, 0)

    order = t.get("g_idx")
    if order is not None and (order != np.arange(inputs) // group).any():
        if order.shape != (inputs,) or not ((order >= 0) & (order < groups)).all():
            raise ValueError(f"its g_idx are not {inputs} numbers of {groups} groups")

        def dense() -> np.ndarray:
            scale = np.asarray(t["scales"], np.float32)
            least = integers().astype(np.float32) - zeros()[order]
            return arranged(least * scale[order])

        return DenseTensor(shape, dense, f"GPTQ {bits} bit")
    if bits == 4:
        return four_bits("GPTQ 4 bit", shape, integers, t["scales"], zeros, arranged)
    return eight_bits(
        "GPTQ 8 bit",
        shape,
        lambda: (integers() ^ np.uint8(128)).view(np.int8),
        t["scales"],
        lambda: zeros().astype(np.float32) - 128,
        arranged,
    )


def packed_integers(t: Tensors, shape: tuple[int, int], arranged: Arranged, bits: int) -> Stored:
    """compressed-tensors' pack-quantized: int32 [out, in * bits / 32], scales [out, groups]."""
    inputs, outputs = shape
    each, scale = 32 // bits, t.matrix("weight_scale").T
    t.check("weight_packed", outputs, -(-inputs // each))
    t.check("weight_scale", outputs, len(scale))
    stored = t.get("weight_zero_point")
    if stored is not None:
        t.check("weight_zero_point", -(-outputs // each), len(scale))

    def integers() -> np.ndarray:
        return unpacked(t["weight_packed"], bits, 1)[:, :inputs].T

    def of(words: np.ndarray) -> np.ndarray:
        return unpacked(still_whole(words), bits, 0)[:outputs].T

    # Offset binary: without zero points 0 to 15 stand for -8 to 7.
    zeros = None if stored is None else functools.partial(of, stored)

    if bits == 4:
        named = "compressed-tensors 4 bit"
        return four_bits(named, shape, integers, scale, zeros, arranged)
    if zeros is not None:
        raise ValueError("packed zero points of 8 bits are not read")
    values = lambda: (integers() ^ np.uint8(128)).view(np.int8)  # noqa: E731
    return eight_bits("compressed-tensors 8 bit", shape, values, scale, None, arranged)


def plain_integers(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    """compressed-tensors' int-quantized: int8 [out, in], scales [out, 1 or groups]."""
    t.check("weight", *shape[::-1])
    if np.any(t.get("weight_zero_point", 0)):
        raise ValueError("zero points of 8 bits are not read")
    scale = _by_groups(t["weight_scale"], shape)
    values = lambda: t["weight"].T  # noqa: E731
    return eight_bits("compressed-tensors 8 bit", shape, values, scale, None, arranged)


def bitsandbytes_int8(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    """int8 [out, in], each output of which has 127 for the largest size, `SCB`."""
    t.check("weight", *shape[::-1])
    t.check("SCB", shape[1])
    scale = np.asarray(t["SCB"], np.float32)[None] / np.float32(127)
    return eight_bits("bitsandbytes int8", shape, lambda: t["weight"].T, scale, None, arranged)


def bitsandbytes_4bit(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    """nf4 or fp4: an array, since its 16 numbers are no multiples of one."""
    dense = nf4(t, shape[::-1])
    return DenseTensor(shape, lambda: arranged(dense().T), "bitsandbytes 4 bit")


def float8(t: Tensors, shape: tuple[int, int], arranged: Arranged) -> Stored:
    """float8_e4m3fn [out, in], a scale an output or one for all."""
    t.check("weight", *shape[::-1])
    if t["weight"].dtype != ml_dtypes.float8_e4m3fn:
        raise ValueError(f"its numbers are {t['weight'].dtype}, and float8_e4m3fn are read")
    scale = _by_groups(t["weight_scale"], shape)
    if len(scale) != 1:
        raise ValueError("fp8 with a scale for each block is not read, only one an output or one")

    def value() -> dict[str, np.ndarray]:
        bits = arranged(t["weight"].view(np.uint8).T)
        return {"bits": bits, "scale": arranged(still_whole(scale))[0].astype(np.float32)}

    return _computed(declared("fp8", shape, None, np.float32), value, "fp8")


def _by_groups(scale: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Scales [groups, out], of [out, groups], [out], [1] or []."""
    inputs, outputs = shape
    found = np.asarray(scale).reshape(-1, 1) if scale.ndim < 2 else np.asarray(scale)
    if found.shape == (1, 1):
        found = np.broadcast_to(found, (outputs, 1))
    if len(found) != outputs or inputs % max(1, found.shape[1]):
        raise ValueError(f"its scales have shape {list(scale.shape)}, for {outputs} outputs")
    return found.T


def four_bits(
    named: str,
    shape: tuple[int, int],
    integers: Callable[[], np.ndarray],
    scale: np.ndarray,
    zeros: Callable[[], np.ndarray] | None,
    arranged: Arranged,
) -> Stored:
    """An `Int4` of integers [in, out] and scales [groups, out], spread over groups of 32."""
    group = shape[0] // max(1, len(scale))
    if len(scale) * group != shape[0] or group % GROUP:
        raise ValueError(f"groups of {group} inputs are not read in 4 bits, only multiples of 32")
    dtype = np.float16 if scale.dtype == np.float16 else np.float32

    def value() -> dict[str, np.ndarray]:
        each = arranged(np.repeat(np.asarray(still_whole(scale), dtype), group // GROUP, 0))
        found = {"words": packed(arranged(np.ascontiguousarray(integers()))), "scale": each}
        if zeros is not None:
            zero = arranged(np.repeat(zeros(), group // GROUP, 0)).astype(np.float32)
            found["minimum"] = -zero * each.astype(np.float32)
        return found

    minimum = None if zeros is None else np.float32
    return _computed(declared("int4", shape, GROUP, dtype, minimum), value, named)


def eight_bits(
    named: str,
    shape: tuple[int, int],
    values: Callable[[], np.ndarray],
    scale: np.ndarray,
    zeros: Callable[[], np.ndarray] | None,
    arranged: Arranged,
) -> Stored:
    """An `Int8` of integers [in, out] and scales [groups, out]."""
    group = None if len(scale) == 1 else shape[0] // len(scale)
    dtype = np.float16 if scale.dtype == np.float16 else np.float32

    def value() -> dict[str, np.ndarray]:
        each = arranged(np.asarray(still_whole(scale), dtype))
        found = {"values": arranged(np.ascontiguousarray(values())), "scale": each}
        if zeros is not None:
            found["minimum"] = -arranged(zeros()) * each.astype(np.float32)
        if group is None:
            found |= {name: part[0] for name, part in found.items() if name != "values"}
        return found

    minimum = None if zeros is None else np.float32
    return _computed(declared("int8", shape, group, dtype, minimum), value, named)


def _computed(shapes: Any, value: Callable[[], Any], named: str) -> ComputedTensor:
    return ComputedTensor(shapes, functools.lru_cache(maxsize=1)(value), named)
