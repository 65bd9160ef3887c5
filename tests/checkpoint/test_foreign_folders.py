"""Files that other tools wrote or left unfinished: read rightly, or told by what they are."""

import json
import os
import shutil
import struct
import subprocess
import sys
import zipfile

import meta_folder
import ml_dtypes
import numpy as np
import pytest
import torch_zip
from helpers import ROOT, run
from hf_folder import SMALL, tensors_of, write_folder
from meta_folder import cut, weights_of

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.reading import open_checkpoint, open_source
from llama_jax.cli.verify import verify

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PROJECTIONS = [name for name in tensors_of(SMALL) if "_proj." in name]


def assert_reads(source, tensors=None):
    """The tensors of `SMALL`, every one of them."""
    right = tensors_of(SMALL) if tensors is None else tensors
    embedding = source.tensors["tok_embeddings", "weight"][...]
    np.testing.assert_array_equal(embedding, right[EMBEDDING])
    gate = source.tensors["layers_1", "feed_forward", "w1"][...]
    np.testing.assert_array_equal(gate, right["model.layers.1.mlp.gate_proj.weight"].T)


# Names


PREFIXES = ["_orig_mod.", "module.", "_orig_mod.module.", "model.", "base_model.model.", "net.x."]


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("prefix", ["", *PREFIXES])
def test_a_common_prefix_is_left_out_with_a_note(tmp_path, prefix, bare):
    def named(name):
        inside = name.removeprefix("model.") if bare and not prefix.endswith("model.") else name
        return prefix + inside

    tensors = {named(name): array for name, array in tensors_of(SMALL).items()}
    source = open_source(write_folder(tmp_path, tensors))
    assert_reads(source)
    said = [note for note in source.notes if "names" in note]
    assert len(said) == (named(EMBEDDING) != EMBEDDING)
    assert all(repr(prefix) in note for note in said if prefix)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "model."])
def test_metas_names_lose_a_common_prefix_too(tmp_path, prefix):
    config = meta_folder.config_of(tmp_path)
    weights = weights_of(config)
    states = [{prefix + k: v for k, v in state.items()} for state in cut(weights, 2)]
    source = open_source(meta_folder.write(tmp_path / "m", states))
    meta_folder.assert_holds(source, weights)
    assert any(repr(prefix) in note for note in source.notes)


def test_a_prefix_of_some_names_is_not_guessed(tmp_path):
    tensors = tensors_of(SMALL)
    tensors |= {f"ema.{name}": array for name, array in tensors_of(SMALL).items()}
    with pytest.raises(ValueError, match=r"has 'ema\.model\.embed_tokens\.weight'"):
        open_source(write_folder(tmp_path, tensors))


def quantized(endings, keeps=None, dtype=np.int8):
    """The tensors with each projection's weight replaced, or kept in another dtype."""
    tensors = tensors_of(SMALL)
    for name in PROJECTIONS:
        weight, base = tensors.pop(name), name.removesuffix("weight")
        if keeps:
            tensors[base + keeps] = weight.astype(dtype)
        tensors |= {base + ending: np.ones(2, np.float32) for ending in endings}
    return tensors


