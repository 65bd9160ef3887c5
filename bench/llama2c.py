"""llama2.c: its `run`, a process a text."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from bench.contestant import Loading, Logits, Run
from bench.llama2c_file import BOS, SPACE, ids_of, spelled
from bench.memory import peak_of_children


def load(loading: Loading) -> Llama2c:
    """Nothing is loaded: every run maps the file anew."""
    if loading.binary is None:
        raise ValueError("llama2.c needs its program; pass --llama2c PATH")
    return Llama2c(loading.path, loading.binary, loading.threads)


def command(folder: Path, binary: str, prompt: list[int], new: int) -> list[str]:
    """`run` on a prompt of ids, which must begin as `run` begins every prompt."""
    if prompt[:2] != [BOS, SPACE] or len(prompt) < 3:
        raise ValueError(f"llama2.c begins a prompt with ids {BOS}, {SPACE} and a third")
    files = [str(folder / "model.bin"), "-z", str(folder / "tokenizer.bin")]
    return [binary, *files, "-t", "0", "-n", str(len(prompt) - 1 + new), "-i", spelled(prompt[2:])]


class Llama2c:
    """Times the tokens as they leave the program, which prints each at once."""

    def __init__(self, folder: Path, binary: str, threads: int) -> None:
        self.folder, self.binary = folder, binary
        self.environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}

    def decode(self, prompts: list[list[int]], new: int) -> Run:
        if len(prompts) != 1:
            raise ValueError(f"llama2.c runs one text at a time, not {len(prompts)}")
        [prompt] = prompts
        # The text begins with the prompt, of which bos and the space after it are not printed.
        printed, end = b"", len(spelled(prompt[2:]).encode())
        first, last, followed = 0.0, 0.0, 0
        with subprocess.Popen(
            command(self.folder, self.binary, prompt, new),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=self.environment,
        ) as process:
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                printed += piece
                last = time.perf_counter() if piece != b"\n" else last
                if not first and len(printed) > end:
                    first, followed = last, len(ids_of(_text(printed[end:])))
        if process.returncode:
            raise RuntimeError(f"{self.binary} failed with {process.returncode}")
        tokens = ids_of(_text(printed[end:]))
        return Run([tokens], len(tokens) - followed, last - first)

    def prefill(self, prompt: list[int]) -> float:
        raise ValueError("llama2.c reads a prompt token by token: its prefill is its decoding")

    def logits(self, prompt: list[int]) -> Logits:
        raise ValueError("llama2.c shows no logits: it is held to its tokens")

    def peak_memory(self) -> int:
        return peak_of_children()


def _text(printed: bytes) -> str:
    return printed.removesuffix(b"\n").decode()
