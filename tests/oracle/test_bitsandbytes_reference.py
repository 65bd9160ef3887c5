"""bitsandbytes' matrices, rounded and dequantized by bitsandbytes itself, as we read them."""

import numpy as np
import pytest
from quantized_folders import written

from llama_jax.checkpoint.reading import open_checkpoint

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
functional = pytest.importorskip(
    "bitsandbytes.functional", reason="bitsandbytes is absent; pip install bitsandbytes"
)
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


def of_4_bits(rng, outputs, inputs, kind, nested):
    # A row a block: its program for a CPU misreads rows that are no whole blocks (0.50).
    weight = torch.tensor(rng.normal(size=(outputs * inputs // 64, 64)), dtype=torch.float32)
    packed, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=nested, quant_type=kind
    )
    dense = functional.dequantize_4bit(packed, state).numpy().reshape(outputs, inputs)
    state.shape = (outputs, inputs)
    parts = {f"weight.{name}": one.numpy() for name, one in state.as_dict(packed=True).items()}
    return {"weight": packed.numpy(), **parts}, dense


def of_8_bits(rng, outputs, inputs):
    weight = torch.tensor(rng.normal(size=(outputs, inputs)), dtype=torch.float16)
    values, scale, _ = functional.int8_vectorwise_quant(weight)
    dense = functional.int8_vectorwise_dequant(values, scale).numpy()
    return {"weight": values.numpy(), "SCB": scale.numpy()}, dense


@pytest.mark.parametrize("kind", ["nf4", "fp4", "nf4 nested", "int8"])
def test_our_numbers_are_theirs_to_the_last_place(tmp_path, kind):
    def make(*given):
        if kind == "int8":
            return of_8_bits(*given)
        return of_4_bits(*given, kind[:3], nested=kind.endswith("nested"))

    folder, plain = written(tmp_path, make, {"quant_method": "bitsandbytes"})
    found, want = open_checkpoint(folder), open_checkpoint(plain)
    for path, tensor in want.tensors.items():
        np.testing.assert_array_max_ulp(found.tensors[path][...], tensor[...], maxulp=1)
