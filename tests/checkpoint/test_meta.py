"""Meta's folders become a config and every weight, or one error that says what is wrong."""

import json
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import helpers
import ml_dtypes
import numpy as np
import pytest
import torch_zip
from meta_folder import States, assert_holds, config_of, cut, small_1b, weights_of, write

from llama_jax.checkpoint import meta
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.meta import is_meta, open_meta
from llama_jax.checkpoint.meta.params import read_params
from llama_jax.checkpoint.published import family, parameter_count
from llama_jax.config import Config, Llama3Scaling, published

GOLDEN = helpers.GOLDEN / "meta"


@pytest.fixture
def config(tmp_path) -> Config:
    return config_of(tmp_path)


@pytest.fixture
def weights(config) -> dict[str, np.ndarray]:
    return weights_of(config)


# Whole checkpoints


@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.parametrize("shards", [1, 2, 4])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32])
def test_shards_join_to_the_weights_they_were_cut_from(tmp_path, shards, embedding_axis, dtype):
    weights = weights_of(config_of(tmp_path), dtype)
    source = open_meta(write(tmp_path / "m", cut(weights, shards, embedding_axis)))
    assert_holds(source, weights)
    assert [file.name for file in source.files] == [
        f"consolidated.{rank:02}.pth" for rank in range(shards)
    ]
    unstated = open_meta(write(tmp_path / "m", cut(weights, shards, embedding_axis), vocab_size=-1))
    assert unstated.config == source.config


def test_any_part_of_a_weight_can_be_read(tmp_path, weights):
    source = open_meta(write(tmp_path / "m", cut(weights, 4, 1)))
    for path, part in {
        ("tok_embeddings", "weight"): np.s_[5:9, 3:30],
        ("layers_1", "attention", "wo"): np.s_[7:25, 1:2],
        ("layers_1", "feed_forward", "w1"): np.s_[:, 90:],
        ("layers_0", "feed_forward", "w2"): np.s_[24:24, :],
        ("norm", "scale"): (np.s_[4:6],),
    }.items():
        tensor = source.tensors[path]
        np.testing.assert_array_equal(tensor[part], tensor[...][part])
        assert tensor[part].flags.owndata
        assert tensor[part].flags.c_contiguous


def test_tensors_that_share_a_storage_and_lie_transposed_are_read(tmp_path, weights):
    state = {name: value.copy() for name, value in weights.items()}
    flat = np.concatenate(
        [weights[f"layers.0.attention.{w}.weight"].T.ravel() for w in ("wq", "wo")]
    )
    for n, w in enumerate(("wq", "wo")):
        state[f"layers.0.attention.{w}.weight"] = torch_zip.View(flat, n * 1024, (32, 32), (1, 32))
    assert_holds(open_meta(write(tmp_path / "m", [state])), weights)


@pytest.mark.parametrize("name", ["llama1", "llama2-gqa", "llama3", "llama3.1"])
def test_files_of_metas_own_code_open(name):
    source = open_meta(GOLDEN / name)
    assert all(np.isfinite(t[...].astype(np.float32)).all() for t in source.tensors.values())
    assert source.config.tie_embeddings is False
    assert source.tokenizer is None
    assert (
        source.config.max_seq_len
        == dict(
            zip(
                ("llama1", "llama2-gqa", "llama3", "llama3.1"),
                (2048, 4096, 8192, 131072),
                strict=True,
            )
        )[name]
    )


def test_one_file_and_two_of_a_real_model_are_the_same_model(shared):
    one = open_meta(shared / "models" / "stories260K-meta")
    two = open_meta(shared / "models" / "stories260K-meta-2shards")
    assert one.config == two.config
    assert one.config.tie_embeddings
    assert one.tokenizer == shared / "models" / "stories260K-meta" / "tokenizer.model"
    assert family(one.config) == "a LLaMA of 260,032 parameters, none of Meta's"
    for path, tensor in one.tensors.items():
        assert tensor[...].tobytes() == two.tensors[path][...].tobytes()


