"""Meta's quantized checkpoints, held against what their formats mean, number by number."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch_zip
from meta_folder import write
from meta_quantized import QLORA, SIZES, SPINQUANT, fp8_folder, int4_folder

import llama_jax
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.files.torch_file import read_state_dict
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.kernels import linear
from llama_jax.verify.reference import reference_logits
from llama_jax.weights.hadamard import Hadamard
from llama_jax.weights.int8 import Int8
from llama_jax.weights.params import weight_at

W2 = ("layers_1", "feed_forward", "w2")


def hadamard_matrix(n):
    """H / sqrt(n), by the number of ones that two indices share."""
    i, j = np.indices((n, n))
    ones = np.vectorize(lambda number: bin(number).count("1"))(i & j)
    return (1 - 2 * (ones % 2)) / np.sqrt(n)


def assert_means(folder, means, turned):
    source = open_checkpoint(folder)
    for row in names_table(source.config):
        want = means[row.meta]
        if turned and row.path[-1] == "w2":
            want = want @ hadamard_matrix(want.shape[1])
        want = want.T if row.transposed else want
        np.testing.assert_allclose(source.tensors[row.path][...], want, rtol=1e-5, atol=2e-5)
    return source


@pytest.mark.parametrize("zeros", [False, True])
def test_spinquant_is_read_with_its_hadamard_matrix_before_w2(tmp_path, zeros):
    folder, means = int4_folder(tmp_path / "m", zeros=zeros, **SPINQUANT)
    source = assert_means(folder, means, turned=True)
    kinds = {path[-1]: getattr(one, "kind", None) for path, one in source.tensors.items()}
    assert (kinds["wq"], kinds["w2"], kinds["weight"]) == ("int4", "hadamard", "int8")
    assert any("SpinQuant" in note for note in source.notes)


def test_without_spinquant_no_matrix_is_turned_and_unsaid_it_is_asked_for(tmp_path):
    said = {"quantization_args": {"group_size": 32, "spinquant": False}}
    assert_means(*int4_folder(tmp_path / "m", **said), turned=False)
    folder, _ = int4_folder(tmp_path / "unsaid", quantization_args={"group_size": 32})
    with pytest.raises(ValueError, match=r'add "spinquant": true or false to its'):
        open_checkpoint(folder)


def test_qlora_is_read_with_its_adapters(tmp_path):
    source = assert_means(*int4_folder(tmp_path / "m", adapters=True, **QLORA), turned=False)
    weight = llama_jax.load(source.path).weights["layers_0"]["attention"]["wq"]
    assert (weight.kind, weight.base.kind, weight.scale) == ("lora", "int4", 2.0)


def test_a_spinquant_model_computes_what_its_format_means_and_is_saved_and_exported(tmp_path):
    folder, means = int4_folder(tmp_path / "m", **SPINQUANT)
    params = llama_jax.load(folder)
    weight = weight_at(params.weights, W2)
    x = np.random.default_rng(1).normal(size=(2, 3, 128)).astype(np.float32)
    want = x @ hadamard_matrix(128) @ means["layers.1.feed_forward.w2.weight"].T
    for found in (linear(x, weight), weight.matmul(jnp.asarray(x)), x @ weight.dense()):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    back = np.asarray(weight.matmul_transposed(jnp.asarray(want, jnp.float32)))
    np.testing.assert_allclose(back, want @ np.asarray(weight.dense()).T, rtol=1e-4, atol=1e-3)
    llama_jax.save(params, tmp_path / "native")
    again = weight_at(llama_jax.load(tmp_path / "native").weights, W2)
    assert (again.kind, again.size, again.inner.kind) == ("hadamard", 128, "int4")
    np.testing.assert_array_equal(again.dense(), weight.dense())
    export(folder, tmp_path / "hf", format="hf")
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "hf").tensors[W2][...], weight.dense())
    source, positions = open_checkpoint(folder), np.arange(4)[None]
    tokens = np.array([[1, 2, 3, 4]])
    logits, _ = jax.jit(llama_jax.forward)(params, tokens, positions)
    expected = reference_logits(source.config, source.tensors, tokens, positions)
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


def test_a_turned_weight_takes_zeros_that_a_mesh_added_and_refuses_other_sizes():
    inner = Int8.of(jax.random.normal(jax.random.key(0), (64, 24)))
    x = jax.random.normal(jax.random.key(1), (5, 64))
    want = Hadamard(inner, 64).matmul(x)
    padded = Int8(jnp.pad(inner.values, ((0, 8), (0, 0))), inner.scale)
    found = Hadamard(padded, 64).matmul(jnp.pad(x, ((0, 0), (0, 8)), constant_values=0))
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5)
    for wrong in ({"size": 48}, {"size": 128}, {"size": True}):
        said = Hadamard(inner, 64).constants() | wrong
        with pytest.raises(ValueError, match=r"power of two|exceeds"):
            Hadamard.from_parts(Hadamard(inner, 64).parts(), said, np.dtype(np.float32))


@pytest.mark.parametrize(
    ("ranks", "dtype"),
    [(1, ml_dtypes.float8_e4m3fn), (2, ml_dtypes.float8_e4m3fn), (1, np.float32)],
)
def test_metas_fp8_is_read_with_the_scales_beside_it(tmp_path, ranks, dtype):
    means = fp8_folder(tmp_path, ranks, dtype)
    source = open_checkpoint(tmp_path)
    for row in names_table(source.config):
        if row.meta in means:
            np.testing.assert_array_equal(source.tensors[row.path][...], means[row.meta].T)
    own = [source.tensors["layers_1", "feed_forward", name] for name in ("w1", "w2", "w3")]
    kinds = [getattr(one, "kind", None) for one in own]
    assert kinds == ["fp8", "fp8" if ranks == 1 else None, "fp8"]
    if dtype == np.float32:  # without scales they are plain floats
        return
    (tmp_path / f"fp8_scales_{ranks - 1}.pt").unlink()
    with pytest.raises(ValueError, match=rf"no fp8_scales_{ranks - 1}\.pt, which holds their"):
        open_checkpoint(tmp_path)


def test_torchs_float8_is_read_and_its_other_one_refused(tmp_path):
    numbers = np.arange(-6, 6).astype(ml_dtypes.float8_e4m3fn).reshape(3, 4)
    torch_zip.save(tmp_path / "a.pth", {"x": numbers})
    np.testing.assert_array_equal(read_state_dict(tmp_path / "a.pth")["x"], numbers)
    storages = torch_zip.Storages()
    for dtype in ("float8_e5m2", "uint16"):
        state = {"x": storages.tensor(numbers, dtype=dtype)}
        torch_zip.write(
            tmp_path / "b.pth", torch_zip.pickled(torch_zip.dump(state)), storages.arrays
        )
        with pytest.raises(ValueError, match=r"float8 or quantized|no state dict needs"):
            read_state_dict(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.0.attention.wq.scales": None}, "is int8; only float16"),
        ({"layers.0.attention.wq.scales": np.ones((32, 3), np.float32)}, "groups of"),
        ({"layers.0.attention.wq.scales": np.ones((31, 1), np.float32)}, "not one row an output"),
        ({"layers.0.attention.wq.scales": np.ones((32, 1), np.int8)}, "no floats"),
        ({"layers.0.attention.wq.weight": np.ones((32, 16), np.int8)}, "where int8"),
        ({"layers.0.attention.wq.zeros": np.ones((32, 5), np.float32)}, "its zeros have"),
        ({"layers.0.attention.wq.adaptor.A.weight": np.ones((4, 32), np.float32)}, "no pair"),
        ({"tok_embeddings.scales": np.ones((48, 2), np.float32)}, "not one a token"),
    ],
)
def test_a_tensor_that_does_not_fit_is_told(tmp_path, change, message):
    folder, _ = int4_folder(tmp_path / "m", **SPINQUANT)
    state = dict(read_state_dict(folder / "consolidated.00.pth"))
    state = {name: np.array(one) for name, one in (state | change).items() if one is not None}
    write(folder, [state], **SIZES, **SPINQUANT)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


def test_variants_that_are_not_read_are_told_by_name(tmp_path):
    folder, _ = int4_folder(tmp_path / "a", **SPINQUANT)
    state = read_state_dict(folder / "consolidated.00.pth")
    write(folder, [dict(state), dict(state)], **SIZES, **SPINQUANT)
    with pytest.raises(ValueError, match="int4 weights cut into 2 files are not read"):
        open_checkpoint(folder)
    folder, _ = int4_folder(tmp_path / "b", adapters=True, **SPINQUANT)
    with pytest.raises(ValueError, match="says no scale, which its adaptor needs"):
        open_checkpoint(folder)
