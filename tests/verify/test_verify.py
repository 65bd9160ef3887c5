"""`verify`: nothing in a checkpoint is wrong unnoticed, and nothing right is called wrong."""

import dataclasses
import json
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from helpers import GOLDEN_META, config_of, run

import llama_jax
from llama_jax.checkpoint import native
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.export_tensor import to_half_split
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import Llama3Scaling
from llama_jax.verify.compare import compare, compare_with_model, probes

BF16 = np.dtype(ml_dtypes.bfloat16)
WQ, WK = ("layers_1", "attention", "wq"), ("layers_1", "attention", "wk")
W1, W3 = ("layers_0", "feed_forward", "w1"), ("layers_0", "feed_forward", "w3")


@pytest.fixture
def config():
    return config_of(
        rope_theta=500000.0, rope_scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192), max_seq_len=131072
    )


@pytest.fixture
def tensors(config):
    rng = np.random.default_rng(0)
    return {
        w.path: rng.normal(size=w.shape, scale=0.3).astype(np.float32).astype(BF16)
        for w in names_table(config)
    }


@pytest.fixture
def good(tmp_path, config, tensors):
    native.write(tmp_path / "good", config, tensors)
    return tmp_path / "good"


@pytest.fixture
def compared(tmp_path, config, tensors, good):
    """Compares the good checkpoint with one that has some tensors or fields changed."""

    def compared(changed=None, **fields):
        other = tmp_path / "other"
        native.write(
            other, config.replace(**fields), {**tensors, **(changed or {})}, overwrite=True
        )
        return compare(open_checkpoint(good), open_checkpoint(other))

    return compared


def wrong(comparison):
    return {tensor.path: tensor for tensor in comparison.tensors if not tensor.same}


def logits(comparison):
    return {one.where: one for one in comparison.logits}


# What is the same


def test_a_checkpoint_is_itself_in_every_format_and_sharding(tmp_path, good):
    export(good, tmp_path / "hf", format="hf", shards=3)
    reference = open_checkpoint(good)
    told = []
    found = compare(reference, open_checkpoint(tmp_path / "hf"), lambda *n: told.append(n))
    assert found.same
    assert found.fields == found.unmatched == found.suspicions == ()
    assert {t.differing for t in found.tensors} == {0}
    assert {one.largest for one in found.logits} == {0}
    assert told[-1][0] == told[-1][1]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounding_to_another_dtype_is_no_error_and_is_counted(tmp_path, config, dtype):
    rng = np.random.default_rng(1)
    tensors = {w.path: rng.normal(size=w.shape).astype(np.float32) for w in names_table(config)}
    native.write(tmp_path / "a", config, tensors)
    native.write(tmp_path / "b", config, tensors, dtype=dtype)
    for one, two in (("a", "b"), ("b", "a")):
        found = compare(open_checkpoint(tmp_path / one), open_checkpoint(tmp_path / two))
        assert found.same
        differing = sum(t.differing for t in found.tensors)
        assert (differing == 0) == (dtype == "float32")
        if differing:
            assert all(t.rounded for t in found.tensors)
            assert 0 < max(t.relative for t in found.tensors) < 2.0**-8


def test_a_wrong_number_is_not_excused_as_rounding(compared, tensors):
    changed = {path: tensor.astype(np.float32) for path, tensor in tensors.items()}
    changed[WQ][3, 4] += 0.02
    found = compared(changed)
    assert list(wrong(found)) == [WQ]
    assert found.tensors[0].dtypes == ("bfloat16", "float32")


def test_a_longer_context_is_told_and_is_no_difference(compared):
    found = compared(max_seq_len=4096)
    assert [field.name for field in found.fields] == ["max_seq_len"]
    assert found.same


def test_a_nan_is_itself(compared, tensors, good, config):
    tensors[WQ][0, 0] = np.nan
    native.write(good, config, tensors, overwrite=True)
    assert compared().same
    tensors[WK][5, 5] = np.nan
    (one,) = wrong(compared()).values()
    assert one.largest == np.inf