def test_what_meta_left_in_the_files_is_recognised(tmp_path):
    assert not is_meta(tmp_path)
    assert is_meta(GOLDEN / "llama1")
    (tmp_path / "consolidated.00.pth").touch()
    assert is_meta(tmp_path)


# params.json


def test_widths_are_the_published_ones(tmp_path):
    for dim, multiple, multiplier, width in [
        (4096, 256, None, 11008),
        (5120, 256, None, 13824),
        (6656, 256, None, 17920),
        (8192, 256, None, 22016),
        (8192, 4096, 1.3, 28672),
        (4096, 1024, 1.3, 14336),
        (16384, 4096, 1.2, 53248),
        (2048, 256, 1.5, 8192),
        (3072, 256, 1.0, 8192),
    ]:
        sizes = {"dim": dim, "multiple_of": multiple, "ffn_dim_multiplier": multiplier}
        assert config_of(tmp_path, **sizes, n_heads=32).hidden_dim == width


PUBLISHED_PARAMS = {
    "llama-7b": {"dim": 4096, "n_layers": 32, "n_heads": 32, "norm_eps": 1e-6, "multiple_of": 256},
    "llama-2-70b": {
        **{"dim": 8192, "n_layers": 80, "n_heads": 64, "n_kv_heads": 8, "norm_eps": 1e-5},
        **{"multiple_of": 4096, "ffn_dim_multiplier": 1.3},
    },
    "llama-3.2-1b": {
        **{"dim": 2048, "n_layers": 16, "n_heads": 32, "n_kv_heads": 8, "norm_eps": 1e-5},
        **{"vocab_size": 128256, "multiple_of": 256, "ffn_dim_multiplier": 1.5},
        **{"rope_theta": 500000.0, "use_scaled_rope": True},
    },
    "llama-3.2-3b": {
        **{"dim": 3072, "n_layers": 28, "n_heads": 24, "n_kv_heads": 8, "norm_eps": 1e-5},
        **{"vocab_size": 128256, "multiple_of": 256, "ffn_dim_multiplier": 1.0},
        **{"rope_theta": 500000.0, "use_scaled_rope": True, "quantization_args": None},
    },
    "llama-3.1-405b": {
        **{"dim": 16384, "n_layers": 126, "n_heads": 128, "n_kv_heads": 8, "norm_eps": 1e-5},
        **{"vocab_size": 128256, "multiple_of": 4096, "ffn_dim_multiplier": 1.2},
        **{"rope_theta": 500000.0, "use_scaled_rope": True},
    },
}


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_metas_params_give_the_published_config(tmp_path, name):
    known = published()[name]
    given = {"vocab_size": known.vocab_size, **PUBLISHED_PARAMS[name]}
    (tmp_path / "params.json").write_text(json.dumps({"model": given}))
    params = read_params(tmp_path / "params.json")
    config = params.config.replace(tie_embeddings=known.tie_embeddings)
    assert config.replace(max_seq_len=known.max_seq_len) == known
    assert meta.default_max_seq_len(config) == known.max_seq_len
    assert params.unknown_keys == ()


def test_the_factor_that_llama_3_2_needs_is_supplied_said_and_overridden(tmp_path):
    source = open_meta(small_1b(tmp_path))
    assert source.config.rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)
    assert any("32 supplied" in note and "pass rope_factor" in note for note in source.notes)
    source = open_meta(tmp_path / "m", rope_factor=8)
    assert source.config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert not any("supplied" in note for note in source.notes if "RoPE" in note)
    with pytest.raises(ValueError, match=r"factor=0.5"):
        open_meta(tmp_path / "m", rope_factor=0.5)


def test_other_scaled_models_keep_metas_factor(tmp_path, weights):
    source = open_meta(write(tmp_path / "m", [weights], use_scaled_rope=True))
    assert source.config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 8192)
    assert source.config.max_seq_len == 131072
    write(tmp_path / "m", [weights])
    assert open_meta(tmp_path / "m").config.rope_scaling is None
    assert open_meta(tmp_path / "m", rope_factor=4).config.rope_scaling.factor == 4


