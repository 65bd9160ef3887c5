"""bench: what the machine does in a second, and which card it has."""

import re
import subprocess
import sys

import jax

from bench import card, machine


def test_the_machines_16_bit_product_is_of_16_bit_numbers():
    """Widened to float32 before it, a CPU multiplies at less than half of its rate."""
    multiplying = machine.Multiplying("cpu", "bfloat16")
    shown = str(jax.make_jaxpr(multiplying.product)(multiplying.matrix))
    assert "f32[2048,2048] = dot_general" in shown
    assert multiplying.product(multiplying.matrix).dtype == "bfloat16"
    before_it = shown[: shown.index("dot_general")]
    assert "convert_element_type" not in before_it
    compiled = multiplying.product.lower(multiplying.matrix).compile().as_text()
    assert not re.search(r"= f32\[2048,2048\]\S* convert\(", compiled)


def test_a_gpu_is_read_in_pieces_that_take_longer_than_starting_them():
    assert machine.device_bytes(80 << 30) == 4 << 30
    assert machine.device_bytes(8 << 30) == 2 << 30
    assert machine.device_bytes(1001) == 248


def test_a_card_is_recorded_with_what_drives_it(monkeypatch):
    said = {
        sys.executable: 'a warning\n{"card": "NVIDIA H100", "cuda": "cuda 12090"}\n',
        "nvidia-smi": "570.124\n570.124\n",
    }
    monkeypatch.setattr(
        card.subprocess,
        "run",
        lambda command, **others: subprocess.CompletedProcess(command, 0, said[command[0]], ""),
    )

    class Distribution:
        def __init__(self, name, version):
            self.metadata, self.version = {"Name": name}, version

    held = [Distribution("nvidia-cudnn-cu12", "9.10"), Distribution("numpy", "2.4")]
    held.append(Distribution("jax-cuda12-plugin", "0.10.2"))
    monkeypatch.setattr(card.importlib.metadata, "distributions", lambda: held)
    monkeypatch.setattr(card.shutil, "which", lambda name: f"/usr/bin/{name}")
    found = card.described(1)
    assert found == {
        "card": "NVIDIA H100",
        "cuda": "cuda 12090",
        "driver": "570.124",
        "packages": {"jax-cuda12-plugin": "0.10.2", "nvidia-cudnn-cu12": "9.10"},
    }
    monkeypatch.setattr(card.shutil, "which", lambda name: None)
    assert "driver unknown" in card.shown(card.described(1))
