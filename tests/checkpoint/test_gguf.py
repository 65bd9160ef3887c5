"""GGUF files made by hand: what is read of them, and what is refused."""

import dataclasses
import json
import math
import os
import re
import resource
import shutil
import struct
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from gguf_file import bpe_metadata, f32, gguf_bytes, small_model
from small_tokenizers import tiktoken_file

import llama_jax
from llama_jax.checkpoint import convert, shapes
from llama_jax.checkpoint.gguf.types import TYPES
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import LinearScaling, Llama3Scaling, YarnScaling
from llama_jax.ops.rope import frequencies
from llama_jax.tokenizer import load_tokenizer
from llama_jax.weights.params import weight_at
from llama_jax.weights.weight import is_value, stored_bytes

Q4_1, Q6_K = 3, 14
GUIDES = Path(__file__).parents[2] / "docs/guides"


def written(folder, metadata, tensors, name="model.gguf", **how):
    file = folder / name
    file.write_bytes(gguf_bytes(metadata, tensors, **how))
    return file


def array_of(tensors, name):
    _, shape, raw = tensors[name]
    return np.frombuffer(raw, np.float32).reshape(shape)


def dense(weight):
    """A weight as an array, whatever it is."""
    return np.asarray(weight.dense() if is_value(weight) else weight)


def test_every_weight_lies_where_its_name_says(tmp_path):
    metadata, tensors = small_model()
    params = llama_jax.load(written(tmp_path, metadata, tensors))
    w = params.weights
    layer = w["layers_1"]
    for ours, theirs in (
        (w["tok_embeddings"]["weight"], array_of(tensors, "token_embd.weight")),
        (w["output"]["weight"], array_of(tensors, "output.weight").T),
        (w["norm"]["scale"], array_of(tensors, "output_norm.weight")),
        (layer["attention"]["wq"], array_of(tensors, "blk.1.attn_q.weight").T),
        (layer["attention"]["wk"], array_of(tensors, "blk.1.attn_k.weight").T),
        (layer["attention"]["wo"], array_of(tensors, "blk.1.attn_output.weight").T),
        (layer["feed_forward"]["w1"], array_of(tensors, "blk.1.ffn_gate.weight").T),
        (layer["feed_forward"]["w2"], array_of(tensors, "blk.1.ffn_down.weight").T),
        (layer["feed_forward"]["w3"], array_of(tensors, "blk.1.ffn_up.weight").T),
        (layer["ffn_norm"]["scale"], array_of(tensors, "blk.1.ffn_norm.weight")),
    ):
        np.testing.assert_array_equal(ours, theirs)
    c = params.config
    assert (c.norm_eps, c.rope_theta, c.rope_scaling, c.tie_embeddings) == (1e-5, 1e4, None, False)
    assert params.tokenizer is None


def test_without_an_output_the_embedding_is_it_and_biases_left_out_are_zero(tmp_path):
    metadata, tensors = small_model(layers=1)
    del tensors["output.weight"]
    for name, size in (("q", 32), ("k", 16), ("v", 16)):
        tensors[f"blk.0.attn_{name}.bias"] = f32(np.arange(size, dtype=np.float32))
    source = open_checkpoint(written(tmp_path, metadata, tensors))
    assert source.config.tie_embeddings
    assert source.config.attention_bias
    assert not source.config.mlp_bias
    assert any("attn_output.bias is stored in no layer" in note for note in source.notes)
    attention = ("layers_0", "attention")
    np.testing.assert_array_equal(source.tensors[(*attention, "bo")][...], np.zeros(32))
    np.testing.assert_array_equal(source.tensors[(*attention, "bq")][...], np.arange(32))