def test_max_seq_len_follows_the_family_the_file_or_the_caller(tmp_path, weights):
    for params, expected in [
        ({}, 4096),
        ({"norm_eps": 1e-6}, 2048),
        ({"rope_theta": 500000.0}, 8192),
        ({"rope_theta": 1e6}, 16384),
        ({"max_seq_len": 512}, 512),
    ]:
        source = open_meta(write(tmp_path / "m", [weights], **params))
        assert source.config.max_seq_len == expected
        assert any("max_seq_len" in note for note in source.notes) == ("max_seq_len" not in params)
        assert open_meta(tmp_path / "m", max_seq_len=100).config.max_seq_len == 100
    with pytest.raises(ValueError, match="max_seq_len=0"):
        open_meta(tmp_path / "m", max_seq_len=0)


def test_unknown_keys_are_noted_and_known_ones_ignored(tmp_path, weights):
    source = open_meta(
        write(tmp_path / "m", [weights], vision_chunk_size=4, lora_args={"rank": 16}, moe=[1])
    )
    assert [note for note in source.notes if "unknown" in note] == [
        "params.json has unknown keys, ignored: 'moe'"
    ]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dim", 0),
        ("dim", -4),
        ("dim", 33),
        ("dim", 10**400),
        ("dim", "32"),
        ("dim", [[]]),
        ("dim", True),
        ("dim", None),
        ("n_heads", 3),
        ("n_kv_heads", 3),
        ("n_layers", 2.0),
        ("vocab_size", -2),
        ("multiple_of", 0),
        ("norm_eps", "small"),
        ("norm_eps", float("nan")),
        ("norm_eps", 0),
        ("rope_theta", float("inf")),
        ("rope_theta", 1),
        ("ffn_dim_multiplier", -1),
        ("ffn_dim_multiplier", 1e-9),
        ("use_scaled_rope", 1),
        ("max_seq_len", -1),
    ],
)
def test_a_malformed_value_is_an_error_that_names_file_and_key(tmp_path, weights, key, value):
    write(tmp_path / "m", [weights], **{key: value})
    named = "hidden_dim" if value == 1e-9 else key
    with pytest.raises(ValueError, match=rf"m/params.json: .*{named}"):
        open_meta(tmp_path / "m")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "[" * 100000, '{"dim": ' + "9" * 9999 + "}"])
def test_a_params_json_that_is_none_is_an_error(tmp_path, weights, text):
    write(tmp_path / "m", [weights])
    (tmp_path / "m" / "params.json").write_text(text)
    with pytest.raises(ValueError, match=r"m/params.json"):
        open_meta(tmp_path / "m")


# Broken checkpoints


def broken(tmp_path: Path, edit: Callable[[States], object], shards: int = 2, **params) -> str:
    states = cut(weights_of(config_of(tmp_path)), shards)
    edit(states)
    write(tmp_path / "m", states, **params)
    with pytest.raises(ValueError, match=str(tmp_path)) as caught:
        open_meta(tmp_path / "m")
    return str(caught.value)


def test_files_missing_or_too_many_are_named(tmp_path, weights):
    folder = tmp_path / "m"
    with pytest.raises(ValueError, match=r"no params.json"):
        open_meta(folder)
    write(folder, [])
    with pytest.raises(ValueError, match=r"no consolidated.00.pth"):
        open_meta(folder)
    write(folder, cut(weights, 4))
    (folder / "consolidated.01.pth").rename(folder / "aside")
    with pytest.raises(ValueError, match=r"no consolidated.01.pth"):
        open_meta(folder)
    (folder / "aside").rename(folder / "consolidated.01.pth")
    (folder / "consolidated.03.pth").rename(folder / "consolidated.3.pth")
    assert len(open_meta(folder).files) == 4
    (folder / "consolidated.03.pth").touch()
    with pytest.raises(ValueError, match="both shard 3"):
        open_meta(folder)