def test_a_nan_that_both_have_is_told(compared, tensors, good, config):
    tensors["norm", "scale"][0] = np.nan
    native.write(good, config, tensors, overwrite=True)
    found = compared()
    assert found.same
    norm = next(t for t in found.tensors if t.path == ("norm", "scale"))
    assert norm.not_finite == (1, 1)
    assert all(one.not_finite[0] == one.not_finite[1] > 0 for one in found.logits)
    result = run("verify", good, good)
    assert result.exit_code == 0
    assert "norm.scale holds NaN or infinity: 1 in the first, 1 in the second" in result.stdout
    assert "near logits that are NaN or infinite: " in result.stdout


def test_a_nan_that_only_one_has_makes_its_logits_different(compared, tensors):
    changed = tensors["norm", "scale"].copy()
    changed[0] = np.nan
    found = compared({("norm", "scale"): changed})
    assert not found.same
    assert not any(one.same for one in found.logits)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cast_that_overflows_is_no_rounding(tmp_path, config, dtype):
    rng = np.random.default_rng(1)
    tensors = {w.path: rng.normal(size=w.shape).astype(np.float32) for w in names_table(config)}
    tensors[WQ][0, 0] = {"float16": 1e30, "bfloat16": 3.4e38}[dtype]
    native.write(tmp_path / "a", config, tensors)
    native.write(tmp_path / "b", config, tensors, dtype=dtype)
    for one, two in (("a", "b"), ("b", "a")):
        found = compare(open_checkpoint(tmp_path / one), open_checkpoint(tmp_path / two))
        (different,) = wrong(found).values()
        assert (different.path, different.largest) == (WQ, np.inf)
        assert sorted(different.not_finite) == [0, 1]
        assert not found.same
    result = run("verify", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 1
    assert f"{'.'.join(WQ)} holds NaN or infinity: 0 in the first, 1 in the" in result.stdout
    assert "Warning" not in result.stderr


# Planted errors


@pytest.mark.parametrize("bit", [0, 7, 15])
def test_one_flipped_bit_is_found(compared, tensors, bit):
    changed = tensors[W3].copy()
    changed.view(np.uint16)[17, 30] ^= 1 << bit
    found = compared({W3: changed})
    assert not found.same
    (one,) = wrong(found).values()
    assert (one.path, one.differing) == (W3, 1)
    before, after = (float(t[17, 30]) for t in (tensors[W3], changed))
    assert one.largest == pytest.approx(abs(before - after), rel=1e-6)
    assert logits(found)["near"].largest > 0


def test_a_flipped_sign_of_zero_is_found(compared, tensors, config, good):
    tensors[W1][0, 0] = 0
    native.write(good, config, tensors, overwrite=True)
    changed = tensors[W1].copy()
    changed[0, 0] = -0.0
    (one,) = wrong(compared({W1: changed})).values()
    assert (one.differing, one.largest, one.relative) == (1, 0, 0)


def unhalved(columns, head_dim):
    """From Hugging Face's order of pairs to Meta's, of an [in, out] weight."""
    rows = columns.T
    turned = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:]).swapaxes(1, 2)
    return turned.reshape(rows.shape).T


def test_keys_unpermuted_as_if_they_had_as_many_heads_as_the_queries_are_found(
    compared, tensors, config
):
    theirs = to_half_split(np.ascontiguousarray(tensors[WK].T), config.head_dim).T
    np.testing.assert_array_equal(unhalved(theirs, config.head_dim), tensors[WK])
    wrong_head_dim = config.n_kv_heads * config.head_dim // config.n_heads
    found = compared({WK: unhalved(theirs, wrong_head_dim)})
    assert list(wrong(found)) == [WK]
    assert not logits(found)["near"].same
    (told,) = found.suspicions
    assert told.endswith("was brought from Hugging Face's order as 4 heads, and it has 2")