KNOWN = {
    "GPTQ": (quantized(["qweight", "qzeros", "scales", "g_idx"]), "quantized by GPTQ;"),
    "AWQ": (quantized(["qweight", "qzeros", "scales"]), "GPTQ or AWQ"),
    "bitsandbytes 8": (quantized(["SCB"], "weight"), "bitsandbytes"),
    "bitsandbytes 4": (
        quantized(["weight.absmax", "weight.quant_state.bitsandbytes__nf4"], "weight"),
        "bitsandbytes",
    ),
    "compressed-tensors": (quantized(["weight_scale"], "weight_packed"), "compressed-tensors"),
    "float8": (
        quantized(["weight_scale_inv"], "weight", ml_dtypes.float8_e4m3fn),
        "float8 with a scale for each block; nearest are",
    ),
    "MLX": (quantized(["scales", "biases"], "weight"), "such as MLX writes; nearest are .*GGUF"),
    "EXL2": (quantized(["q_scale", "q_groups"], "q_weight"), "by EXL2; nearest are .*GPTQ"),
    "HQQ": (quantized(["scale", "zero"], "W_q", np.uint8), "by HQQ; nearest are .*GPTQ"),
    "AQLM": (quantized(["codes", "scales"], "codebooks"), "by AQLM; nearest are .*GGUF"),
    "quanto": (quantized(["weight._scale"], "weight._data"), "by quanto; nearest are .*GPTQ"),
    "torchao": (
        quantized(["_weight_scale"], "_weight_qdata"),
        "by torchao; nearest are .*compressed-tensors",
    ),
    "MXFP4": (quantized(["weight_scales"], "weight_blocks", np.uint8), "to MXFP4; nearest are"),
    "NVFP4": (
        quantized(["weight_scale", "weight_global_scale"], "weight_packed", np.uint8),
        "to NVFP4 or MXFP4; nearest are .*packed 4",
    ),
    "NVFP4 of modelopt": (
        quantized(["weight_scale", "weight_scale_2"], "weight", np.uint8),
        "to NVFP4 or MXFP4; nearest are .*packed 4",
    ),
    "Marlin": (quantized(["s"], "B", np.int32), "Marlin's order; nearest are .*GPTQ"),
    "LoRA left in": (quantized(["lora_A.default.weight"], "base_layer.weight", np.float32), "LoRA"),
    "a value head": (tensors_of(SMALL) | {"v_head.summary.weight": np.ones((1, 24), "f")}, "head"),
    "a reward's score": (tensors_of(SMALL) | {"score.weight": np.ones((1, 24), "f")}, "reward"),
}


@pytest.mark.parametrize("says", [None, {"quant_method": "gptq"}, {"bits": 4}])
@pytest.mark.parametrize(("tensors", "what"), KNOWN.values(), ids=KNOWN)
def test_what_the_names_show_is_told_before_damage(tmp_path, tensors, what, says):
    folder = write_folder(tmp_path, tensors, **({"quantization_config": says} if says else {}))
    with pytest.raises(ValueError, match=what) as caught:
        open_source(folder)
    assert "damaged" not in str(caught.value)
    assert str(folder / SINGLE) in str(caught.value)
    if says is not None:
        assert "(quantization_config says" in str(caught.value)
    else:  # it would be read if it were stated
        stating = "or state quantization_config in config.json" in str(caught.value)
        read = ("GPTQ;", "GPTQ or AWQ", "bitsandbytes", "compressed-tensors")
        assert stating == (what.endswith(read) and "nearest" not in what)


@pytest.mark.parametrize("key", ["quantization_config", "quantization"])
def test_a_stale_quantization_config_is_passed_over_with_a_note(tmp_path, key):
    source = open_source(write_folder(tmp_path, **{key: {"quant_method": "awq", "bits": 4}}))
    assert_reads(source)
    assert any(f"{key} says" in note and "out of date" in note for note in source.notes)


def test_float64_is_to_be_cast(tmp_path):
    tensors = {name: array.astype(np.float64) for name, array in tensors_of(SMALL).items()}
    with pytest.raises(ValueError, match=r"is float64; .* cast it to float32"):
        open_source(write_folder(tmp_path, tensors))


