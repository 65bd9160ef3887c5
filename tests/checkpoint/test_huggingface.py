"""Hugging Face's folders: transformers' own results from them, and one error for what is wrong.

tests/golden/hf holds small random models as transformers wrote them, and what it computed from
them in float32 (its README says which came from where).
"""

import json
import os
import random
from pathlib import Path

import helpers
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_zip
from hf_folder import SMALL, mutated, tensors_of, write_folder, write_index, write_safetensors
from memory import AnonymousPeak

import llama_jax
from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.files.torch_file import is_torch_file
from llama_jax.checkpoint.huggingface import is_hf, open_hf
from llama_jax.checkpoint.huggingface.config import read_hf_config
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_source
from llama_jax.checkpoint.source import StoredTensor
from llama_jax.config import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
from llama_jax.model.transformer import rope_frequencies
from llama_jax.sharding.mesh import make_mesh

GOLDEN = helpers.GOLDEN / "hf"
MODELS = sorted(folder.name for folder in GOLDEN.iterdir() if folder.is_dir())
TOLERANCE = 2e-4
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
forward = jax.jit(llama_jax.forward)


def flat(params):
    return jax.tree_util.tree_leaves_with_path(params.weights)


def assert_same_weights(one, two):
    assert one.config == two.config
    for (path, a), (other, b) in zip(flat(one), flat(two), strict=True):
        assert (path, a.dtype) == (other, b.dtype)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


# transformers' results


ORDINARY = ("llama2", "llama3.2-tied", "yarn")
EVERY = [
    name if name in ORDINARY else pytest.param(name, marks=pytest.mark.slow) for name in MODELS
]


@pytest.fixture(scope="module", params=EVERY)
def model(request):
    folder = GOLDEN / request.param
    with np.load(folder / "reference.npz") as file:
        reference = dict(file)
    greedy = json.loads((folder / "greedy.json").read_text())
    return llama_jax.load(folder, dtype="float32"), reference, greedy


def test_logits_are_transformers_at_every_stored_position(model):
    params, reference, _ = model
    tokens, stride = reference["tokens"], int(reference["logits_stride"])
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    logits, _ = forward(params, tokens, positions)
    np.testing.assert_allclose(logits[:, ::stride], reference["logits"], atol=TOLERANCE, rtol=0)


def test_greedy_rows_are_transformers_token_for_token(model):
    params, _, greedy = model
    news = [len(row) - len(p) for row, p in zip(greedy["greedy"], greedy["prompts"], strict=True)]
    settings = {"max_new_tokens": max(news), "temperature": 0.0}
    together = llama_jax.generate(params, greedy["prompts"], **settings)
    for row, prompt, new, done in zip(
        greedy["greedy"], greedy["prompts"], news, together, strict=True
    ):
        assert done.tokens[:new] == row[len(prompt) :]
    (alone,) = llama_jax.generate(params, greedy["prompts"][:1], **settings)
    assert alone == together[0]


@pytest.mark.parametrize("name", ["yarn", "yarn-mscale", "dynamic"])
def test_rope_frequencies_are_transformers(name):
    config = read_hf_config(GOLDEN / name / "config.json").config
    with np.load(GOLDEN / name / "reference.npz") as reference:
        np.testing.assert_allclose(rope_frequencies(config), reference["inv_freq"], rtol=3e-7)
        if isinstance(config.rope_scaling, YarnScaling):
            assert config.rope_scaling.attention_factor == float(reference["attention_scaling"])


def test_a_real_model_writes_what_it_writes_in_transformers(shared):
    folder = shared / "models" / "tinystories656K-hf"
    params = llama_jax.load(folder, dtype="float32")
    tokenizer = llama_jax.load_tokenizer(folder)
    for case in json.loads((folder / "golden.json").read_text())["cases"]:
        ids, wanted = case["ids"], case["greedy_ids"][len(case["ids"]) :]
        assert tokenizer.encode(case["prompt"], bos=True, eos=False) == ids
        logits, _ = forward(params, jnp.array([ids]), jnp.arange(len(ids))[None])
        head = case["last_logits_head"]
        np.testing.assert_allclose(logits[0, -1, : len(head)], head, atol=TOLERANCE, rtol=0)
        settings = {"max_new_tokens": len(wanted), "temperature": 0.0}
        (done,) = llama_jax.generate(params, [case["prompt"]], **settings)
        assert done.tokens == wanted


