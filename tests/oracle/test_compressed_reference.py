"""Quantized folders that we export, opened by transformers and compressed-tensors themselves."""

import numpy as np
import pytest
from helpers import config_of
from quantized_folders import FORMATS, awq, written

import llama_jax
from llama_jax.checkpoint.export import export
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.verify.reference import reference_logits

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is absent; pip install -e '.[oracle]'"
)
pytest.importorskip(
    "compressed_tensors", reason="compressed-tensors is absent; pip install compressed-tensors"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
# 80 is no multiple of 32: such a matrix becomes int8 where int4 is asked for.
SIZES = {"dim": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "hidden_dim": 80}


def mixed(name):
    kinds = {"wq": "int4", "w1": "int8", "w2": "fp8"}
    return kinds.get(name.split(".")[-1])


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8", "int8_dynamic", mixed])
@pytest.mark.parametrize("tied", [False, True])
def test_transformers_computes_our_logits_of_what_we_export(tmp_path, kind, tied):
    config = config_of(**SIZES, tie_embeddings=tied)
    rng = np.random.default_rng(0)
    weights = {
        row.path: rng.normal(size=row.shape, scale=0.2).astype(np.float32)
        for row in names_table(config)
    }
    llama_jax.checkpoint.native.write(tmp_path / "plain", config, weights)
    llama_jax.checkpoint.convert(tmp_path / "plain", tmp_path / "small", quantize=kind)
    export(tmp_path / "small", tmp_path / "hf", format="hf")
    stored = open_checkpoint(tmp_path / "hf").tensors
    assert sum(hasattr(type(one), "parts") for one in stored.values()) >= 3 * config.n_layers

    small = {path: one[...] for path, one in open_checkpoint(tmp_path / "small").tensors.items()}
    tokens = rng.integers(config.vocab_size, size=(2, 40))
    positions = np.broadcast_to(np.arange(40), (2, 40))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits.numpy()
    expected = reference_logits(config, small, tokens, positions)
    # int8_dynamic rounds activations too, which the reference does not.
    atol = 0.1 * expected.std() if kind == "int8_dynamic" else 2e-4
    np.testing.assert_allclose(logits, expected, atol=atol, rtol=0)


def test_awq_becomes_what_compressed_tensors_own_converter_makes_of_it(tmp_path):
    converters = pytest.importorskip("compressed_tensors.entrypoints.convert.converters")
    folder, _ = written(tmp_path, awq, FORMATS["awq"][1])
    export(folder, tmp_path / "hf", format="hf")
    stored = read_safetensors(folder / "model.safetensors")
    given = {name: torch.tensor(np.array(one)) for name, one in stored.items()}
    ours = read_safetensors(tmp_path / "hf/model.safetensors")
    theirs = converters.AutoAWQConverter(group_size=32).process(given)
    assert sum("zero_point" in name for name in theirs) == 7
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(ours[name], tensor.numpy(), name)