@pytest.mark.parametrize("kinds", ["qkv", "q", "qko"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_bias_that_no_layer_stores_is_zero(tmp_path, kinds, dtype):
    said = SMALL | {"attention_bias": True}
    tensors = tensors_of(said, dtype)
    for name in list(tensors):
        if name.endswith("_proj.bias") and name[-len("q_proj.bias")] not in kinds:
            del tensors[name]
    source = open_source(write_folder(tmp_path, tensors, attention_bias=True))
    for kind in "qkvo":
        bias = source.tensors["layers_1", "attention", f"b{kind}"]
        assert bias.dtype == dtype
        assert np.any(bias[...]) == (kind in kinds)
    notes = [note for note in source.notes if "it is zero" in note]
    assert len(notes) == 4 - len(kinds)


def test_a_bias_that_one_layer_lacks_is_missing(tmp_path):
    tensors = tensors_of(SMALL | {"attention_bias": True})
    del tensors["model.layers.1.self_attn.o_proj.bias"]
    with pytest.raises(ValueError, match=r"lacks 'model.layers.1.self_attn.o_proj.bias'.*damaged"):
        open_source(write_folder(tmp_path, tensors, attention_bias=True))


# Files


def torch_folder(folder, names, index=None):
    """A folder whose weights lie in torch's files of these names."""
    write_folder(folder)
    (folder / SINGLE).unlink()
    tensors, weight_map = tensors_of(SMALL), {}
    for n, name in enumerate(names):
        part = dict(list(tensors.items())[n :: len(names)])
        torch_zip.save(folder / name, part)
        weight_map |= dict.fromkeys(part, name)
    if index:
        (folder / index).write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.mark.parametrize("index", [INDEX, "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("names", [["hf_model_0001_0.pt"], ["a.pt", "b.pth"], ["a.safetensors"]])
def test_an_index_may_name_files_of_any_ending(tmp_path, index, names):
    assert_reads(open_source(torch_folder(tmp_path / "m", names, index)))


@pytest.mark.parametrize("count", [2, 3])
def test_numbered_files_without_an_index_are_read_if_all_are_there(tmp_path, count):
    folder = write_folder(tmp_path / "a", files=count)
    (folder / INDEX).unlink()
    source = open_source(folder)
    assert_reads(source)
    assert any("no index" in note for note in source.notes)
    names = [f"pytorch_model-{n + 1:05}-of-{count:05}.bin" for n in range(count)]
    other = torch_folder(tmp_path / "b", names)
    assert_reads(open_source(other))
    (folder / f"model-00002-of-0000{count}.safetensors").unlink()
    with pytest.raises(ValueError, match=f"holds {count - 1} of {count} numbered .* 'model-00002"):
        open_source(folder)
    for file in other.glob("*.bin"):
        shutil.copy(file, folder)
    with pytest.raises(ValueError, match="files of several models"):
        open_source(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["hf_model_0001_0.pt"], r"but hf_model_0001_0\.pt; .* call it pytorch_model\.bin"),
        (["weights.safetensors"], r"but weights\.safetensors; .* call it model\.safetensors"),
        (["a.pt", "b.pt"], "but 'a.pt', 'b.pt'; write an index"),
        (["adapter_model.safetensors"], "a LoRA adapter alone"),
        (["adapter_model.bin", "x.txt"], "a LoRA adapter alone"),
        (["m.Q4_K_M.gguf"], r"but m\.Q4_K_M\.gguf; pass that file's own path"),
        ([], "download them beside"),
    ],
)
def test_what_lies_in_place_of_weights_is_told(tmp_path, files, message):
    folder = write_folder(tmp_path)
    (folder / SINGLE).unlink()
    for name in files:
        (folder / name).touch()
    with pytest.raises(ValueError, match=message):
        open_source(folder)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["adapter_config.json", "adapter_model.safetensors"], "a LoRA adapter alone"),
        (["model.pt"], r"but model\.pt; if that is"),
        (["readme.txt"], r"holds no checkpoint: neither .* \(Hugging Face\)$"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_told_by_what_it_holds(tmp_path, files, message):
    for name in files:
        (tmp_path / name).touch()
    with pytest.raises(FileNotFoundError, match=message):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [(SINGLE, "pass the checkpoint's directory that it lies in"), ("m.gguf", "is not a GGUF file")],
)
def test_a_file_in_place_of_its_folder_is_told(tmp_path, name, message):
    folder = write_folder(tmp_path)
    (folder / "m.gguf").touch()
    with pytest.raises(ValueError, match=message):
        llama_jax.load(folder / name)


def meta(folder, shards=1, **params):
    """A folder of Meta's, its weights and its config."""
    folder.parent.mkdir(exist_ok=True)
    config = meta_folder.config_of(folder.parent)
    (folder.parent / "params.json").unlink()
    weights = weights_of(config)
    return meta_folder.write(folder, cut(weights, shards), **params), weights, config


@pytest.mark.parametrize("params", [{}, {"dim": 24, "hidden_dim": 40}])
def test_the_weights_tell_the_format_and_not_a_file_beside_them(tmp_path, params):
    folder = write_folder(tmp_path)
    (folder / "params.json").write_text(json.dumps(params))
    (folder / "checkpoint.json").write_text('{"epoch": 3}')
    source = open_checkpoint(folder)
    assert source.format == "huggingface"
    assert_reads(source)


def test_a_folder_with_both_makers_weights_says_which_are_read(tmp_path):
    folder, weights, _ = meta(tmp_path / "m")
    write_folder(folder)
    source = open_checkpoint(folder)
    meta_folder.assert_holds(source, weights)
    assert any("Hugging Face's files lie there too" in note for note in source.notes)


@pytest.mark.parametrize("below", ["original", "7B"])
def test_a_checkpoint_one_level_below_is_pointed_at(tmp_path, below):
    folder, _, _ = meta(tmp_path / "m")
    (tmp_path / "hub").mkdir()
    folder.rename(tmp_path / "hub" / below)
    with pytest.raises(FileNotFoundError, match=rf"hub/{below} does; pass that"):
        open_checkpoint(tmp_path / "hub")


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize(
    "keys", [["vocab_size"], ["norm_eps"], ["multiple_of"], ["n_kv_heads"], None]
)
def test_a_key_that_params_leaves_out_has_metas_default(tmp_path, shards, keys):
    folder, weights, config = meta(tmp_path / "m", shards)
    said = json.loads((folder / "params.json").read_text())
    keys = keys or ["vocab_size", "norm_eps", "multiple_of", "n_kv_heads"]
    (folder / "params.json").write_text(json.dumps({k: said[k] for k in said.keys() - set(keys)}))
    source = open_checkpoint(folder)
    assert source.config == config.replace(max_seq_len=source.config.max_seq_len)
    meta_folder.assert_holds(source, weights)
    for key in keys:
        assert [key in note for note in source.notes].count(True) == 1


@pytest.mark.parametrize("keys", [["dim"], ["n_layers", "norm_eps"], ["dim", "n_heads"]])
def test_the_keys_without_a_default_are_named_where_they_are_missing(tmp_path, keys):
    folder, _, _ = meta(tmp_path / "m")
    said = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps({k: said[k] for k in said.keys() - set(keys)}))
    missing = " and ".join(key for key in keys if key != "norm_eps")
    with pytest.raises(ValueError, match=f"params.json: it lacks {missing}, which nothing") as told:
        open_checkpoint(folder)
    assert "damaged" not in str(told.value)


