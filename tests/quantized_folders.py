"""Quantized Hugging Face folders made by hand, and the plain ones of the numbers that they mean."""

from __future__ import annotations

import json

import ml_dtypes
import numpy as np
from hf_folder import SMALL, tensors_of, write_safetensors

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 1}
GIVEN = {**SMALL, **SIZES}
RNG = np.random.default_rng


def halves(rng, *shape):
    return rng.uniform(0.001, 0.02, shape).astype(np.float16)


def into_words(numbers, bits):
    """Unsigned numbers [rows, n * 32 / bits] as int32 [rows, n], the first in the lowest bits."""
    words = np.zeros((len(numbers), numbers.shape[1] * bits // 32), np.uint32)
    for column in range(numbers.shape[1]):
        at, shift = divmod(column * bits, 32)
        words[:, at] |= numbers[:, column].astype(np.uint32) << np.uint32(shift)
    return words.view(np.int32)


def awq(rng, outputs, inputs):
    groups = inputs // 32
    q, z = (rng.integers(0, 16, (n, outputs)) for n in (inputs, groups))
    scale = halves(rng, groups, outputs)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the column, of each eight, that each nibble holds

    def into(numbers):
        eights = numbers.reshape(len(numbers), -1, 8)[..., order]
        return into_words(eights.reshape(len(numbers), -1), 4)

    dense = (q - np.repeat(z, 32, 0)) * np.repeat(scale.astype(np.float32), 32, 0)
    return {"qweight": into(q), "qzeros": into(z), "scales": scale}, dense.T


def gptq(rng, outputs, inputs, bits=4, less=1, symmetric=False, order=None):
    groups = inputs // 32
    q = rng.integers(0, 2**bits, (inputs, outputs))
    z = rng.integers(1, 2**bits, (groups, outputs))
    z = np.full_like(z, 2 ** (bits - 1)) if symmetric else z
    scale = halves(rng, groups, outputs)
    of = np.arange(inputs) // 32 if order is None else rng.permutation(np.arange(inputs) // 32)
    dense = (q - z[of]) * scale.astype(np.float32)[of]
    return {
        "qweight": into_words(q.T, bits).T,
        "qzeros": into_words(z - less, bits),
        "scales": scale,
        "g_idx": of.astype(np.int32),
    }, dense.T


def packed(rng, outputs, inputs, bits=4, zeros=False):
    groups = inputs // 32
    q = rng.integers(0, 2**bits, (outputs, inputs))
    z = (
        rng.integers(0, 16, (outputs, groups))
        if zeros
        else np.full((outputs, groups), 2 ** (bits - 1))
    )
    scale = halves(rng, outputs, groups).astype(ml_dtypes.bfloat16)
    found = {
        "weight_packed": into_words(q, bits),
        "weight_scale": scale,
        "weight_shape": np.array([outputs, inputs], np.int64),
    }
    if zeros:
        found["weight_zero_point"] = into_words(z.T, bits).T
    return found, (q - np.repeat(z, 32, 1)) * np.repeat(scale.astype(np.float32), 32, 1)


def int8(rng, outputs, inputs):
    q, scale = rng.integers(-128, 128, (outputs, inputs)), halves(rng, outputs, 1)
    return {"weight": q.astype(np.int8), "weight_scale": scale}, q * scale.astype(np.float32)


def fp8(rng, outputs, inputs, each=True):
    q = rng.standard_normal((outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.01, 0.1, (outputs, 1) if each else (1,)).astype(np.float32)
    return {"weight": q, "weight_scale": scale}, q.astype(np.float32) * scale


def fbgemm(rng, outputs, inputs):
    found, dense = fp8(rng, outputs, inputs)
    return {**found, "input_scale_ub": np.ones(1, np.float32)}, dense


def bnb8(rng, outputs, inputs):
    q = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scale = rng.uniform(0.1, 1, outputs).astype(np.float32)
    format_ = np.zeros((), np.uint8)
    dense = q * (scale / np.float32(127))[:, None]
    return {"weight": q, "SCB": scale, "weight_format": format_}, dense


def nf4(rng, outputs, inputs, nested=True):
    q, table = rng.integers(0, 16, outputs * inputs), np.sort(rng.uniform(-1, 1, 16))
    table, blocks = table.astype(np.float32), outputs * inputs // 64
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [outputs, inputs], "dtype": "bfloat16"}
    absmax = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    found = {"weight": ((q[::2] << 4) | q[1::2]).astype(np.uint8)[:, None], "weight.absmax": absmax}
    if nested:
        codes, offset = rng.integers(0, 256, blocks).astype(np.uint8), 0.05
        outer = rng.uniform(0.01, 0.02, -(-blocks // 256)).astype(np.float32)
        table8 = rng.uniform(-1, 1, 256).astype(np.float32)
        absmax = np.array(
            [table8[c] * outer[i // 256] + np.float32(offset) for i, c in enumerate(codes)]
        )
        found |= {"weight.absmax": codes, "weight.nested_absmax": outer}
        found["weight.nested_quant_map"] = table8
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    found |= {"weight.quant_map": table, "weight.quant_state.bitsandbytes__nf4": raw}
    dense = np.array([table[code] * absmax[i // 64] for i, code in enumerate(q)], np.float32)
    return found, dense.reshape(outputs, inputs)


def with_(make, **how):
    return lambda *given: make(*given, **how)


COMPRESSED = {"quant_method": "compressed-tensors"}
FORMATS = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}, "int4"),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}, "int4"),
    "gptq-v2": (
        with_(gptq, less=0),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        "int4",
    ),
    "gptq-v2-unsaid": (
        with_(gptq, less=0, symmetric=True),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"},
        "int4",
    ),
    "gptq-symmetric": (with_(gptq, symmetric=True), {"quant_method": "gptq", "bits": 4}, "int4"),
    "gptq-8": (with_(gptq, bits=8), {"quant_method": "gptq", "bits": 8}, "int8"),
    "gptq-order": (with_(gptq, order=True), {"quant_method": "gptq", "bits": 4}, None),
    "packed": (packed, {**COMPRESSED, "format": "pack-quantized"}, "int4"),
    "packed-zeros": (with_(packed, zeros=True), {**COMPRESSED, "format": "pack-quantized"}, "int4"),
    "packed-8": (with_(packed, bits=8), {**COMPRESSED, "format": "pack-quantized"}, "int8"),
    "int8": (int8, {**COMPRESSED, "format": "int-quantized"}, "int8"),
    "fp8": (fp8, {**COMPRESSED, "format": "float-quantized"}, "fp8"),
    "fp8-whole": (with_(fp8, each=False), {"quant_method": "fp8"}, "fp8"),
    "fbgemm": (fbgemm, {"quant_method": "fbgemm_fp8"}, "fp8"),
    "bnb-int8": (bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    "bnb-nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
    "bnb-nf4-flat": (
        with_(nf4, nested=False),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        None,
    ),
}


def written(folder, make, said, only=lambda name: True, **sizes):
    """A quantized folder, and a plain one of the numbers that it means."""
    plain, quantized, rng, given = {}, {}, RNG(7), {**GIVEN, **sizes}
    for name, array in tensors_of(given).items():
        plain[name] = quantized[name] = array
        if "_proj." in name and only(name):
            parts, dense = make(rng, *array.shape)
            del quantized[name]
            module = name.removesuffix("weight")
            quantized |= {module + ending: part for ending, part in parts.items()}
            plain[name] = dense.astype(np.float32)
    for at, tensors, more in (
        ("plain", plain, {}),
        ("q", quantized, {"quantization_config": said}),
    ):
        (folder / at).mkdir()
        (folder / at / "config.json").write_text(json.dumps({**given, **more}))
        write_safetensors(folder / at / "model.safetensors", tensors)
    return folder / "q", folder / "plain"
