"""Folders of `fbgemm_fp8`, opened by transformers' own loader and modules, as we read them.

transformers 5.24 opens one on a GPU alone ("Using fbgemm fp8 quantization requires a GPU or XPU").
So its check of the machine is left out here, and `FbgemmFp8Linear` takes the way that it has for an
XPU: it multiplies by `torch._scaled_mm`, which a CPU has too, where a CUDA card has FBGEMM's
kernel. How both round activations, a kernel of FBGEMM's or of the Hub's, is stated below.
"""

import json

import ml_dtypes
import numpy as np
import pytest
from hf_folder import write_safetensors
from quantized_folders import fbgemm, written

from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.verify.reference import reference_logits

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is absent; pip install -e '.[oracle]'"
)
theirs = pytest.importorskip("transformers.integrations.fbgemm_fp8")
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
LARGER = {
    **{"hidden_size": 96, "intermediate_size": 224, "num_hidden_layers": 3},
    **{"num_attention_heads": 6, "num_key_value_heads": 2},
}
ATTENTION = [f"model.layers.{i}.self_attn.{name}_proj" for i in range(3) for name in "qkvo"]


def in_16_bits(*given):
    found, _ = fbgemm(*given)
    scale = found["weight_scale"].astype(ml_dtypes.bfloat16)
    dense = found["weight"].astype(np.float32) * scale.astype(np.float32)
    return {**found, "weight_scale": scale}, dense


def rows_to_8_bits(x, num_tokens=None, scale_ub=None):
    """Each row by its largest number, or by a smaller bound: float8_e4m3fn, and a scale a row."""
    largest = x.abs().amax(-1).float()
    if scale_ub is not None:
        largest = largest.clamp(max=scale_ub.item())
    scale = largest / 448
    return (x.float() / scale[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def on_no_device(**_):
    """In place of accelerate's `init_empty_weights`."""
    return torch.device("meta")


@pytest.fixture
def without_a_gpu(monkeypatch):
    quantizer = transformers.quantizers.quantizer_fbgemm_fp8.FbgemmFp8HfQuantizer
    monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
    monkeypatch.setattr("transformers.integrations.fbgemm_fp8._is_torch_xpu_available", True)
    monkeypatch.setattr(theirs, "get_quantize_fp8_per_row", lambda: rows_to_8_bits)
    monkeypatch.setattr(theirs, "init_empty_weights", on_no_device, raising=False)


def folder_of(tmp_path, make, sizes, kept=()):
    said = {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}
    said |= {"modules_to_not_convert": ["lm_head", *kept]} if kept else {}

    def only(name):
        return name.removesuffix(".weight") not in kept

    return written(tmp_path, make, said, only, **sizes)[0]


@pytest.mark.parametrize(
    ("make", "sizes", "kept"),
    [(fbgemm, {}, ()), (in_16_bits, LARGER, ()), (fbgemm, LARGER, ATTENTION)],
    ids=["small", "larger, scales in bfloat16", "attention as it is"],
)
def test_our_numbers_are_theirs_to_the_last_place(tmp_path, without_a_gpu, make, sizes, kept):
    folder = folder_of(tmp_path, make, sizes, kept)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    weights = {name: one.float().numpy() for name, one in model.state_dict().items()}
    for name, module in model.named_modules():
        if isinstance(module, theirs.FbgemmFp8Linear):
            # Of a unit vector it makes a column of the weight.
            columns = module(torch.eye(module.in_features)).detach()
            weights[f"{name}.weight"] = columns.numpy().T
            del weights[f"{name}.weight_scale"]
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/config.json").write_text(json.dumps(config))
    write_safetensors(tmp_path / "theirs/model.safetensors", weights)

    found, want = open_checkpoint(folder).tensors, open_checkpoint(tmp_path / "theirs").tensors
    rounded = [path for path, one in found.items() if hasattr(one, "parts")]
    assert len(rounded) == 7 * config["num_hidden_layers"] - len(kept)
    for path in rounded:
        np.testing.assert_array_max_ulp(found[path][...], want[path][...], maxulp=1)


@pytest.mark.parametrize(("make", "sizes"), [(fbgemm, {}), (in_16_bits, LARGER)])
def test_our_logits_are_theirs_but_for_rounded_activations(tmp_path, without_a_gpu, make, sizes):
    folder = folder_of(tmp_path, make, sizes)
    found, rng = open_checkpoint(folder), np.random.default_rng(0)
    tokens = rng.integers(found.config.vocab_size, size=(2, 40))
    positions = np.broadcast_to(np.arange(40), (2, 40))
    weights = {path: one[...] for path, one in found.tensors.items()}
    expected = reference_logits(found.config, weights, tokens, positions)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(torch.tensor(tokens)).logits.float().numpy()
    assert (logits - expected).std() < 0.03 * expected.std()