@pytest.mark.parametrize("embedding_axis", [0, 1])
@pytest.mark.parametrize("vocab_size", [48, -1])
def test_a_last_shard_missing_is_seen_by_the_shapes(tmp_path, weights, embedding_axis, vocab_size):
    states = cut(weights, 4, embedding_axis)
    folder = write(tmp_path / "m", states[:3], vocab_size=vocab_size)
    with pytest.raises(ValueError, match=r"3 files .* has 4: consolidated.03.pth is not there"):
        open_meta(folder)
    write(folder, [*states, states[0]], vocab_size=vocab_size)
    with pytest.raises(ValueError, match=r"5 files .* has 4: remove"):
        open_meta(folder)


def test_missing_and_unknown_tensors_are_named(tmp_path):
    name = "layers.1.attention.wo.weight"
    message = broken(tmp_path, lambda states: [s.pop(name) for s in states])
    assert f"consolidated.00.pth lacks '{name}'" in message
    assert f"consolidated.01.pth lacks '{name}'" in broken(tmp_path, lambda s: s[1].pop(name))
    assert f"consolidated.00.pth lacks '{name}'" in broken(tmp_path, lambda s: s[0].pop(name))
    extra = np.ones(1, np.float32)
    message = broken(tmp_path, lambda states: [s.update(odd=extra) for s in states])
    assert "has 'odd', unknown" in message
    assert "n_layers=1" in broken(tmp_path, lambda states: None, n_layers=1)
    assert "lacks 'layers.2.attention_norm.weight'" in broken(tmp_path, lambda s: 0, n_layers=3)
    assert "too few" in broken(tmp_path, lambda states: None, n_layers=4000)


def test_a_wrong_shape_is_named_with_what_was_expected(tmp_path):
    def edit(states):
        states[1]["layers.1.feed_forward.w2.weight"] = np.ones((32, 47), np.float32)

    assert broken(tmp_path, edit).endswith(
        "consolidated.01.pth: 'layers.1.feed_forward.w2.weight' has shape [32, 47] where "
        "params.json says [32, 48], its part of [32, 96] in 2 files; one of the two is damaged or "
        "belongs to another model"
    )
    assert "'norm.weight' has shape [1]" in broken(
        tmp_path, lambda s: s[0].update({"norm.weight": np.ones(1, np.float32)})
    )
    number = torch_zip.View(np.ones(1, np.float32), 0, (), ())
    assert "'tok_embeddings.weight' has shape []" in broken(
        tmp_path, lambda s: s[0].update({"tok_embeddings.weight": number})
    )
    assert "says [" in broken(tmp_path, lambda states: None, dim=64)
    assert "says [47, 32];" in broken(tmp_path, lambda states: None, 1, vocab_size=47)
    assert "2 do not divide" in broken(tmp_path, lambda states: None, vocab_size=47)


def test_dtypes_are_a_weights_and_one_for_all_shards_of_it(tmp_path, weights):
    name = "layers.0.attention.wq.weight"

    def cast(dtype, *ranks):
        return lambda s: [s[r].update({name: s[r][name].astype(dtype)}) for r in ranks]

    assert f"'{name}' is float16, and float32 in" in broken(tmp_path, cast(np.float16, 1))
    assert f"'{name}' is int8" in broken(tmp_path, cast(np.int8, 0, 1))
    assert f"'{name}' is float64" in broken(tmp_path, cast(np.float64, 0, 1))
    states = cut(weights, 2)
    cast(np.float16, 0, 1)(states)
    assert open_meta(write(tmp_path / "m", states)).tensors[
        "layers_0", "attention", "wq"
    ].dtype == (np.float16)


def apart(states, by):
    states[1]["layers.0.ffn_norm.weight"] = states[0]["layers.0.ffn_norm.weight"].copy()
    states[1]["layers.0.ffn_norm.weight"][31] += by


def test_copies_of_a_norm_that_differ_are_an_error(tmp_path):
    assert "copies of 'layers.0.ffn_norm.weight' that differ by more than 1%" in broken(
        tmp_path, lambda states: apart(states, 0.5)
    )


def test_copies_of_a_norm_that_rounding_parted_are_a_note(tmp_path, weights):
    states = cut(weights, 2)
    apart(states, 1e-6)
    source = open_meta(write(tmp_path / "m", states))
    assert any("copies differ a little: 'layers.0.ffn_norm" in note for note in source.notes)
    wanted = states[0]["layers.0.ffn_norm.weight"]
    np.testing.assert_array_equal(source.tensors["layers_0", "ffn_norm", "scale"][...], wanted)