@pytest.mark.parametrize("path", [WQ, WK])
def test_weights_left_in_hugging_faces_order_are_found(compared, tensors, config, path):
    theirs = to_half_split(np.ascontiguousarray(tensors[path].T), config.head_dim).T
    found = compared({path: theirs})
    assert list(wrong(found)) == [path]
    (told,) = found.suspicions
    assert "the two are in different orders of pairs" in told
    assert "other" not in told  # which of them is right cannot be seen


def test_exchanged_halves_of_a_feed_forward_are_found(compared, tensors):
    found = compared({W1: tensors[W3], W3: tensors[W1]})
    assert set(wrong(found)) == {W1, W3}
    assert not logits(found)["near"].same
    assert found.suspicions == (
        "layers_0.feed_forward: w1 of one is w3 of the other, so the two are exchanged",
    )


def test_a_rope_base_of_10000_in_place_of_500000_is_found(compared):
    found = compared(rope_theta=10000.0)
    assert not found.same
    assert [field.name for field in found.fields] == ["rope_theta"]
    assert not wrong(found)
    for one in found.logits:
        assert one.largest > 0.05 * one.scale


def test_a_scaling_factor_of_8_in_place_of_32_shows_at_far_positions(compared):
    found = compared(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192))
    assert not found.same
    assert not wrong(found)
    near, far = logits(found)["near"], logits(found)["far"]
    assert near.largest < 1e-3 * near.scale  # greedy text would not show it
    assert far.largest > 0.05 * far.scale


def test_a_block_of_far_positions_alone_would_not_show_it(config):
    """Why the far probe spreads: RoPE sees distances."""
    tokens, (near, far) = probes(config)
    assert near.tolist() == list(range(16))
    assert far[:2].tolist() == [0, 1]
    assert tokens.max() < config.vocab_size
    assert far[-1] == 99_999
    gaps = np.diff(far)
    assert (np.diff(gaps) >= 0).all()
    for length in (1, 2, 5, 16, 100, 8192):
        for positions in probes(config.replace(max_seq_len=length))[1]:
            assert positions[0] == 0
            assert positions[-1] <= length - 1
            assert (np.diff(positions) > 0).all()


def test_tensors_that_only_one_has_are_named(compared, tensors):
    del tensors["output", "weight"]
    found = compared(tie_embeddings=True)
    assert not found.same
    (told,) = found.unmatched
    assert told.startswith("output.weight is only in ")


def test_other_sizes_are_named_and_other_vocabularies_not_compared(good):
    found = compare(open_checkpoint(good), open_checkpoint(GOLDEN_META / "llama1"))
    assert not found.same
    assert found.logits == ()
    assert any("tok_embeddings.weight has shape [130, 64]" in line for line in found.unmatched)


# Our model against the reference


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["llama1", "llama3.1"])
def test_the_model_computes_what_checkpoints_mean(name, dtype):
    near, far = compare_with_model(GOLDEN_META / name, dtype=dtype)
    assert near.same
    assert far.same
    assert far.positions[-1] == {"llama1": 2047, "llama3.1": 99_999}[name]


@pytest.fixture
def untraced():
    """A jitted function that was traced before would not notice what a test changes."""
    jax.clear_caches()
    yield
    jax.clear_caches()


def test_a_model_that_computes_something_else_is_found(monkeypatch, untraced):
    from llama_jax.model import transformer as model

    scaled = model.rope_frequencies
    monkeypatch.setattr(model, "rope_frequencies", lambda c: scaled(c.replace(rope_scaling=None)))
    near, far = compare_with_model(GOLDEN_META / "llama3.1")
    assert near.largest < 0.02 * near.scale  # unscaled RoPE hardly shows on a short text
    assert far.largest > far.scale
    assert not far.same


