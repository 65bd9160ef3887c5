"""Quantized checkpoints of Meta's made by hand, and the numbers that they mean."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import torch_zip
from meta_folder import cut, weights_of, write

from llama_jax.checkpoint.meta.params import read_params
from llama_jax.checkpoint.names import names_table

SIZES = {"multiple_of": 128, "vocab_size": 48, "n_layers": 3}  # a width of 128, a power of two
SPINQUANT = {"quantization_args": {"group_size": 32, "spinquant": True}}
QLORA = {"quantization_args": {"group_size": 32}, "lora_args": {"rank": 4, "scale": 2.0}}


def config_of(folder, **params):
    return read_params(write(folder, [], **SIZES, **params) / "params.json").config


def int4_folder(folder, *, adapters=False, zeros=False, groups=32, **params):
    """A folder of Meta's, and what each weight means before anything turns the activations."""
    config, rng, state, means = config_of(folder, **params), np.random.default_rng(0), {}, {}
    for row in names_table(config):
        outputs, *inputs = row.stored_shape
        if not inputs:
            state[row.meta] = means[row.meta] = rng.normal(size=outputs).astype(np.float32)
            continue
        whole = row.path[0] in ("tok_embeddings", "output")
        low, high = (-128, 128) if whole else (-8, 8)
        q = rng.integers(low, high, row.stored_shape).astype(np.int8)
        shape = (outputs, 1 if whole else inputs[0] // groups)
        scale = rng.uniform(0.001, 0.02, shape).astype(np.float32)
        module = row.meta.removesuffix("weight")
        state |= {row.meta: q, module + "scales": scale}
        zero = np.zeros(shape)
        if zeros and not whole:
            zero = rng.integers(-2, 3, shape).astype(np.float32)
            state[module + "zeros"] = zero.astype(np.float32)
        means[row.meta] = (q - np.repeat(zero, inputs[0] // shape[1], 1)) * np.repeat(
            scale.astype(np.float64), inputs[0] // shape[1], 1
        )
        if adapters and not whole:
            a, b = rng.normal(size=(4, inputs[0])), rng.normal(size=(outputs, 4))
            pair = {"A": a.astype(ml_dtypes.bfloat16), "B": b.astype(ml_dtypes.bfloat16)}
            state |= {f"{module}adaptor.{name}.weight": one for name, one in pair.items()}
            a, b = (pair[name].astype(np.float64) for name in "AB")
            means[row.meta] = means[row.meta] + 2.0 * (b @ a)
    write(folder, [state], **SIZES, **params)
    return folder, means


def fp8_folder(folder, ranks, dtype=ml_dtypes.float8_e4m3fn):
    """Layer 1's feed-forward matrices in fp8, held as `dtype`, with scales; what those mean."""
    config, rng = config_of(folder), np.random.default_rng(0)
    weights = weights_of(config, np.float32)
    inner = [f"layers.1.feed_forward.{name}.weight" for name in ("w1", "w2", "w3")]
    weights |= {name: weights[name].astype(ml_dtypes.float8_e4m3fn) for name in inner}
    states, means = cut(weights, ranks), {}
    for rank, state in enumerate(states):
        scales = {}
        for name in inner:
            scale = rng.uniform(0.1, 1, len(state[name])).astype(np.float32)
            scales[f"1_feed_forward.{name.split('.')[3]}_{rank}"] = scale
            means.setdefault(name, []).append(state[name].astype(np.float32) * scale[:, None])
            state[name] = state[name].astype(dtype)
        torch_zip.save(folder / f"fp8_scales_{rank}.pt", scales)
    write(folder, states, **SIZES)
    return {name: np.concatenate(of, int(".w2." in name)) for name, of in means.items()}