def test_a_quantized_model_is_refused_as_one(tmp_path):
    def int4(states):
        for state in states:
            name = "layers.0.attention.wq"
            state[f"{name}.weight"] = state[f"{name}.weight"].astype(np.int8)
            state[f"{name}.scales"] = np.ones(2, np.float32)

    message = broken(tmp_path, int4, quantization_args={"scheme": "int4_weight_int8_dynamic"})
    assert "int4 weights cut into 2 files are not read" in message


# Buffers, copies, ties


def test_buffers_are_skipped_by_name_and_noted(tmp_path, weights):
    buffers = {
        "rope.freqs": np.ones(2, np.float32),
        "layers.0.attention.mask": np.ones((1, 1), np.bool_),
        "layers.1.attention.inner_attention.rope.freqs": np.ones(2, np.float32),
    }
    source = open_meta(write(tmp_path / "m", [{**weights, **buffers}]))
    assert_holds(source, weights)
    assert any("rope.freqs" in note for note in source.notes)
    assert "rope.freqs.x" in broken(
        tmp_path, lambda s: [t.update({"rope.freqs.x": np.ones(1)}) for t in s]
    )


def repeated(weights, order) -> States:
    """Eight files of a model with four key-value heads, whose heads lie in the files in `order`."""
    states = cut(weights, 8)
    for layer in range(2):
        for w in ("wk", "wv"):
            name = f"layers.{layer}.attention.{w}.weight"
            heads = np.split(weights[name], 4)
            for state, head in zip(states, order, strict=True):
                state[name] = heads[head]
    return states


def test_heads_stored_twice_are_taken_once(tmp_path, weights):
    folder = write(tmp_path / "m", repeated(weights, [0, 0, 1, 1, 2, 2, 3, 3]))
    source = open_meta(folder)
    assert_holds(source, weights)
    assert len(source.tensors["layers_0", "attention", "wk"].pieces) == 4
    write(folder, cut(weights, 8))  # half a head in each is as clear
    assert_holds(open_meta(folder), weights)


@pytest.mark.parametrize("order", [[0, 1, 2, 3] * 2, [0, 0, 1, 1, 2, 2, 3, 1]])
def test_heads_stored_twice_otherwise_are_an_error(tmp_path, weights, order):
    write(tmp_path / "m", repeated(weights, order))
    with pytest.raises(ValueError, match=r"'layers.0.attention.wk.weight' differs"):
        open_meta(tmp_path / "m")


@pytest.mark.parametrize(("shards", "embedding_axis"), [(1, 0), (2, 0), (2, 1)])
def test_an_output_layer_equal_to_the_embedding_is_tied(tmp_path, weights, shards, embedding_axis):
    weights["output.weight"] = weights["tok_embeddings.weight"].copy()
    source = open_meta(write(tmp_path / "m", cut(weights, shards, embedding_axis)))
    assert source.config.tie_embeddings
    assert any("tied" in note for note in source.notes)
    assert_holds(source, weights)
    weights["output.weight"][-1, -1] += 1e-6
    source = open_meta(write(tmp_path / "m", cut(weights, shards, embedding_axis)))
    assert not source.config.tie_embeddings
    assert_holds(source, weights)


def test_an_output_layer_not_stored_is_the_embedding_unless_the_model_had_one(
    tmp_path, weights, config, monkeypatch
):
    del weights["output.weight"]
    folder = write(tmp_path / "m", cut(weights, 2))
    source = open_meta(folder)
    assert source.config.tie_embeddings
    assert any("not stored" in note for note in source.notes)
    monkeypatch.setattr(meta, "matching", lambda c: {"llama-9-1b": config})
    with pytest.raises(ValueError, match=r"lacks 'output.weight', which llama-9-1b has"):
        open_meta(folder)