def test_a_wrong_norm_eps_is_found_in_float32(tmp_path, monkeypatch, untraced):
    from llama_jax.model import transformer as model

    config = config_of(norm_eps=1e-6)
    rng = np.random.default_rng(1)
    tensors = {w.path: rng.normal(size=w.shape, scale=0.1) for w in names_table(config)}
    native.write(tmp_path / "m", config, {k: v.astype(np.float32) for k, v in tensors.items()})
    assert all(one.same for one in compare_with_model(tmp_path / "m"))
    jax.clear_caches()
    norm = model.rms_norm
    monkeypatch.setattr(model, "rms_norm", lambda x, scale, eps: norm(x, scale, 10 * eps))
    assert not all(one.same for one in compare_with_model(tmp_path / "m"))


def test_logits_that_are_not_finite_are_wrong_though_the_reference_has_them(tmp_path):
    config = config_of(max_seq_len=64)
    tensors = {w.path: np.ones(w.shape, np.float32) for w in names_table(config)}
    tensors["norm", "scale"][0] = np.nan
    native.write(tmp_path / "nan", config, tensors)
    found = compare_with_model(tmp_path / "nan")
    assert not any(one.same for one in found)
    result = run("verify", tmp_path / "nan")
    assert result.exit_code == 1
    assert "near logits that are NaN or infinite: " in result.stdout
    assert "the model computes WRONGLY" in result.stdout
    assert "Warning" not in result.stderr


def test_a_weight_that_overflows_in_the_dtype_asked_for_is_wrong(tmp_path):
    config = config_of(max_seq_len=64)
    rng = np.random.default_rng(1)
    tensors = {w.path: rng.normal(size=w.shape).astype(np.float32) for w in names_table(config)}
    tensors[WQ][0, 0] = 1e30
    native.write(tmp_path / "large", config, tensors)
    result = run("verify", tmp_path / "large", "--dtype", "float16")
    assert result.exit_code == 1, result.output
    assert "our model in float16" in result.stdout


# The command


def test_the_command_prints_a_table_and_exits_by_what_it_found(tmp_path, good, config, tensors):
    result = run("verify", good, good)
    assert result.exit_code == 0, result.output
    for shown in ("the configs are equal", "attention.wk", "99,999", "one model"):
        assert shown in result.stdout

    tensors[WK].view(np.uint16)[0, 0] ^= 1
    native.write(tmp_path / "other", config.replace(rope_theta=1e4), tensors)
    result = run("verify", good, tmp_path / "other")
    assert result.exit_code == 1
    for shown in ("rope_theta: 500000.0 and 10000.0", "layers_1", "DIFFERENT", "NOT the same"):
        assert shown in result.stdout

    (row,) = [line for line in result.stdout.splitlines() if line.startswith("attention.wk")]
    assert row.split()[:4] == ["attention.wk", "2", "1", "1"]


def test_the_command_alone_runs_the_model():
    result = run("verify", GOLDEN_META / "llama3.1")
    assert result.exit_code == 0, result.output
    assert "computes what it should" in result.stdout


def test_the_command_prints_json_for_programs(good, tmp_path, config, tensors):
    alone = json.loads(run("verify", GOLDEN_META / "llama3.1", "--json").stdout)
    assert alone["same"]
    assert [one["where"] for one in alone["logits"]] == ["near", "far"]
    tensors[WK][0, 0] = np.nan
    native.write(tmp_path / "other", config.replace(rope_scaling=None), tensors)
    result = run("verify", good, tmp_path / "other", "--json")
    assert result.exit_code == 1
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert not found["same"]
    assert [field["name"] for field in found["fields"]] == ["rope_scaling"]
    (different,) = [tensor for tensor in found["tensors"] if not tensor["same"]]
    assert different["path"] == ".".join(WK)
    assert different["largest"] is None
    assert different["not_finite"] == [0, 1]


