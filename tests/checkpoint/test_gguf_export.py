"""What is exported as GGUF, read again: the weights, the config, the tokenizer."""

import dataclasses
import math

import numpy as np
import pytest
from gguf_file import bpe_metadata, gguf_bytes, sentencepiece_metadata, small_model
from helpers import config_of
from small_tokenizers import sentencepiece_file, tiktoken_file

from llama_jax.checkpoint import save
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.gguf.pack import pack_q4_0, pack_q8_0
from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from llama_jax.tokenizer import load_tokenizer
from llama_jax.tokenizer.gguf_header import read_header
from llama_jax.weights.params import Params, nested
from llama_jax.weights.table import weight_table

TEXTS = ["the llama was there", "  it's 12 345\n\n", "Ça 日本 🦙", "<s> <|eot_id|>"]


def native(folder, config, tokenizer=None):
    rng = np.random.default_rng(0)
    weights = {
        path: rng.standard_normal(row.shape).astype(np.float32)
        for path, row in weight_table(config).items()
    }
    save(Params(nested(weights), config, tokenizer), folder)
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_embeddings": True, "head_dim": 24},
        {"attention_bias": True, "mlp_bias": True, "rope_scaling": LinearScaling(4.0)},
        {"rope_scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192), "rope_theta": 500000.0},
        {"rope_scaling": YarnScaling(4.0, 32.0, 1.0, True, 1 + 0.1 * math.log(4), 32)},
        {"rope_scaling": YarnScaling(4.0, 32.0, 1.0, True, 1.25, 32)},
    ],
    ids=["plain", "tied", "biases", "llama3", "yarn", "yarn-attention"],
)
def test_a_round_trip_changes_no_bit_and_no_setting(tmp_path, changes):
    config = config_of(**changes)
    first = open_checkpoint(native(tmp_path / "native", config))
    folder = tmp_path / "out.gguf"  # as a user names it who thinks of the file
    done = export(tmp_path / "native", folder, format="gguf")
    again = open_checkpoint(folder)
    assert done.dtypes == ("F32",)
    assert again.config == config
    for path, tensor in first.tensors.items():
        np.testing.assert_array_equal(again.tensors[path][...], tensor[...])


def test_formats_of_numbers_are_what_was_asked_for(tmp_path):
    config = config_of(dim=64, hidden_dim=96)
    first = open_checkpoint(native(tmp_path / "native", config))
    for dtype, of_w1, of_embedding in (
        ("bfloat16", "bfloat16", "bfloat16"),
        ("f16", "float16", "float16"),
        ("q8_0", "Q8_0", "Q8_0"),
        ("q4_0", "Q4_0", "Q8_0"),
    ):
        export(tmp_path / "native", tmp_path / dtype, format="gguf", dtype=dtype)
        again = open_checkpoint(tmp_path / dtype)
        kinds = {path: getattr(t, "stored_as", t.dtype.name) for path, t in again.tensors.items()}
        assert kinds["layers_0", "feed_forward", "w1"] == of_w1
        assert kinds["tok_embeddings", "weight"] == of_embedding
        assert kinds["norm", "scale"] == "float32"
        path = ("layers_0", "feed_forward", "w1")
        error = np.abs(again.tensors[path][...].astype(np.float32) - first.tensors[path][...])
        steps = {"bfloat16": 256, "f16": 2048, "q8_0": 127, "q4_0": 7.9}[dtype]
        assert 0 < error.max() < np.abs(first.tensors[path][...]).max() / steps


def test_an_axis_that_blocks_do_not_divide_stays_float16(tmp_path):
    config = config_of(dim=64, hidden_dim=80)
    export(native(tmp_path / "native", config), tmp_path / "out", format="gguf", dtype="q8_0")
    again = open_checkpoint(tmp_path / "out").tensors
    assert again["layers_0", "feed_forward", "w2"].dtype == np.float16
    assert again["layers_0", "feed_forward", "w1"].stored_as == "Q8_0"


