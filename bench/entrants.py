"""Which contestants there are, what each needs, and which of them can take part."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util

from bench.gguf_file import unsupported as not_in_gguf
from bench.llama2c_file import unsupported as not_in_llama2c
from llama_jax.config import Config

BATCHES = (1, 8)
"""How many rows are decoded together."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contestant."""

    module: str
    format: str
    """Which of a model's formats it reads."""
    requires: dict[str, str]
    """Distributions by the modules that they bring: what its versions are, and its absence."""
    devices: tuple[str, ...] = ("cpu", "gpu")
    batches: tuple[int, ...] = BATCHES
    prefills: bool = True
    """Whether it reads a prompt as one matrix and shows its logits."""


CONTESTANTS = {
    "llama_jax": Entry("ours", "native", {m: m for m in ("jax", "jaxlib", "flax", "numpy")}),
    "llama.cpp": Entry(
        "llama_cpp_peer",
        "gguf",
        {"llama_cpp": "llama-cpp-python", "gguf": "gguf"},
        devices=("cpu",),
    ),
    "transformers": Entry(
        "transformers_peer", "hf", {"transformers": "transformers", "torch": "torch"}
    ),
    "llama2.c": Entry("llama2c", "llama2c", {}, ("cpu",), batches=(1,), prefills=False),
}
OURS = "llama_jax"


def absent(name: str, config: Config, dtype: str, device: str, binary: str | None) -> str | None:
    """Why a contestant does not take part, or None where it does."""
    entry = CONTESTANTS[name]
    if device not in entry.devices:
        return f"it is measured on {' and '.join(entry.devices)} alone"
    if missing := [d for m, d in entry.requires.items() if importlib.util.find_spec(m) is None]:
        verb = "is" if len(missing) == 1 else "are"
        return f"{' and '.join(missing)} {verb} not installed (pip install -e '.[bench]')"
    if name == "llama2.c":
        return not_in_llama2c(config, dtype) if binary else "no --llama2c PATH was given"
    return not_in_gguf(config) if name == "llama.cpp" else None


def versions(names: list[str]) -> dict[str, str]:
    """The versions of what the contestants are made of."""
    wanted = sorted({d for name in names for d in CONTESTANTS[name].requires.values()})
    return {name: version(name) for name in wanted}


def version(distribution: str) -> str:
    """As its metadata has it; a module may stand on the path without any."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"
