"""Quantized Hugging Face folders, each held against what its format means, number by number."""

import json

import ml_dtypes
import numpy as np
import pytest
from hf_folder import SMALL, tensors_of, write_safetensors

import llama_jax
from llama_jax.checkpoint import convert
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.weights.params import weight_at
from llama_jax.weights.weight import is_value

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 1}
GIVEN = {**SMALL, **SIZES}
RNG = np.random.default_rng


def halves(rng, *shape):
    return rng.uniform(0.001, 0.02, shape).astype(np.float16)


def into_words(numbers, bits):
    """Unsigned numbers [rows, n * 32 / bits] as int32 [rows, n], the first in the lowest bits."""
    words = np.zeros((len(numbers), numbers.shape[1] * bits // 32), np.uint32)
    for column in range(numbers.shape[1]):
        at, shift = divmod(column * bits, 32)
        words[:, at] |= numbers[:, column].astype(np.uint32) << np.uint32(shift)
    return words.view(np.int32)


def awq(rng, outputs, inputs):
    groups = inputs // 32
    q, z = (rng.integers(0, 16, (n, outputs)) for n in (inputs, groups))
    scale = halves(rng, groups, outputs)
    order = [0, 2, 4, 6, 1, 3, 5, 7]  # the column, of each eight, that each nibble holds

    def into(numbers):
        eights = numbers.reshape(len(numbers), -1, 8)[..., order]
        return into_words(eights.reshape(len(numbers), -1), 4)

    dense = (q - np.repeat(z, 32, 0)) * np.repeat(scale.astype(np.float32), 32, 0)
    return {"qweight": into(q), "qzeros": into(z), "scales": scale}, dense.T


def gptq(rng, outputs, inputs, bits=4, less=1, symmetric=False, order=None):
    groups = inputs // 32
    q = rng.integers(0, 2**bits, (inputs, outputs))
    z = rng.integers(1, 2**bits, (groups, outputs))
    z = np.full_like(z, 2 ** (bits - 1)) if symmetric else z
    scale = halves(rng, groups, outputs)
    of = np.arange(inputs) // 32 if order is None else rng.permutation(np.arange(inputs) // 32)
    dense = (q - z[of]) * scale.astype(np.float32)[of]
    return {
        "qweight": into_words(q.T, bits).T,
        "qzeros": into_words(z - less, bits),
        "scales": scale,
        "g_idx": of.astype(np.int32),
    }, dense.T


def packed(rng, outputs, inputs, bits=4, zeros=False):
    groups = inputs // 32
    q = rng.integers(0, 2**bits, (outputs, inputs))
    z = (
        rng.integers(0, 16, (outputs, groups))
        if zeros
        else np.full((outputs, groups), 2 ** (bits - 1))
    )
    scale = halves(rng, outputs, groups).astype(ml_dtypes.bfloat16)
    found = {
        "weight_packed": into_words(q, bits),
        "weight_scale": scale,
        "weight_shape": np.array([outputs, inputs], np.int64),
    }
    if zeros:
        found["weight_zero_point"] = into_words(z.T, bits).T
    return found, (q - np.repeat(z, 32, 1)) * np.repeat(scale.astype(np.float32), 32, 1)


def int8(rng, outputs, inputs):
    q, scale = rng.integers(-128, 128, (outputs, inputs)), halves(rng, outputs, 1)
    return {"weight": q.astype(np.int8), "weight_scale": scale}, q * scale.astype(np.float32)


def fp8(rng, outputs, inputs, each=True):
    q = rng.standard_normal((outputs, inputs)).astype(ml_dtypes.float8_e4m3fn)
    scale = rng.uniform(0.01, 0.1, (outputs, 1) if each else (1,)).astype(np.float32)
    return {"weight": q, "weight_scale": scale}, q.astype(np.float32) * scale


def fbgemm(rng, outputs, inputs):
    found, dense = fp8(rng, outputs, inputs)
    return {**found, "input_scale_ub": np.ones(1, np.float32)}, dense


def bnb8(rng, outputs, inputs):
    q = rng.integers(-127, 128, (outputs, inputs)).astype(np.int8)
    scale = rng.uniform(0.1, 1, outputs).astype(np.float32)
    format_ = np.zeros((), np.uint8)
    dense = q * (scale / np.float32(127))[:, None]
    return {"weight": q, "SCB": scale, "weight_format": format_}, dense


def nf4(rng, outputs, inputs, nested=True):
    q, table = rng.integers(0, 16, outputs * inputs), np.sort(rng.uniform(-1, 1, 16))
    table, blocks = table.astype(np.float32), outputs * inputs // 64
    state = {"quant_type": "nf4", "blocksize": 64, "shape": [outputs, inputs], "dtype": "bfloat16"}
    absmax = rng.uniform(0.01, 0.1, blocks).astype(np.float32)
    found = {"weight": ((q[::2] << 4) | q[1::2]).astype(np.uint8)[:, None], "weight.absmax": absmax}
    if nested:
        codes, offset = rng.integers(0, 256, blocks).astype(np.uint8), 0.05
        outer = rng.uniform(0.01, 0.02, -(-blocks // 256)).astype(np.float32)
        table8 = rng.uniform(-1, 1, 256).astype(np.float32)
        absmax = np.array(
            [table8[c] * outer[i // 256] + np.float32(offset) for i, c in enumerate(codes)]
        )
        found |= {"weight.absmax": codes, "weight.nested_absmax": outer}
        found["weight.nested_quant_map"] = table8
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
    raw = np.frombuffer(json.dumps(state).encode(), np.uint8)
    found |= {"weight.quant_map": table, "weight.quant_state.bitsandbytes__nf4": raw}
    dense = np.array([table[code] * absmax[i // 64] for i, code in enumerate(q)], np.float32)
    return found, dense.reshape(outputs, inputs)


def with_(make, **how):
    return lambda *given: make(*given, **how)


COMPRESSED = {"quant_method": "compressed-tensors"}
FORMATS = {
    "awq": (awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}, "int4"),
    "gptq": (gptq, {"quant_method": "gptq", "bits": 4}, "int4"),
    "gptq-v2": (
        with_(gptq, less=0),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        "int4",
    ),
    "gptq-v2-unsaid": (
        with_(gptq, less=0, symmetric=True),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq"},
        "int4",
    ),
    "gptq-symmetric": (with_(gptq, symmetric=True), {"quant_method": "gptq", "bits": 4}, "int4"),
    "gptq-8": (with_(gptq, bits=8), {"quant_method": "gptq", "bits": 8}, "int8"),
    "gptq-order": (with_(gptq, order=True), {"quant_method": "gptq", "bits": 4}, None),
    "packed": (packed, {**COMPRESSED, "format": "pack-quantized"}, "int4"),
    "packed-zeros": (with_(packed, zeros=True), {**COMPRESSED, "format": "pack-quantized"}, "int4"),
    "packed-8": (with_(packed, bits=8), {**COMPRESSED, "format": "pack-quantized"}, "int8"),
    "int8": (int8, {**COMPRESSED, "format": "int-quantized"}, "int8"),
    "fp8": (fp8, {**COMPRESSED, "format": "float-quantized"}, "fp8"),
    "fp8-whole": (with_(fp8, each=False), {"quant_method": "fp8"}, "fp8"),
    "fbgemm": (fbgemm, {"quant_method": "fbgemm_fp8"}, "fp8"),
    "bnb-int8": (bnb8, {"quant_method": "bitsandbytes", "load_in_8bit": True}, "int8"),
    "bnb-nf4": (nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, None),
    "bnb-nf4-flat": (
        with_(nf4, nested=False),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        None,
    ),
}


def written(folder, make, said, only=lambda name: True):
    """A quantized folder, and a plain one of the numbers that it means."""
    plain, quantized, rng = {}, {}, RNG(7)
    for name, array in tensors_of(GIVEN).items():
        plain[name] = quantized[name] = array
        if "_proj." in name and only(name):
            parts, dense = make(rng, *array.shape)
            del quantized[name]
            module = name.removesuffix("weight")
            quantized |= {module + ending: part for ending, part in parts.items()}
            plain[name] = dense.astype(np.float32)
    for at, tensors, more in (
        ("plain", plain, {}),
        ("q", quantized, {"quantization_config": said}),
    ):
        (folder / at).mkdir()
        (folder / at / "config.json").write_text(json.dumps({**GIVEN, **more}))
        write_safetensors(folder / at / "model.safetensors", tensors)
    return folder / "q", folder / "plain"


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