@pytest.mark.parametrize("number", [n for n, kind in TYPES.items() if kind.unpack])
def test_any_part_of_a_quantized_weight_is_that_part_of_the_whole(tmp_path, number):
    kind, rng = TYPES[number], np.random.default_rng(number)
    metadata, tensors = small_model(dim=512, heads=8, hidden=512, layers=1)
    raw = rng.integers(0, 256, (512 * 512 // kind.block, kind.nbytes), np.uint8)
    tensors["blk.0.ffn_up.weight"] = (number, (512, 512), raw.tobytes())
    source = open_checkpoint(written(tmp_path, metadata, tensors))
    tensor = source.tensors[("layers_0", "feed_forward", "w3")]
    with np.errstate(all="ignore"):
        whole = kind.unpack(raw).dense().reshape(512, 512).T
        np.testing.assert_array_equal(tensor[...], whole)
        np.testing.assert_array_equal(tensor[3:300, 17:18], whole[3:300, 17:18])
        np.testing.assert_array_equal(tensor[511:512, :], whole[511:512])
    assert tensor.stored_as == kind.name
    for part in tensor.parts().values():  # bits: a scale may be no number
        bits, words = f"u{part.dtype.itemsize}", part.shape[:-2] and (slice(1, 3),)
        for groups, rows in ((slice(3, 9), slice(17, 400)), (slice(13, 16), slice(511, 512))):
            cut = (*words, groups, rows)
            np.testing.assert_array_equal(part[cut].view(bits), part[...][cut].view(bits))


@pytest.mark.parametrize("number", [n for n, kind in TYPES.items() if kind.unpack])
def test_a_quantized_weight_becomes_a_value_without_another_rounding(tmp_path, number):
    kind, rng = TYPES[number], np.random.default_rng(number)
    metadata, tensors = small_model(dim=256, heads=8, hidden=96, layers=1)
    raw = rng.integers(0, 256, (96 * 256 // kind.block, kind.nbytes), np.uint8)
    raw[:, 1::2] &= 0x3B  # wherever in a block a float16 lies, it is finite
    tensors["blk.0.ffn_up.weight"] = (number, (96, 256), raw.tobytes())
    file = written(tmp_path, metadata, tensors)
    value = llama_jax.load(file).weights["layers_0"]["feed_forward"]["w3"]
    want = kind.unpack(raw).dense().reshape(96, 256).T
    assert value.kind == ("int4" if kind.name in ("Q4_0", "Q4_1", "Q4_K") else "int8")
    np.testing.assert_array_equal(value.dense(), want)
    again = llama_jax.load(file, quantize="none").weights["layers_0"]["feed_forward"]["w3"]
    np.testing.assert_array_equal(again, want)


@pytest.mark.parametrize("number", [n for n, kind in TYPES.items() if kind.unpack])
def test_the_guide_says_how_many_bits_a_number_takes(tmp_path, number):
    kind, guide = TYPES[number], (GUIDES / "convert.md").read_text()
    (row,) = re.findall(rf"^\| ((?:\w+, )*{kind.name}(?:, \w+)*) \| ([\d., ]+) \|$", guide, re.M)
    names, bits = (cell.split(", ") for cell in row)
    metadata, tensors = small_model(dim=512, heads=8, hidden=96, layers=1)
    raw = bytes(96 * 512 // kind.block * kind.nbytes)
    tensors["blk.0.ffn_up.weight"] = (number, (96, 512), raw)
    file = written(tmp_path, metadata, tensors)
    value = llama_jax.load(file).weights["layers_0"]["feed_forward"]["w3"]
    stated = float((bits * len(names))[names.index(kind.name)])
    assert stored_bytes(value, value.shape) * 8 == stated * 96 * 512


def test_a_quantized_file_is_loaded_converted_and_sharded_alike(tmp_path):
    metadata, tensors = small_model(dim=256, heads=8, hidden=256, layers=1)
    rng = np.random.default_rng(1)
    for name in ("blk.0.ffn_up.weight", "blk.0.attn_output.weight"):
        codes = rng.integers(0, 256, (256 * 8, 16), np.uint8)
        ends = rng.standard_normal((256 * 8, 2)).astype("<f2").view(np.uint8).reshape(-1, 4)
        tensors[name] = (Q4_1, (256, 256), np.concatenate([ends, codes], 1).tobytes())
    file = written(tmp_path, metadata, tensors)
    params = llama_jax.load(file)
    mesh = llama_jax.make_mesh(tensor=2, fsdp=2)
    sharded = llama_jax.load(file, mesh=mesh)
    for quantize in (None, "none"):
        assert jax.tree.structure(shapes(file, quantize=quantize)) == jax.tree.structure(
            llama_jax.load(file, quantize=quantize)
        )
    converted = convert(file, tmp_path / "native")
    assert converted.source.format == "gguf"
    native = llama_jax.load(tmp_path / "native")
    for path, tensor in converted.source.tensors.items():
        want = dense(weight_at(params.weights, path))
        np.testing.assert_array_equal(tensor[...], want)
        np.testing.assert_array_equal(dense(weight_at(native.weights, path)), want)
        found = dense(weight_at(sharded.weights, path))
        np.testing.assert_array_equal(found[tuple(map(slice, want.shape))], want)
    w3 = native.weights["layers_0"]["feed_forward"]["w3"]
    assert (w3.kind, w3.scale.dtype, w3.minimum.dtype) == ("int4", np.float16, np.float16)
    assert not is_value(native.weights["layers_0"]["feed_forward"]["w1"])
    plain = convert(file, tmp_path / "plain", quantize="none", dtype="bfloat16")
    assert plain.written.dtypes == ("bfloat16",)
    origin = json.loads((tmp_path / "native/checkpoint.json").read_text())["source"]
    assert origin["format"] == "gguf"


@pytest.mark.parametrize("changes", [{"ggml.pre": "tekken"}, {"ggml.model": "t5"}])
def test_a_tokenizer_that_is_not_read_may_be_put_where_the_error_says(tmp_path, changes):
    own, other = (bpe_metadata(tiktoken_file(), **each) for each in ({}, changes))
    metadata, tensors = small_model(layers=1, vocab=len(own["tokenizer.ggml.tokens"]))
    convert(written(tmp_path, metadata | own, tensors, "own.gguf"), tmp_path / "own")
    file = written(tmp_path, metadata | other, tensors)
    with pytest.raises(ValueError, match="into the folder that `llama-jax convert` writes") as told:
        load_tokenizer(file)
    done = convert(file, tmp_path / "native")
    assert done.source.warnings == (str(told.value),)
    assert open_checkpoint(tmp_path / "native").tokenizer is None
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "own" / name, tmp_path / "native")
    found = open_checkpoint(tmp_path / "native").tokenizer
    want = load_tokenizer(tmp_path / "own/tokenizer.json").encode("the llama", bos=False, eos=False)
    assert load_tokenizer(found).encode("the llama", bos=False, eos=False) == want


def test_a_damaged_tokenizer_is_not_left_out(tmp_path):
    tokens = bpe_metadata(tiktoken_file(), **{"ggml.merges": "no"})
    metadata, tensors = small_model(layers=1, vocab=len(tokens["tokenizer.ggml.tokens"]))
    file = written(tmp_path, metadata | tokens, tensors)
    with pytest.raises(ValueError, match="merges is no list"):
        convert(file, tmp_path / "native")


def test_a_set_of_files_is_one_model_whichever_is_named(tmp_path):
    metadata, tensors = small_model()
    names = sorted(tensors)
    whole = open_checkpoint(written(tmp_path, metadata, tensors))
    for n, part in enumerate((names[:5], names[5:])):
        said = metadata if n == 0 else {}
        said = {**said, "split.no": n, "split.count": 2}
        written(tmp_path, said, {k: tensors[k] for k in part}, f"m-0000{n + 1}-of-00002.gguf")
    for n in (1, 2):
        found = open_checkpoint(tmp_path / f"m-0000{n}-of-00002.gguf")
        assert found.config == whole.config
        assert len(found.files) == 2
        for path, tensor in whole.tensors.items():
            np.testing.assert_array_equal(found.tensors[path][...], tensor[...])
    (tmp_path / "model.gguf").unlink()
    assert open_checkpoint(tmp_path).files == found.files
    (tmp_path / "m-00002-of-00002.gguf").rename(tmp_path / "other.gguf")
    with pytest.raises(FileNotFoundError, match=r"lacks 'm-00002-of-00002\.gguf'"):
        open_checkpoint(tmp_path / "m-00001-of-00002.gguf")
    (tmp_path / "m-00001-of-00002.gguf").rename(tmp_path / "alone.gguf")
    with pytest.raises(ValueError, match="one of '2' files, and 1 is here"):
        open_checkpoint(tmp_path / "alone.gguf")
    with pytest.raises(ValueError, match="holds 2 GGUF models, 'alone"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_scaling_is_known_by_its_factors(tmp_path, factor):
    scaling = Llama3Scaling(factor, 1.0, 4.0, 8192)
    metadata, tensors = small_model(heads=2, dim=128, **{"llama.rope.freq_base": 500000.0})
    plain = frequencies(64, 500000.0)
    factors = (plain / scaling.scaled(plain, 500000.0)).astype(np.float32)
    tensors["rope_freqs.weight"] = f32(factors)
    assert open_checkpoint(written(tmp_path, metadata, tensors)).config.rope_scaling == scaling
    factors[20] *= 1.01
    tensors["rope_freqs.weight"] = f32(factors)
    with pytest.raises(ValueError, match=r"rope_freqs\.weight .* is not what Llama 3's scaling"):
        open_checkpoint(written(tmp_path, metadata, tensors))


def test_other_scalings(tmp_path):
    def opened(**said):
        metadata, tensors = small_model(**{f"llama.{name}": v for name, v in said.items()})
        return open_checkpoint(written(tmp_path, metadata, tensors))

    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    assert opened(**linear).config.rope_scaling == LinearScaling(4.0)
    assert opened(**{"rope.scale_linear": 2.0}).config.rope_scaling == LinearScaling(2.0)
    late = opened(**{"context_length": 131072, "rope.freq_base": 500000.0})
    assert "before July 2024" in late.warnings[0]
    with pytest.raises(ValueError, match=r"rope\.scaling\.type='longrope' is not read, only"):
        opened(**{"rope.scaling.type": "longrope", "rope.scaling.factor": 4.0})


def test_yarn_is_read_as_llama_cpp_and_its_converter_mean_it(tmp_path):
    def scaling(**said):
        said = {"type": "yarn", "factor": 4.0, **said}
        metadata, tensors = small_model(**{f"llama.rope.scaling.{k}": v for k, v in said.items()})
        return open_checkpoint(written(tmp_path, metadata, tensors)).config.rope_scaling

    length = 1 + 0.1 * math.log(4)
    plain = YarnScaling(4.0, 32.0, 1.0, True, length, 64)  # the file's context_length
    assert scaling() == plain
    assert scaling(original_context_length=16) == dataclasses.replace(
        plain, original_max_seq_len=16
    )
    longer = scaling(attn_factor=1.5, yarn_beta_fast=24.0, yarn_beta_slow=2.0)
    assert (longer.beta_fast, longer.beta_slow) == (24.0, 2.0)
    assert longer.attention_factor == pytest.approx(1.5 * length)
    assert scaling(attn_factor=1.5, yarn_attn_factor=1.25).attention_factor == 1.25
    for wrong in ({"yarn_ext_factor": 0.5}, {"yarn_log_multiplier": 0.1}):
        with pytest.raises(
            ValueError, match=r"YaRN with yarn_ext_factor=.* is not read, only with"
        ):
            scaling(**wrong)
    with pytest.raises(ValueError, match="factor"):
        scaling(factor=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"general.architecture": "qwen2"}, "general.architecture is 'qwen2', and only llama"),
        ({"llama.expert_count": 8}, "'8' experts a layer, as Mixtral has"),
        ({"llama.block_count": 3}, r"lacks 'blk\.2\.attn_norm\.weight'.* says block_count=3"),
        ({"llama.block_count": 1}, r"has 'blk\.1\.attn_norm\.weight'.* and 6 more, no weight"),
        ({"llama.block_count": 4000}, "too few for a model of block_count=4000"),
        ({"llama.block_count": 10**6}, "n_layers=1000000 must be at most"),
        ({"llama.embedding_length": 64}, r"shape \[48, 32\] where its metadata say \[48, 64\]"),
        ({"llama.rope.dimension_count": 4}, r"rope\.dimension_count=4 where heads have 8"),
        ({"llama.feed_forward_length": [64, 32]}, "feed_forward_length differs from layer"),
        ({"llama.attention.head_count": 0}, r"attention\.head_count=0 must be a positive"),
        ({"general.alignment": 3}, "must be a power of two"),
    ],
)
def test_what_is_no_llama_is_told_by_its_own_words(tmp_path, changes, message):
    file = written(tmp_path, *small_model(**changes))
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(file)
    assert str(caught.value).startswith(str(file))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ((31, (64, 32), b""), "is Q4_0_4_4, which is not read; get the model in one of F32, F16"),
        ((99, (64, 32), b""), "of the unknown type 99"),
        ((Q6_K, (64, 32), bytes(64)), r"impossible shape \[64, 32\] for Q6_K"),
        ((0, (2**40, 2**40), b""), "impossible shape"),
        ((0, (1, 1, 1, 1, 1), bytes(4)), "has 5 axes"),
        ((0, (64, 33), bytes(64 * 32 * 4)), "share bytes|ends at"),
    ],
)
def test_a_tensor_that_cannot_be_is_told(tmp_path, tensor, message):
    metadata, tensors = small_model()
    tensors["blk.1.ffn_up.weight"] = tensor
    with pytest.raises(ValueError, match=message):
        open_checkpoint(written(tmp_path, metadata, tensors))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with b''"),
        (b"GGUF\3\0", "cut off at 6 bytes"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF of version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 0), "claims 1,152,921,504,606,846,976 tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60), "1,152,921,504,606,846,976 keys"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**63) + bytes(16), "claims a text of"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ],
)
def test_a_head_that_is_none_is_told(tmp_path, content, message):
    file = tmp_path / "m.gguf"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        open_checkpoint(file)