# The scale itself is rounded. Codes of Q4_0 reach from -8 to 7, so the opposite of what is largest
# is a step off.
@pytest.mark.parametrize(
    ("pack", "number", "off"), [(pack_q8_0, 8, 0.5 / 127), (pack_q4_0, 2, 1 / 8)]
)
def test_packing_is_off_by_a_known_part_and_zeros_stay(pack, number, off):
    weights = np.random.default_rng(0).uniform(-1, 1, (64, 32)).astype(np.float32)
    weights[3] = 0
    again = TYPES[number].unpack(pack(weights)).dense().reshape(weights.shape)
    reach = np.abs(weights).max(1, keepdims=True)
    assert (np.abs(again - weights) <= reach * off * 1.15).all()
    assert not again[3].any()


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken", "gguf"])
def test_a_tokenizer_of_any_kind_goes_along(tmp_path, kind):
    if kind == "gguf":
        template = {"chat_template": "{{ bos_token }}{{ messages[0].content }}<|eot_id|>"}
        file = tmp_path / "first.gguf"
        file.write_bytes(gguf_bytes({**bpe_metadata(tiktoken_file(), "smollm", **template)}, {}))
    else:
        file = tmp_path / "tokenizer.model"
        file.write_bytes(tiktoken_file() if kind == "tiktoken" else sentencepiece_file())
    before = load_tokenizer(file)
    config = config_of(vocab_size=before.vocab_size + 7)
    export(native(tmp_path / "native", config, file), tmp_path / "out", format="gguf")
    after = load_tokenizer(tmp_path / "out")
    for text in TEXTS:
        assert after.encode(text, bos=True, eos=True) == before.encode(text, bos=True, eos=True)
    assert set(after.stop_ids) == set(before.stop_ids)
    assert (after.bos_id, after.eos_id) == (before.bos_id, before.eos_id)
    assert after.special.items() <= before.special.items()
    if kind == "gguf":
        dialog = [{"role": "user", "content": "hi"}]
        assert after.encode_dialog(dialog) == before.encode_dialog(dialog)
    metadata = read_header(tmp_path / "out/model.gguf").metadata
    assert metadata["tokenizer.ggml.tokens"][-1] == f"[PAD{config.vocab_size - 1}]"


def test_a_tokenizer_without_a_name_in_llama_cpp_is_left_out_and_that_is_said(tmp_path):
    file = tmp_path / "first.gguf"
    file.write_bytes(gguf_bytes(sentencepiece_metadata(sentencepiece_file()), {}))
    config = config_of(vocab_size=50)
    done = export(native(tmp_path / "native", config, file), tmp_path / "out", format="gguf")
    assert done.notes == ("no tokenizer is written: it has more tokens than the model",)
    assert open_checkpoint(tmp_path / "out").tokenizer is None


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"shards": 2}, "shards=2 files are not written as GGUF"),
        ({}, {"layout": "llama2"}, "leave it out with format gguf"),
        ({}, {"dtype": "q5_0"}, r"dtype='q5_0' is not written as GGUF; use one of .*q8_0, q4_0"),
        (
            {"rope_scaling": YarnScaling(4.0, 24.0, 1.0, True, 1.3, 32768)},
            {},
            "rope_scaling=YarnScaling.* is not written as GGUF, which has YaRN with",
        ),
    ],
)
def test_what_gguf_cannot_say_is_refused(tmp_path, changes, options, message):
    first = native(tmp_path / "native", config_of(**changes))
    with pytest.raises(ValueError, match=message):
        export(first, tmp_path / "out", format="gguf", **options)
    assert not (tmp_path / "out").exists()


def test_dynamic_scaling_is_left_out_with_a_note(tmp_path):
    config = config_of(rope_scaling=DynamicScaling(2.0, 4096), max_seq_len=4096)
    done = export(native(tmp_path / "native", config), tmp_path / "out", format="gguf")
    assert "changes nothing up to 4,096" in done.notes[0]
    again = open_checkpoint(tmp_path / "out").config
    assert again == dataclasses.replace(config, rope_scaling=None)


def test_a_quantized_file_is_written_again_as_it_was(tmp_path):
    metadata, tensors = small_model(dim=64, layers=1, hidden=64)
    raw = pack_q8_0(np.random.default_rng(0).standard_normal((128, 32)).astype(np.float32))
    tensors["blk.0.ffn_up.weight"] = (8, (64, 64), raw.tobytes())
    (tmp_path / "m.gguf").write_bytes(gguf_bytes(metadata, tensors))
    export(tmp_path / "m.gguf", tmp_path / "out", format="gguf", dtype="q8_0")
    path = ("layers_0", "feed_forward", "w3")
    again, first = (open_checkpoint(tmp_path / at).tensors[path] for at in ("out", "m.gguf"))
    assert (again.stored_as, again.kind) == ("Q8_0", "int8")
    np.testing.assert_allclose(again[...], first[...], rtol=1e-3, atol=1e-6)