def test_a_rope_factor_that_metas_files_cannot_say_is_given(tmp_path, good, config):
    export(good, tmp_path / "meta", format="meta")
    result = run("verify", good, tmp_path / "meta")
    assert result.exit_code == 1
    assert "rope_scaling" in result.stdout
    result = run("verify", good, tmp_path / "meta", "--rope-factor", 32)
    assert result.exit_code == 0, result.output
    assert run("verify", tmp_path / "meta", "--rope-factor", 32).exit_code == 0
    result = run("verify", good, good, "--rope-factor", 32)
    assert result.exit_code == 2
    assert "--rope-factor 32 is for Meta's files" in result.stderr


@pytest.mark.parametrize("damage", ["absent", "truncated"])
def test_what_cannot_be_read_is_neither_the_same_nor_different(tmp_path, good, damage):
    if damage == "truncated":
        shutil.copytree(good, tmp_path / "bad")
        file = next((tmp_path / "bad/weights/layers_0.feed_forward.w2").glob("c/*/*"))
        file.write_bytes(file.read_bytes()[:-9])
    result = run("verify", good, tmp_path / "bad")
    assert result.exit_code == 2
    assert "bad" in result.stderr
    assert "Traceback" not in result.output


def test_convert_verifies_what_it_wrote(tmp_path, monkeypatch):
    result = run(
        "convert", GOLDEN_META / "llama3.1", tmp_path / "a", "--verify", "--dtype", "float32"
    )
    assert result.exit_code == 0, result.output
    assert "one model in both" in result.stdout

    written = native.write

    def write(dst, config, tensors, **options):
        swapped = {**tensors, W1: tensors[W3], W3: tensors[W1]}
        return written(dst, config, swapped, **options)

    monkeypatch.setattr(native, "write", write)
    result = run("convert", GOLDEN_META / "llama3.1", tmp_path / "b", "--verify")
    assert result.exit_code == 1
    assert "exchanged" in result.stdout


def test_comparisons_are_plain_values(good):
    found = compare(open_checkpoint(good), open_checkpoint(good))
    assert dataclasses.asdict(found.logits[0])["largest"] == 0


def test_a_quantized_checkpoint_is_compared_with_its_original(tmp_path):
    """The error of each tensor and of the logits is told, and another model is still another."""
    params = llama_jax.init_params(jax.random.key(0), llama_jax.Config.named("tiny"))
    llama_jax.save(params, tmp_path / "whole")
    llama_jax.save(llama_jax.quantize(params, "int8"), tmp_path / "small")
    whole, small = (open_checkpoint(tmp_path / name) for name in ("whole", "small"))
    found = compare(whole, small)
    errors = {".".join(one.path): one.error for one in found.tensors if one.kinds[1] == "int8"}
    assert "output.weight" in errors
    assert "tok_embeddings.weight" not in errors
    assert all(0.003 < error < 0.012 for error in errors.values())
    assert all(0 < logits.largest < 0.1 * logits.scale for logits in found.logits)
    assert found.same
    told = run("verify", tmp_path / "whole", tmp_path / "small")
    assert told.exit_code == 0, told.output
    assert "all, quantized" in told.stdout
    assert "by rounding" in told.stdout
    llama_jax.save(llama_jax.init_params(jax.random.key(9), params.config), tmp_path / "other")
    assert not compare(open_checkpoint(tmp_path / "other"), small).same


def test_an_array_that_a_file_holds_quantized_is_compared_as_such(tmp_path):
    """A GGUF file's embedding becomes an array, and differs by the rounding of its blocks."""
    params = llama_jax.init_params(jax.random.key(0), llama_jax.Config.named("tiny"))
    llama_jax.save(params, tmp_path / "whole")
    export(tmp_path / "whole", tmp_path / "out", format="gguf", dtype="q8_0")
    found = compare(open_checkpoint(tmp_path / "whole"), open_checkpoint(tmp_path / "out"))
    kinds = {one.path: one.kinds for one in found.tensors}
    assert kinds["tok_embeddings", "weight"] == (None, "Q8_0")
    assert kinds["norm", "scale"] == (None, None)
    assert found.same