def test_an_array_of_any_claimed_length_costs_nothing(tmp_path):
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"k"
    file = tmp_path / "m.gguf"
    for kind in (0, 8, 12):
        file.write_bytes(start + struct.pack("<IIQ", 9, kind, 2**61) + bytes(100))
        with pytest.raises(ValueError, match=r"claims 2,305,843,009,213,693,952 items"):
            open_checkpoint(file)
    file.write_bytes(start + struct.pack("<IIQ", 9, 9, 1) + bytes(100))
    with pytest.raises(ValueError, match="array of arrays"):
        open_checkpoint(file)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match="is no regular file"):
        open_checkpoint(tmp_path / "m.gguf")


def mutated(whole, head, rng):
    """A file with one to three runs of its head overwritten, and now and then its end cut off."""
    broken = bytearray(whole)
    for _ in range(int(rng.integers(1, 4))):
        at, size = int(rng.integers(4, head)), int(rng.choice([1, 4, 8]))
        value = int(rng.choice([0, 1, 0xFF, 0x7F, int(rng.integers(256))]))
        broken[at : at + size] = bytes([value]) * size
    if rng.integers(5) == 0:
        del broken[int(rng.integers(len(broken))) :]
    return broken


def what_is_said(read, file):
    """The message of a refusal; "" where it is read. Any other exception is a failure."""
    try:
        read(file)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("read", "trials"), [(open_checkpoint, 1500), (load_tokenizer, 300)])
def test_mutated_files_are_refused_or_read_and_cost_nothing(tmp_path, read, trials):
    metadata, tensors = small_model(layers=1, dim=32, hidden=32)
    metadata["general.tags"] = ["a", "bc"]
    if read is load_tokenizer:
        metadata, tensors = bpe_metadata(tiktoken_file()), {}
    whole, rng, file = gguf_bytes(metadata, tensors), np.random.default_rng(0), tmp_path / "m.gguf"
    head = len(whole) - sum(-(-len(raw) // 32) * 32 for _, _, raw in tensors.values())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = []
    for _ in range(trials):
        file.write_bytes(mutated(whole, head, rng))
        began = time.process_time()
        said.append(what_is_said(read, file))
        assert time.process_time() - began < 5
    refused = [message for message in said if message]
    assert len(refused) > trials // 4
    assert all(str(file) in message for message in refused)
    assert max(map(len, refused)) < 500 + len(str(file))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200_000, "kilobytes"
