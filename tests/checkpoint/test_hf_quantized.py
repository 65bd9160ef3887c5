"""Quantized Hugging Face folders, each held against what its format means, number by number."""

import json

import numpy as np
import pytest
from hf_folder import write_safetensors
from quantized_folders import (
    COMPRESSED,
    FORMATS,
    GIVEN,
    RNG,
    awq,
    gptq,
    int8,
    packed,
    written,
)

import llama_jax
from llama_jax.checkpoint import convert
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.weights.params import weight_at
from llama_jax.weights.weight import is_value


@pytest.mark.parametrize("name", FORMATS)
def test_every_number_is_what_its_format_means(tmp_path, name):
    make, said, kind = FORMATS[name]
    folder, plain = written(tmp_path, make, said)
    found, want = open_checkpoint(folder), open_checkpoint(plain)
    for path, tensor in want.tensors.items():
        np.testing.assert_array_equal(found.tensors[path][...], tensor[...], str(path))
    assert getattr(found.tensors["layers_0", "attention", "wk"], "kind", None) == kind
    assert not is_value(found.tensors["layers_0", "attention_norm", "scale"])


@pytest.mark.parametrize("name", ["packed", "gptq-8", "fp8", "bnb-nf4"])
def test_a_quantized_folder_is_loaded_as_it_is_stored(tmp_path, name):
    make, said, kind = FORMATS[name]
    folder, plain = written(tmp_path, make, said)
    params, path = llama_jax.load(folder), ("layers_0", "attention", "wq")
    weight, want = weight_at(params.weights, path), open_checkpoint(plain).tensors[path][...]
    assert getattr(weight, "kind", None) == kind
    np.testing.assert_array_equal(weight.dense() if is_value(weight) else weight, want)


@pytest.mark.parametrize(("more", "read"), [(60_000, True), (70_000, False)])
def test_bitsandbytes_words_on_a_matrix_are_short(tmp_path, more, read):
    """A stranger's could be as long as the file, and what they hold would be made in Python."""

    def made(rng, outputs, inputs):
        parts, dense = FORMATS["bnb-nf4"][0](rng, outputs, inputs)
        name = "weight.quant_state.bitsandbytes__nf4"
        parts[name] = np.append(parts[name], np.full(more, ord(" "), np.uint8))
        return parts, dense

    folder, plain = written(tmp_path, made, FORMATS["bnb-nf4"][1])
    if not read:
        with pytest.raises(ValueError, match="quant_state is missing, no JSON or too long"):
            open_checkpoint(folder)
        return
    path = ("layers_0", "attention", "wk")
    found, want = (open_checkpoint(one).tensors[path][...] for one in (folder, plain))
    np.testing.assert_array_equal(found, want)


def test_matrices_that_stay_plain_are_read_so_and_zero_biases_are_none(tmp_path):
    def made(rng, outputs, inputs):
        parts, dense = gptq(rng, outputs, inputs)
        return {**parts, "bias": np.zeros(outputs, np.float16)}, dense

    said = {"quant_method": "gptq", "bits": 4}
    folder, plain = written(tmp_path, made, said, only=lambda name: "q_proj" in name)
    found, want = open_checkpoint(folder), open_checkpoint(plain)
    assert found.config == want.config
    kinds = {path[-1]: getattr(tensor, "kind", None) for path, tensor in found.tensors.items()}
    assert (kinds["wq"], kinds["wk"]) == ("int4", None)
    for path, tensor in want.tensors.items():
        np.testing.assert_array_equal(found.tensors[path][...], tensor[...])