# config.json


def read(folder, **changes):
    folder.mkdir(exist_ok=True)
    given = {key: value for key, value in (SMALL | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(given))
    return read_hf_config(folder / "config.json")


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = YarnScaling(8.0, 32.0, 1.0, True, 0.1 * np.log(8.0) + 1.0, 16)
SPELLINGS = {
    "null": ({"rope_scaling": None}, None),
    "nothing": ({"rope_scaling": ...}, None),
    "empty": ({"rope_scaling": {}}, None),
    "default": ({"rope_scaling": {"rope_type": "default"}}, None),
    "type": ({"rope_scaling": {"type": "linear", "factor": 2}}, LinearScaling(2.0)),
    "rope_type": ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, LinearScaling(2.0)),
    "both types": (
        {"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 2.0}},
        LinearScaling(2.0),
    ),
    "parameters": (
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
        LinearScaling(2.0),
    ),
    "llama3": (
        {"rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 16, **LLAMA3}},
        Llama3Scaling(**LLAMA3, original_max_seq_len=16),
    ),
    "llama3 at full length": (
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        Llama3Scaling(**LLAMA3, original_max_seq_len=64),
    ),
    "dynamic": ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, DynamicScaling(2.0, 64)),
    "yarn": (
        {
            "rope_scaling": {
                "type": "yarn",
                "factor": 8.0,
                "original_max_position_embeddings": 16,
                "finetuned": True,
            }
        },
        YARN,
    ),
    "yarn, its original length beside": (
        {"rope_scaling": {"type": "yarn", "factor": 8.0}, "original_max_position_embeddings": 16},
        YARN,
    ),
    "yarn without a factor": (
        {"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 16}},
        YarnScaling(4.0, 32.0, 1.0, True, 0.1 * np.log(4.0) + 1.0, 16),
    ),
    "yarn, all said": (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 8,
                "attention_factor": 1.5,
                "beta_fast": 20,
                "beta_slow": 2,
                "truncate": False,
            }
        },
        YarnScaling(8.0, 20.0, 2.0, False, 1.5, 64),
    ),
}


@pytest.mark.parametrize(("changes", "scaling"), SPELLINGS.values(), ids=SPELLINGS)
def test_every_spelling_of_rope_is_read(tmp_path, changes, scaling):
    config = read(tmp_path, **changes).config
    assert config.rope_theta == 10000.0
    assert config.rope_scaling == scaling


def test_the_base_inside_rope_parameters_wins(tmp_path):
    said = read(tmp_path, rope_theta=1.5, rope_parameters={"rope_theta": 5e5})
    assert said.config.rope_theta == 5e5
    assert said.notes == ()


def test_what_old_files_leave_out_takes_transformers_defaults_and_is_noted(tmp_path):
    left_out = ("num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps", "rope_scaling")
    said = read(tmp_path, **dict.fromkeys((*left_out, "max_position_embeddings"), ...))
    config = said.config
    assert (config.n_kv_heads, config.head_dim, config.norm_eps) == (4, 6, 1e-6)
    assert (config.rope_theta, config.max_seq_len) == (10000.0, 2048)
    assert not any((config.attention_bias, config.mlp_bias, config.tie_embeddings))
    assert [note.split()[0] for note in said.notes] == ["rope_theta", "rms_norm_eps", "max_seq_len"]


def test_nulls_are_as_if_left_out(tmp_path):
    config = read(tmp_path, head_dim=None, num_key_value_heads=None, mlp_bias=None).config
    assert (config.head_dim, config.n_kv_heads, config.mlp_bias) == (6, 4, False)