@pytest.mark.parametrize(
    "name", ["self_attn.q_proj.codes", "mlp.up_proj.weight.scale_2", "self_attn.o_proj.qw.part.0"]
)
@pytest.mark.parametrize("beside", [True, False], ids=["beside it", "in its place"])
def test_an_unknown_part_of_a_weight_is_said_to_look_quantized(tmp_path, name, beside):
    tensors = tensors_of(SMALL)
    weight = "model.layers.0." + ".".join(name.split(".")[:2]) + ".weight"
    tensors[f"model.layers.0.{name}"] = np.zeros(4, np.uint8)
    if not beside:
        del tensors[weight]
    folder = write_folder(tmp_path / "m", tensors)
    with pytest.raises(ValueError, match="looks like part of a quantized weight") as told:
        open_checkpoint(folder)
    assert name in str(told.value)
    assert weight in str(told.value)


def test_an_unknown_part_of_one_of_metas_weights_is_said_to_look_quantized(tmp_path):
    folder, weights, _ = meta(tmp_path / "m")
    (state,) = cut(weights, 1, 0)
    state["layers.0.attention.wq.codes"] = np.zeros(4, np.float32)
    meta_folder.write(folder, [state])
    with pytest.raises(ValueError, match=r"stands beside 'layers.0.attention.wq.weight'"):
        open_checkpoint(folder)