def test_the_embedding_is_compared_a_few_megabytes_at_a_time(tmp_path):
    sizes = {"vocab_size": 2**15, "dim": 256, "n_layers": 1}
    weights = weights_of(config_of(tmp_path, **sizes), np.float32)
    weights["output.weight"] = weights["tok_embeddings.weight"]  # 32 MB each
    folder = write(tmp_path / "m", cut(weights, 2, 1), **sizes)
    tracemalloc.start()
    try:
        assert open_meta(folder).config.tie_embeddings
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20


# Names for people


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("llama-7b", "LLaMA 7B"),
        ("llama-2-13b", "Llama 2 13B"),
        ("code-llama-34b", "Code Llama 34B"),
        ("llama-3.2-1b", "Llama 3.2 1B"),
        ("llama-3.3-70b", "Llama 3.1 70B or Llama 3.3 70B"),
        ("tiny", "the tiny model of configs/models"),
    ],
)
def test_a_published_model_is_called_by_its_name(name, title):
    assert family(published()[name].replace(max_seq_len=77)) == title


def test_a_model_nobody_published_is_called_by_its_size():
    config = published()["llama-3.1-8b"].replace(rope_theta=10000.0)
    assert parameter_count(config) == 8_030_261_248
    assert family(config) == "a LLaMA of 8,030,261,248 parameters, none of Meta's"


# Damage


def fuzz(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(1)
    golden = GOLDEN / "llama3"
    files = {file.name: file.read_bytes() for file in golden.iterdir() if file.suffix != ".npz"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    pickle = files["consolidated.01.pth"].index(b"\x80\x02"), 2000
    spots = {"params.json": (0, len(files["params.json"])), "consolidated.01.pth": pickle}
    for turn in range(rounds):
        name = rng.choice(["params.json", "params.json", "consolidated.01.pth"])
        changed = bytearray(files[name])
        for _ in range(rng.choice((1, 1, 2, 9))):
            at = spots[name][0] + rng.randrange(spots[name][1])
            changed[at % len(changed)] = rng.choice((rng.randrange(256), *b"0123456789.-e"))
        (tmp_path / name).write_bytes(changed)
        try:
            for tensor in open_meta(tmp_path).tensors.values():
                tensor[...]
        except ValueError as error:
            assert str(tmp_path) in str(error), (turn, error)  # noqa: PT017
        (tmp_path / name).write_bytes(files[name])


def test_damaged_folders_end_in_a_value_error(tmp_path):
    fuzz(tmp_path, 300)


@pytest.mark.slow
def test_damaged_folders_end_in_a_value_error_for_thousands_of_rounds(tmp_path):
    fuzz(tmp_path, 2000)


@pytest.mark.parametrize("name", ["params.json", "consolidated.01.pth", "tokenizer.model"])
def test_a_link_out_of_the_folder_is_refused(tmp_path, weights, name):
    folder = write(tmp_path / "model", cut(weights, 2))
    (folder / "tokenizer.model").write_bytes(b"pieces")
    (tmp_path / "link").symlink_to(folder)  # a checkpoint may be reached through one
    assert open_meta(tmp_path / "link").tokenizer == tmp_path / "link" / "tokenizer.model"
    outside = (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name} is a link out of the folder, to {outside}"):
        open_meta(folder)


@pytest.mark.parametrize("linked", [False, True])
def test_the_tokenizer_that_all_sizes_share_is_found_and_nothing_behind_it(
    tmp_path, weights, linked
):
    folder = write(tmp_path / "7B", cut(weights, 1))
    shared = tmp_path / "tokenizer.model"
    shared.write_bytes(b"pieces")
    if linked:
        (folder / "tokenizer.model").symlink_to("../tokenizer.model")
    assert open_meta(folder).tokenizer.resolve() == shared
    shared.unlink()
    shared.symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"tokenizer\.model is a link out of the folder, to /etc/"):
        open_meta(folder)


def test_opening_leaves_the_files_as_they_were(tmp_path, weights):
    folder = write(tmp_path / "m", [weights])
    before = {file: file.read_bytes() for file in folder.iterdir()}
    open_meta(folder)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert list(read_state_dict(folder / "consolidated.00.pth")) == list(weights)