REFUSED = {
    "another architecture": (
        {"architectures": ["MistralForCausalLM"], "model_type": "mistral"},
        '"MistralForCausalLM" .*"mistral"',
    ),
    "another head": ({"architectures": ["LlamaForSequenceClassification"]}, "ForSequenceClass"),
    "another type": ({"architectures": ..., "model_type": "qwen2"}, '"qwen2"'),
    "no type": ({"architectures": ..., "model_type": ...}, "neither a model_type nor arch"),
    "gelu": ({"hidden_act": "gelu"}, 'hidden_act="gelu"'),
    "longrope": ({"rope_scaling": {"type": "longrope"}}, '"longrope" is not known'),
    "a list of a kind": ({"rope_scaling": {"type": ["linear"]}}, "a list is not known"),
    "no factor": ({"rope_scaling": {"type": "linear"}}, "lacks factor"),
    "a text for a factor": ({"rope_scaling": {"type": "linear", "factor": "2"}}, 'factor="2"'),
    "a number for a scaling": ({"rope_scaling": 2.0}, "rope_scaling=2.0"),
    "half a llama3": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
    "a part of a head": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
    "no size": ({"hidden_size": ...}, "lacks hidden_size"),
    "a float of a size": ({"hidden_size": 24.0}, "hidden_size=24.0"),
    "a huge size": ({"vocab_size": 2**40}, "vocab_size=1099511627776"),
    "heads that do not divide": ({"num_key_value_heads": 3}, "n_kv_heads=3 does not divide"),
    "no head_dim and none to derive": (
        {"head_dim": ..., "num_attention_heads": 5, "num_key_value_heads": 5},
        "num_attention_heads=5 does not divide",
    ),
    "an odd head": ({"head_dim": 7}, "head_dim=7 is odd"),
    "a text of a flag": ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings="yes"'),
    "NaN": ({"rms_norm_eps": float("nan")}, "rms_norm_eps=NaN"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_llama_or_makes_no_sense_is_refused_by_name(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, **changes)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "not JSON"),
        (b"[]", "holds a list"),
        (b'{"a":' * 50_000, "not JSON"),
        (b" " * (5 * 2**20), "more than"),
        (b"\xff", "not JSON"),
    ],
)
def test_a_config_that_is_no_json_object_is_refused(tmp_path, content, message):
    write_folder(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        open_source(tmp_path)
    assert "config.json" in str(caught.value)


def test_an_argument_stands_in_for_the_context_and_dynamic_scaling_ends_there(tmp_path):
    assert open_hf(write_folder(tmp_path / "a"), max_seq_len=7).config.max_seq_len == 7
    folder = write_folder(tmp_path / "b", rope_scaling={"type": "dynamic", "factor": 4.0})
    assert any("dynamic NTK" in note for note in open_hf(folder).notes)
    with pytest.raises(
        ValueError, match=r"config.json: max_seq_len=65 must not exceed .*=64 .*yarn"
    ):
        open_hf(folder, max_seq_len=65)


# Tensors


def pair_order(w, heads):
    """Facts: HF lists a head's real halves first, Meta's pairs are adjacent."""
    return w.reshape(heads, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize("files", [0, 3])
def test_every_weight_is_its_tensor_and_q_and_k_are_in_pair_order(tmp_path, files):
    source = open_hf(write_folder(tmp_path, files=files, **BIASED))
    given = tensors_of(SMALL | BIASED)
    assert (source.format, len(source.files)) == ("huggingface", max(1, files))
    assert list(source.tensors) == [row.path for row in names_table(source.config)]
    for row in names_table(source.config):
        wanted, letter = given[row.hf], row.path[-1][1:]
        if letter in "qk":
            wanted = pair_order(wanted, 4 if letter == "q" else 2)
        wanted = wanted if "embed" in row.hf else wanted.T
        np.testing.assert_array_equal(source.tensors[row.path][...], wanted)


def test_any_part_of_a_tensor_is_that_part_of_the_whole(tmp_path):
    tensors = open_hf(write_folder(tmp_path, **BIASED)).tensors
    rng = random.Random(0)
    for tensor in tensors.values():
        whole = tensor[...]
        for _ in range(40):
            cuts = [sorted(rng.choices(range(n + 1), k=2)) for n in tensor.shape]
            index = tuple(slice(*cut) for cut in cuts)
            np.testing.assert_array_equal(tensor[index], whole[index])


class Recorded:
    """An array that counts the numbers read of it."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.read = array, array.shape, array.dtype, 0

    def __getitem__(self, index):
        self.read += self.array[index].size
        return self.array[index]


@pytest.mark.parametrize("heads", [None, 4])
def test_a_part_reads_no_number_but_its_own(heads):
    array = Recorded(np.arange(32 * 6, dtype=np.float32).reshape(32, 6))
    tensor = StoredTensor((array,), 0, True, half_split_heads=heads)
    for index in ((slice(0, 3), slice(8, 16)), (slice(2, 6), slice(3, 30)), (slice(0, 6),) * 2):
        array.read = 0
        assert tensor[index].size == array.read


def test_a_bin_is_read_like_safetensors(tmp_path):
    tensors = tensors_of(SMALL, ml_dtypes.bfloat16)
    wanted = open_hf(write_folder(tmp_path / "a", tensors)).tensors
    one = write_folder(tmp_path / "b", tensors)
    (one / SINGLE).unlink()
    torch_zip.save(one / "pytorch_model.bin", tensors, metadata=True)
    many = write_folder(tmp_path / "c", tensors)
    (many / SINGLE).unlink()
    names = list(tensors)
    parts = {"pytorch_model-1.bin": names[:9], "pytorch_model-2.bin": names[9:]}
    for file, part in parts.items():
        torch_zip.save(many / file, {name: tensors[name] for name in part})
    weight_map = {name: file for file, part in parts.items() for name in part}
    index = json.dumps({"weight_map": weight_map})
    (many / "pytorch_model.bin.index.json").write_text(index)
    for folder in (one, many):
        found = open_hf(folder).tensors
        assert all(found[p][...].tobytes() == wanted[p][...].tobytes() for p in wanted)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.", "before version 1.6"),
        (b"\x80\x04\x95\x00\x00\x00\x00\x00}.", "a bare pickle"),
    ],
)
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_pickle_in_a_weight_files_place_is_called_what_it_is(tmp_path, name, content, message):
    folder = write_folder(tmp_path / "a", tensors_of(SMALL))
    (folder / SINGLE).unlink()
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: .*{message}"):
        open_hf(folder)


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480])
def test_a_header_whose_length_begins_as_a_pickle_is_a_header(tmp_path, length):
    written = write_safetensors(tmp_path / "a.safetensors", {"w": np.ones(3, np.float32)})
    begin, content = 8, written.read_bytes()
    end = begin + int.from_bytes(content[:begin], "little")
    header = content[begin:end].rstrip().ljust(length)
    written.write_bytes(length.to_bytes(begin, "little") + header + content[end:])
    assert not is_torch_file(written)


def test_buffers_are_skipped_by_name_and_noted(tmp_path):
    tensors = tensors_of(SMALL)
    for layer in range(2):
        tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    source = open_hf(write_folder(tmp_path, tensors))
    assert len(source.tensors) == len(tensors) - 2
    assert "buffers skipped" in source.notes[0]


EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"


def with_ends(embedding, output, tied, folder):
    tensors = tensors_of(SMALL)
    ends = {EMBEDDING: embedding, OUTPUT: output}
    tensors = {k: v for k, v in (tensors | ends).items() if v is not None}
    return open_hf(write_folder(folder, tensors, tie_word_embeddings=tied))


def test_tied_ends_are_read_whichever_is_stored(tmp_path):
    e = np.random.default_rng(1).normal(size=(48, 24)).astype(np.float32)
    for n, ends in enumerate([(e, None), (None, e), (e, e.copy())]):
        source = with_ends(*ends, True, tmp_path / str(n))
        assert source.config.tie_embeddings
        assert ("output", "weight") not in source.tensors
        np.testing.assert_array_equal(source.tensors["tok_embeddings", "weight"][...], e)
        assert source.notes == ()  # the files are as config.json has them


def test_ends_said_to_be_tied_that_differ_stay_two_as_in_transformers(tmp_path):
    e = np.random.default_rng(1).normal(size=(48, 24)).astype(np.float32)
    source = with_ends(e, -e, True, tmp_path)
    assert not source.config.tie_embeddings
    np.testing.assert_array_equal(source.tensors["output", "weight"][...], -e.T)
    assert "differs" in source.notes[0]


def test_equal_ends_stay_two_where_the_config_says_so(tmp_path):
    e = np.ones((48, 24), np.float32)
    assert not with_ends(e, e, False, tmp_path).config.tie_embeddings


@pytest.mark.parametrize(
    ("embedding", "output", "tied", "message"),
    [
        (1, None, False, "lacks 'lm_head.weight'.*tie_word_embeddings true"),
        (None, 1, False, "lacks 'model.embed_tokens.weight'"),
        (None, None, True, "lacks 'model.embed_tokens.weight'"),
    ],
)
def test_an_end_that_is_missing_is_named(tmp_path, embedding, output, tied, message):
    e = np.ones((48, 24), np.float32)
    with pytest.raises(ValueError, match=message):
        with_ends(embedding and e, output and e, tied, tmp_path)


Q = "model.layers.1.self_attn.q_proj.weight"
WRONG = {
    "missing": ({Q: None}, {}, f"lacks '{Q}'"),
    "unknown": (
        {"model.layers.0.mlp.router.weight": np.float32(1)},
        {},
        r"model\.safetensors has .*router",
    ),
    "a bias": (
        {"model.layers.0.self_attn.q_proj.bias": np.float32(1)},
        {},
        "q_proj.bias.*attention_bias",
    ),
    "no biases": ({}, {"attention_bias": True}, "lacks .*q_proj.bias"),
    "a layer more": ({}, {"num_hidden_layers": 3}, "lacks .*layers.2.* and 6 more"),
    "a layer less": ({}, {"num_hidden_layers": 1}, "has .*layers.1.*num_hidden_layers=1"),
    "thousands of layers": ({}, {"num_hidden_layers": 4000}, "holds 21 tensors, too few"),
    "a billion layers": ({}, {"num_hidden_layers": 10**9}, "n_layers=1000000000 must be at most"),
    "a shape": ({Q: np.ones((24, 32), np.float32)}, {}, rf"{Q}' has shape \[24, 32\].*\[32, 24\]"),
    "an axis": ({Q: np.ones(32 * 24, np.float32)}, {}, rf"{Q}' has shape \[768\]"),
    "sizes": ({}, {"hidden_size": 32}, r"embed_tokens.weight' has shape \[48, 24\].*\[48, 32\]"),
    "heads": ({}, {"num_key_value_heads": 4}, r"k_proj.weight' has shape \[16, 24\].*\[32, 24\]"),
    "float64": ({Q: np.ones((32, 24))}, {}, f"{Q}' is float64; only float16"),
    "int8": ({Q: np.ones((32, 24), np.int8)}, {}, f"{Q}' is int8.*bfloat16 files"),
    "a scalar": ({EMBEDDING: np.float32(1)}, {}, r"has shape \[\]"),
}


@pytest.mark.parametrize(("tensors", "changes", "message"), WRONG.values(), ids=WRONG)
def test_a_wrong_tensor_is_named_with_its_file(tmp_path, tensors, changes, message):
    given = tensors_of(SMALL) | tensors
    given = {name: np.asarray(w) for name, w in given.items() if w is not None}
    folder = write_folder(tmp_path, given, **changes)
    with pytest.raises(ValueError, match=message) as caught:
        open_hf(folder)
    assert str(folder) in str(caught.value)


# Files


@pytest.fixture
def indexed(tmp_path):
    """A folder of two files, and its index."""
    folder = write_folder(tmp_path / "model", files=2)
    return folder, json.loads((folder / INDEX).read_text())["weight_map"]


OUTSIDE = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "",
    "sub/x.safetensors",
    "a\\b",
    "a\0b",
    "x" * 300,
    "C:x",
    "\ud800",
    3,
    None,
    ["x"],
]


@pytest.mark.parametrize("name", OUTSIDE, ids=map(repr, OUTSIDE))
def test_an_index_names_files_of_its_own_folder_alone(indexed, name):
    folder, weight_map = indexed
    write_index(folder, weight_map | {OUTPUT: name})
    with pytest.raises(ValueError, match=r"index.json places 'lm_head.weight' in") as caught:
        open_source(folder)
    assert str(folder) in str(caught.value)


def test_an_index_naming_a_file_that_is_not_there_is_told(indexed):
    folder, weight_map = indexed
    gone = folder / weight_map[OUTPUT]
    gone.unlink()
    with pytest.raises(FileNotFoundError, match=f"{gone} is not there, and {INDEX} names it"):
        open_source(folder)
    gone.mkdir()
    with pytest.raises(ValueError, match=f"{gone} is a folder, .* not a file"):
        open_source(folder)


@pytest.mark.parametrize(
    "index", [[], {}, {"weight_map": []}, {"weight_map": {}}, {"weight_map": None}], ids=str
)
def test_an_index_without_a_map_is_told(indexed, index):
    folder, _ = indexed
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=INDEX):
        open_source(folder)


def test_an_index_that_lies_about_a_tensor_is_told(indexed):
    folder, weight_map = indexed
    write_index(folder, weight_map | {"model.other": weight_map[OUTPUT]})
    with pytest.raises(ValueError, match=f"{weight_map[OUTPUT]} lacks 'model.other'"):
        open_source(folder)


@pytest.mark.parametrize("kept", [0, 1])
def test_of_a_tensor_in_two_files_the_index_decides(indexed, kept):
    folder, weight_map = indexed
    files = sorted(set(weight_map.values()))
    tensors = tensors_of(SMALL)
    for n, file in enumerate(files):
        held = {name: array for name, array in tensors.items() if weight_map[name] == file}
        write_safetensors(folder / file, held | {OUTPUT: tensors[OUTPUT] + n})
    write_index(folder, weight_map | {OUTPUT: files[kept]})
    source = open_source(folder)
    np.testing.assert_array_equal(source.tensors["output", "weight"][...], tensors[OUTPUT].T + kept)
    assert any(f"one in the index: '{OUTPUT}'" in note for note in source.notes)


def test_a_tensor_in_two_files_that_no_index_places_is_told(indexed):
    folder, weight_map = indexed
    (folder / INDEX).unlink()
    first, second = sorted(set(weight_map.values()))
    (folder / second).write_bytes((folder / first).read_bytes())
    with pytest.raises(ValueError, match=f"{second}: .* lies in {first} too"):
        open_source(folder)


@pytest.mark.parametrize("name", [SINGLE, "config.json", "tokenizer_config.json"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, name):
    folder = write_folder(tmp_path / "model")
    for beside in ("tokenizer.json", "tokenizer_config.json"):
        (folder / beside).write_text("{}")
    outside = tmp_path / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name} is a link out of the folder, to {outside}"):
        open_source(folder)


def test_a_link_to_nothing_or_itself_is_told(tmp_path):
    folder = write_folder(tmp_path)
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("nowhere")
    with pytest.raises(ValueError, match="a link to a file that is not there"):
        open_source(folder)


def test_the_hubs_cache_of_links_is_read_and_no_other_cache_is(tmp_path):
    """snapshots/REVISION/NAME -> ../../blobs/HASH, of the same model."""
    plain = write_folder(tmp_path / "plain", files=2)
    cache = tmp_path / "models--a--b"
    snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for n, file in enumerate(sorted(plain.iterdir())):
        (blobs / f"hash{n}").write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"hash{n}")
    assert open_hf(snapshot).config == open_hf(plain).config
    assert open_hf(tmp_path / "models--a--b/snapshots/0123/.").config.dim == 24
    other = tmp_path / "models--c--d" / "blobs"
    other.mkdir(parents=True)
    (blobs / "hash0").rename(other / "hash0")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(other / "hash0")
    with pytest.raises(ValueError, match="link out of the folder"):
        open_hf(snapshot)


def test_what_a_folder_is_is_told_by_what_lies_there(tmp_path):
    folder = write_folder(tmp_path / "a")
    assert is_hf(folder)
    assert open_source(folder).format == "huggingface"
    (folder / SINGLE).unlink()
    assert is_hf(folder)
    with pytest.raises(ValueError, match=r"has no weights, neither model\.safetensors nor"):
        open_source(folder)
    folder = write_folder(tmp_path / "b")
    (folder / "config.json").unlink()
    assert is_hf(folder)
    with pytest.raises(ValueError, match=r"has no config\.json"):
        open_source(folder)
    (folder / SINGLE).unlink()
    (folder / "config.json").write_text('{"dim": 4}')
    assert not is_hf(folder)
    with pytest.raises(FileNotFoundError, match=r"holds no checkpoint.*Hugging Face"):
        open_source(folder)


# Onto a mesh, and into a native checkpoint


@pytest.mark.parametrize("shape", [{"tensor": 2}, {"fsdp": 4}, {"fsdp": 2, "tensor": 2}], ids=str)
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_loaded_onto_a_mesh_is_the_folder(tmp_path, shape, tied):
    folder = write_folder(tmp_path, files=2, tie_word_embeddings=tied, **BIASED)
    mesh = make_mesh(**shape)
    one, many = llama_jax.load(folder), llama_jax.load(folder, mesh=mesh)
    assert_same_weights(one, many)
    tokens = jnp.arange(16).reshape(4, 4)
    positions = jnp.broadcast_to(jnp.arange(4), (4, 4))
    with jax.set_mesh(mesh):
        sharded, _ = forward(many, tokens, positions)
    np.testing.assert_allclose(sharded, forward(one, tokens, positions)[0], atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_folder_loads_as_the_folder(tmp_path, name):
    done = convert(GOLDEN / name, tmp_path / "native")
    assert done.source.format == "huggingface"
    for dtype in ("float32", "bfloat16"):
        one = llama_jax.load(GOLDEN / name, dtype=dtype)
        assert_same_weights(one, llama_jax.load(tmp_path / "native", dtype=dtype))


# Whatever the bytes are


@pytest.mark.parametrize(
    "rounds", [300, pytest.param(4000, marks=pytest.mark.slow)], ids=["some", "many"]
)
def test_a_damaged_folder_is_read_or_refused_in_words(tmp_path, rounds):
    rng = random.Random(0)
    folder = write_folder(tmp_path, files=2, tie_word_embeddings=True,
                          rope_scaling={"rope_type": "llama3", **LLAMA3})  # fmt: skip
    whole = {file.name: file.read_bytes() for file in folder.iterdir()}
    refused = []
    for _ in range(rounds):
        name = rng.choice(sorted(whole))
        content = whole[name]
        if name.endswith(".safetensors"):
            end = 8 + int.from_bytes(content[:8], "little")
            content = mutated(content[:end], rng) + content[end:]
        else:
            content = mutated(content, rng)
        (folder / name).write_bytes(content)
        try:
            source = open_source(folder)
            for tensor in source.tensors.values():
                assert tensor[...].shape == tensor.shape
        except (ValueError, FileNotFoundError) as error:
            refused.append(str(error))
        (folder / name).write_bytes(whole[name])
    assert all(str(folder) in message for message in refused)
    assert rounds / 3 < len(refused) < rounds


@pytest.mark.slow
def test_a_gigabyte_converts_in_a_few_blocks_of_memory(tmp_path):
    sizes = {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 8,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 32000,
    }
    given = SMALL | sizes
    rng = np.random.default_rng(0)
    rows = [(row.hf, row.shape if "embed" in row.hf else row.shape[::-1])
            for row in names_table(read(tmp_path / "c", **sizes).config)]  # fmt: skip
    block = rng.integers(0, 2**14, 2**22, dtype=np.uint16).view(ml_dtypes.bfloat16)
    folder = tmp_path / "model"
    weight_map = {}
    for n in range(2):
        file = f"model-{n}.safetensors"
        part = {name: np.resize(block, shape) for name, shape in rows[n::2]}
        folder.mkdir(exist_ok=True)
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
        del part
    write_index(folder, weight_map)
    (folder / "config.json").write_text(json.dumps(given))
    total = sum(os.path.getsize(folder / f"model-{n}.safetensors") for n in range(2))
    with AnonymousPeak() as memory:
        done = convert(folder, tmp_path / "native")
    assert total > 0.9e9
    assert done.written.bytes > 0.9e9
    assert memory.added < 300e6