def test_a_tokenizer_taken_from_above_is_said(tmp_path):
    from small_tokenizers import sentencepiece_file

    folder, _, _ = meta(tmp_path / "m")
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    assert any(str(tmp_path / "tokenizer.model") in n for n in open_checkpoint(folder).notes)
    shutil.copy(tmp_path / "tokenizer.model", folder)
    assert not any("tokenizer" in note for note in open_checkpoint(folder).notes)


# RoPE


def frequencies(theta, head_dim, dtype):
    return (theta ** (-np.arange(0, head_dim, 2) / head_dim)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("scaling", [None, {"rope_type": "linear", "factor": 4.0}])
def test_stored_frequencies_that_contradict_the_config_are_warned_of(
    tmp_path, dtype, theta, scaling
):
    tensors = tensors_of(SMALL)
    stored = frequencies(theta, SMALL["head_dim"], dtype)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = stored
    folder = write_folder(tmp_path, tensors, rope_theta=5e5, rope_scaling=scaling)
    source = open_source(folder)
    assert len(source.warnings) == (theta != 5e5)
    if source.warnings:
        assert "rope_theta=500,000" in source.warnings[0]
        assert "inv_freq" in source.warnings[0]
        with pytest.warns(UserWarning, match="rope_theta=500,000"):
            llama_jax.load(folder)
        assert "warning" in run("inspect", folder).output
        assert "warning" in run("convert", folder, tmp_path / "out").output
    else:
        llama_jax.load(folder)  # a warning would be an error


@pytest.mark.parametrize("theta", [1e4, 5e5])
def test_metas_stored_frequencies_are_held_against_its_params(tmp_path, theta):
    folder, weights, config = meta(tmp_path / "m", rope_theta=1e4)
    stored = {"rope.freqs": frequencies(theta, config.head_dim, np.float32)}
    torch_zip.save(folder / "consolidated.00.pth", weights | stored)
    assert len(open_checkpoint(folder).warnings) == (theta != 1e4)


def test_the_commands_show_the_tokenizers_notes(tmp_path):
    from small_tokenizers import sentencepiece_file

    folder = write_folder(tmp_path / "m", vocab_size=400, num_hidden_layers=1)
    (folder / "tokenizer.model").write_bytes(sentencepiece_file())
    (folder / "tokenizer_config.json").write_text('{"pad_token": "[PAD]"}')
    for command in (("inspect", folder), ("convert", folder, tmp_path / "out")):
        assert "pad_token '[PAD]' is ignored" in run(*command).output


# Links, paths, pipes, damage


@pytest.mark.parametrize("name", [SINGLE, "config.json"])
def test_links_out_of_a_folder_can_be_allowed(tmp_path, monkeypatch, name):
    folder, outside = write_folder(tmp_path / "m"), tmp_path / "outside"
    outside.mkdir()
    (folder / name).rename(outside / "x")
    (folder / name).symlink_to(outside / "x")
    with pytest.raises(ValueError, match=f"LLAMA_JAX_LINKS={outside}"):
        open_source(folder)
    monkeypatch.setenv("LLAMA_JAX_LINKS", os.pathsep.join(["/nowhere", str(outside)]))
    assert_reads(open_source(folder))
    monkeypatch.setenv("LLAMA_JAX_LINKS", str(tmp_path / "other"))
    with pytest.raises(ValueError, match="link out of the folder"):
        open_source(folder)


@pytest.fixture
def native_checkpoint(tmp_path):
    convert(write_folder(tmp_path / "hf"), tmp_path / "home" / "a b é" / "native")
    return tmp_path / "home" / "a b é" / "native"


@pytest.mark.parametrize(
    "given",
    [
        "../native",
        "./native/.",
        "../../a b é//native/",
        "../../../home/a b é/native",
        "../link",
        "~/x/../a b é/native",
    ],
)
def test_a_native_checkpoint_opens_through_any_path(native_checkpoint, monkeypatch, given):
    home = native_checkpoint.parent.parent
    here = native_checkpoint.parent / "notebooks"
    for folder in (here, home / "x"):
        folder.mkdir()
    (here.parent / "link").symlink_to(native_checkpoint)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here if given.startswith(("../", "~")) else here.parent)
    params = llama_jax.load(given)
    np.testing.assert_array_equal(
        params.weights["tok_embeddings"]["weight"], tensors_of(SMALL)[EMBEDDING]
    )
    assert llama_jax.checkpoint.shapes(given).config == params.config
    assert open_checkpoint(given).format == "native"
    llama_jax.save(params, "~/saved")
    llama_jax.save(params, "../up")
    assert llama_jax.load(home / "saved").config == llama_jax.load("../up").config