BESIDE = [
    ("gptq-8", "quantize_config.json", {"bits": 8, "group_size": 32, "desc_act": False}),
    ("awq", "quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}),
]


@pytest.mark.parametrize(("name", "file", "said"), BESIDE)
def test_what_auto_gptq_and_auto_awq_state_beside_config_json_is_read(tmp_path, name, file, said):
    folder, plain = written(tmp_path, FORMATS[name][0], None)
    with pytest.raises(ValueError, match=r"or state quantization_config in config\.json"):
        open_checkpoint(folder)
    (folder / file).write_text(json.dumps(said))
    found, want = open_checkpoint(folder).tensors, open_checkpoint(plain).tensors
    for path, tensor in want.items():
        np.testing.assert_array_equal(found[path][...], tensor[...], str(path))
    for broken, message in ((json.dumps({**said, "bits": 3}), "'3' bits"), ("[", "is not JSON")):
        (folder / file).write_text(broken)
        with pytest.raises(ValueError, match=message) as caught:
            open_checkpoint(folder)
        assert str(folder / file) in str(caught.value)


def test_config_json_is_believed_before_a_file_beside_it(tmp_path):
    folder, plain = written(tmp_path, FORMATS["gptq-8"][0], FORMATS["gptq-8"][1])
    (folder / "quantize_config.json").write_text(json.dumps({"bits": 4}))
    found, want = open_checkpoint(folder).tensors, open_checkpoint(plain).tensors
    for path, tensor in want.items():
        np.testing.assert_array_equal(found[path][...], tensor[...], str(path))


def test_a_quantized_folder_is_converted_as_it_is_or_as_arrays(tmp_path):
    folder, plain = written(tmp_path, awq, FORMATS["awq"][1])
    want = open_checkpoint(plain).tensors
    for quantize, at in ((None, "native"), ("none", "arrays")):
        convert(folder, tmp_path / at, quantize=quantize)
        found = open_checkpoint(tmp_path / at).tensors
        for path, tensor in want.items():
            np.testing.assert_array_equal(found[path][...], tensor[...])
        assert is_value(found["layers_0", "attention", "wq"]) == (quantize is None)


@pytest.mark.parametrize(
    ("make", "said", "message"),
    [
        (awq, {"quant_method": "awq", "version": "gemv"}, "AWQ of version 'gemv' and '4' bits"),
        (gptq, {"quant_method": "gptq", "bits": 3}, "GPTQ of '3' bits as 'gptq'"),
        (gptq, {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "as 'marlin'"),
        (gptq, {"quant_method": "gptq", "bits": 4, "dynamic": {"-:x": {}}}, "dynamic exceptions"),
        (
            awq,
            {"quant_method": "hqq"},
            r'quantized by GPTQ or AWQ; get .*\(quantization_config says "hqq"',
        ),
        (
            lambda *given: (
                {**packed(*given)[0], "weight_g_idx": np.zeros(64, np.int32)},
                given[0],
            ),
            COMPRESSED,
            "in the order of activations is not read",
        ),
        (
            packed,
            {**COMPRESSED, "format": "marlin-24"},
            "compressed-tensors as 'marlin-24', and pack-quantized, int-quantized, float-quantized",
        ),
        (
            packed,
            {**COMPRESSED, "config_groups": {"group_0": {"format": "nvfp4-pack-quantized"}}},
            "compressed-tensors as 'nvfp4-pack-quantized'",
        ),
        (
            int8,
            {**COMPRESSED, "sparsity_config": {"format": "sparse-24-bitmask"}},
            "compressed-tensors as 'sparse-24-bitmask'",
        ),
        (
            packed,
            {**COMPRESSED, "transform_config": {"config_groups": {"R4": {}}}},
            "has a transform_config: matrices turn the activations",
        ),
    ],
)
def test_variants_that_are_not_read_are_told_by_name(tmp_path, make, said, message):
    def only_parts(rng, outputs, inputs):
        return make(rng, outputs, inputs)[0], np.zeros((outputs, inputs))

    folder, _ = written(tmp_path, only_parts, said)
    with pytest.raises(ValueError, match=message) as caught:
        open_checkpoint(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", ["awq", "gptq", "packed", "int8", "fp8", "bnb-int8", "bnb-nf4"])
def test_a_tensor_that_is_missing_or_of_another_shape_is_told(tmp_path, name):
    make, said, _ = FORMATS[name]
    taken = sorted(make(RNG(0), 64, 64)[0])
    for n, ending in enumerate(
        one for one in taken if one not in ("g_idx", "weight_shape", "weight_format")
    ):
        for cut in (False, True):

            def broken(rng, outputs, inputs, ending=ending, cut=cut):
                parts, dense = make(rng, outputs, inputs)
                if cut:
                    parts[ending] = parts[ending][:-1]
                else:
                    del parts[ending]
                return parts, dense

            there = tmp_path / f"{n}{cut}"
            there.mkdir()
            folder, _ = written(there, broken, said)
            with pytest.raises(
                ValueError, match=r"its |lacks|bits are not|quantized by|only float16"
            ) as caught:
                open_checkpoint(folder)
            assert len(str(caught.value)) < 500 + len(str(folder))


VALUES = [None, True, 0, -1, 2**40, 3.5, "x", "gptq", "awq", [], {}, [[1]], {"a": 1}]


def damaged(folder, tensors, said, rng):
    """Writes the folder with one or two things wrong: a tensor, or a word of config.json."""
    tensors, said = dict(tensors), dict(said)
    names = [name for name in tensors if "_proj." in name]
    for _ in range(int(rng.integers(1, 3))):
        name = names[int(rng.integers(len(names)))]
        array, how = tensors.get(name), int(rng.integers(7))
        if how == 0 and array is not None:
            tensors[name] = array.reshape(-1)
        elif how == 1 and array is not None:
            tensors[name] = array.reshape(-1)[:1].reshape(())
        elif how == 2 and array is not None and array.ndim:
            tensors[name] = np.repeat(array, 2, -1)
        elif how == 3 and array is not None:
            dtypes = (np.int8, np.uint8, np.int64, np.float64, np.float32)
            with np.errstate(all="ignore"):
                tensors[name] = array.astype(dtypes[int(rng.integers(len(dtypes)))])
        elif how == 4:
            tensors.pop(name, None)
        else:
            key = ["bits", "version", "checkpoint_format", "quant_method", "dynamic", "format"]
            said[key[int(rng.integers(6))]] = VALUES[int(rng.integers(len(VALUES)))]
    (folder / "config.json").write_text(json.dumps({**GIVEN, "quantization_config": said}))
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize(
    "name", ["awq", "gptq-order", "packed-zeros", "fp8", "bnb-int8", "bnb-nf4"]
)
def test_damaged_folders_are_refused_or_read(tmp_path, name):
    make, said, _ = FORMATS[name]
    folder, _ = written(tmp_path, make, said)
    whole = {key: np.array(a) for key, a in read_safetensors(folder / "model.safetensors").items()}
    rng, refused = np.random.default_rng(0), []
    for _ in range(60):
        damaged(folder, whole, said, rng)
        refused += [message for message in [what_is_said(folder)] if message]
    assert len(refused) > 20
    assert all(str(folder) in message for message in refused)
    assert max(map(len, refused)) < 600 + len(str(folder))


def what_is_said(folder):
    """The message of a refusal; "" where all is read. Any other exception is a failure."""
    try:
        for tensor in open_checkpoint(folder).tensors.values():
            for part in tensor.parts().values() if is_value(tensor) else [tensor]:
                part[...]
    except ValueError as error:
        return str(error)
    return ""
