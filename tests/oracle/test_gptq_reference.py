"""GPTQ's matrices, packed and dequantized by AutoGPTQ's own layer, as we read them."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
from quantized_folders import written

from llama_jax.checkpoint.reading import open_checkpoint

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
GROUP = 32
PACKAGE = Path(os.environ.get("LLAMA_JAX_AUTO_GPTQ", "/nonexistent"))
"""The folder `auto_gptq` of PyPI's wheel; `.ci/run` fetches it where it can."""


@pytest.fixture(scope="module")
def layer():
    """Their layer, from its file: the package itself imports kernels for a GPU."""
    file = PACKAGE / "nn_modules/qlinear/qlinear_cuda.py"
    if not file.is_file():
        pytest.skip("no auto-gptq; LLAMA_JAX_AUTO_GPTQ names its folder, as .ci/run does")
    spec = importlib.util.spec_from_file_location("their_layer", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("order", [False, True], ids=["", "desc_act"])
@pytest.mark.parametrize("form", ["gptq", "gptq_v2"])
def test_our_numbers_are_theirs_to_the_last_place(layer, tmp_path, bits, order, form):
    def make(rng, outputs, inputs):
        groups = np.arange(inputs) // GROUP
        groups = torch.tensor(rng.permutation(groups) if order else groups, dtype=torch.int32)
        scale = rng.uniform(0.001, 0.02, (outputs, inputs // GROUP)).astype(np.float16)
        scale = torch.tensor(scale).float()
        zero = torch.tensor(rng.integers(1, 2**bits, scale.shape)).float()
        codes = torch.tensor(rng.integers(0, 2**bits, (outputs, inputs)))
        linear = torch.nn.Linear(inputs, outputs, bias=False)
        linear.weight.data = ((codes - zero[:, groups]) * scale[:, groups]).half()
        theirs = layer(bits, GROUP, inputs, outputs, bias=False)
        theirs.pack(linear, scale, zero, groups)
        parts = {name: one.numpy() for name, one in theirs.state_dict().items()}
        parts["g_idx"] = groups.numpy()
        theirs.scales = theirs.scales.float()  # their products in float32, as ours are
        dense = theirs(torch.eye(inputs)).T.numpy()
        if form == "gptq_v2":  # one more in every zero, as GPTQModel converts the first into it
            parts["qzeros"] = parts["qzeros"] + np.int32(0x11111111 if bits == 4 else 0x01010101)
        return parts, dense

    said = {"quant_method": "gptq", "bits": bits, "checkpoint_format": form, "desc_act": order}
    folder, plain = written(tmp_path, make, said)
    found, want = open_checkpoint(folder), open_checkpoint(plain)
    for path, tensor in want.tensors.items():
        np.testing.assert_array_equal(found.tensors[path][...], tensor[...], str(path))