@pytest.mark.parametrize("name", ["n\udcc3\udca2tive", "\udce9"])
def test_a_path_that_the_locale_cannot_spell_is_told(native_checkpoint, name):
    params = llama_jax.load(native_checkpoint)
    strange = native_checkpoint.parent / name
    with pytest.raises(ValueError, match="cannot spell; run it with PYTHONUTF8=1"):
        llama_jax.save(params, strange)
    assert not strange.exists()
    native_checkpoint.rename(strange)
    with pytest.raises(ValueError, match="cannot spell; run it with PYTHONUTF8=1"):
        llama_jax.load(strange)


@pytest.mark.parametrize("layers", [10**3, 4096, 4097, 10**9])
def test_a_number_of_layers_makes_no_long_table(native_checkpoint, layers):
    file = native_checkpoint / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"n_layers": layers}))
    for opens in (llama_jax.load, open_checkpoint, llama_jax.checkpoint.shapes):
        with pytest.raises(ValueError, match=f"n_layers={layers}(, and .* holds| must be at most)"):
            opens(native_checkpoint)


PIPES = {
    "Meta's": "consolidated.00.pth",
    "Meta's params": "params.json",
    "zarr.json": "weights/norm.scale/zarr.json",
    "a chunk": "weights/norm.scale/c/0",
    "config": "config.json",
    "safetensors": SINGLE,
}


@pytest.mark.parametrize("which", PIPES)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path, which):
    if which.startswith("Meta"):
        folder, _, _ = meta(tmp_path / "m")
    elif which == "safetensors":
        folder = write_folder(tmp_path / "m")
    else:
        folder = tmp_path / "m"
        convert(write_folder(tmp_path / "hf"), folder)
    file = folder / PIPES[which]
    file.unlink()
    os.mkfifo(file)
    program = f"import llama_jax; llama_jax.load({str(folder)!r})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(("ValueError: ", "FileNotFoundError: "))


@pytest.mark.parametrize("record", [0, 7, 15])
@pytest.mark.parametrize("kind", ["meta", "hf"])
def test_a_flipped_bit_of_a_torch_file_is_found(tmp_path, kind, record):
    if kind == "meta":
        file = meta(tmp_path / "m")[0] / "consolidated.00.pth"
    else:
        file = torch_folder(tmp_path / "m", ["pytorch_model.bin"]) / "pytorch_model.bin"
    records = zipfile.ZipFile(file).infolist()
    info = next(x for x in records if x.filename.endswith(f"/data/{record}"))
    content = bytearray(file.read_bytes())
    name, extra = struct.unpack_from("<HH", content, info.header_offset + 26)
    content[info.header_offset + 30 + name + extra + info.file_size // 2] ^= 0x40
    file.write_bytes(content)

    def converted(path):
        convert(path, tmp_path / "out")

    def compared(path):
        verify(path, path)

    for opens in (llama_jax.load, converted, compared):
        with pytest.raises(ValueError, match=f"data/{record}' does not have the checksum"):
            opens(file.parent)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [1, 64, 0xFFFF])
def test_a_record_that_a_local_header_moves_is_refused(tmp_path, extra):
    folder = meta(tmp_path / "m")[0]
    file = folder / "consolidated.00.pth"
    record = next(x for x in zipfile.ZipFile(file).infolist() if x.filename.endswith("data/3"))
    content = bytearray(file.read_bytes())
    at = record.header_offset + 28
    content[at : at + 2] = (
        int.from_bytes(content[at : at + 2], "little") + extra & 0xFFFF
    ).to_bytes(2, "little")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"runs|checksum"):
        llama_jax.load(folder)
