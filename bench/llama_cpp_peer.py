"""llama.cpp, through llama-cpp-python's bindings of its C functions."""

from __future__ import annotations

import contextlib
import ctypes
import time
from typing import Any

import llama_cpp
import numpy as np

from bench.contestant import Loading, Logits, Run
from bench.memory import peak_resident

_GGML_BF16 = 30


@llama_cpp.llama_log_callback
def _silence(level: int, text: bytes, data: Any) -> None:
    """llama.cpp tells of every tensor that it loads."""


def load(loading: Loading) -> LlamaCpp:
    """The GGUF file, memory-mapped as it is by default."""
    return LlamaCpp(loading)


def _build() -> str:
    """Which ggml it is, where that tells, and what it was compiled for."""
    parts = []
    for name in ("ggml_version", "ggml_commit"):
        with contextlib.suppress(AttributeError):  # of older versions
            function = getattr(llama_cpp.llama_cpp._lib, name)
            function.restype = ctypes.c_char_p
            parts.append(function().decode())
    return " ".join(["ggml", *parts, llama_cpp.llama_print_system_info().decode().strip()])


class LlamaCpp:
    """One `llama_decode` a step for all rows; a context for each batch size.

    The cache has the weights' dtype, as transformers' (ours is float32 on a CPU); flash attention
    is left to its choice.
    """

    build = _build()

    def __init__(self, loading: Loading) -> None:
        llama_cpp.llama_log_set(_silence, None)
        llama_cpp.llama_backend_init()
        settings = llama_cpp.llama_model_default_params()
        self.model = llama_cpp.llama_model_load_from_file(str(loading.path).encode(), settings)
        if not self.model:
            raise ValueError(f"llama.cpp could not load {loading.path}")
        vocab = llama_cpp.llama_model_get_vocab(self.model)
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(vocab)
        self.capacity = max(2048, *loading.contexts.values())
        self.contexts = {
            rows: self._context(rows, positions, loading)
            for rows, positions in loading.contexts.items()
        }
        self.batch = llama_cpp.llama_batch_init(self.capacity, 0, 1)

    def _context(self, rows: int, positions: int, loading: Loading) -> Any:
        settings = llama_cpp.llama_context_default_params()
        settings.n_ctx = rows * (-(-positions // 256) * 256)
        settings.n_batch = self.capacity
        settings.n_seq_max = rows
        settings.n_threads = settings.n_threads_batch = loading.threads
        kind = llama_cpp.GGML_TYPE_F32 if loading.dtype == "float32" else _GGML_BF16
        settings.type_k = settings.type_v = kind
        context = llama_cpp.llama_init_from_model(self.model, settings)
        if not context:
            raise ValueError(f"llama.cpp made no context of {settings.n_ctx} positions")
        return context

    def decode(self, prompts: list[list[int]], new: int) -> Run:
        context = self.contexts[len(prompts)]
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        next_ids = self._step(context, prompts, [0] * len(prompts))
        tokens = [[token] for token in next_ids]
        first = time.perf_counter()
        for step in range(new - 1):
            starts = [len(prompt) + step for prompt in prompts]
            next_ids = self._step(context, [[token] for token in next_ids], starts)
            for row, token in zip(tokens, next_ids, strict=True):
                row.append(token)
        return Run(tokens, (new - 1) * len(prompts), time.perf_counter() - first)

    def prefill(self, prompt: list[int]) -> float:
        start = time.perf_counter()
        self.decode([prompt], 1)
        return time.perf_counter() - start

    def step(self, ids: list[int], position: int) -> None:
        """Reads one token a row at a position, as if the cache held nothing from there on."""
        context = self.contexts[len(ids)]
        memory = llama_cpp.llama_get_memory(context)
        llama_cpp.llama_memory_seq_rm(memory, -1, position, -1)
        self._step(context, [[token] for token in ids], [position] * len(ids))

    def logits(self, prompt: list[int]) -> Logits:
        self.decode([prompt], 1)
        return self._logits(self.contexts[1], len(prompt) - 1).copy()

    def _step(self, context: Any, rows: list[list[int]], starts: list[int]) -> list[int]:
        """Reads a few tokens of every row; the likeliest that follows each."""
        count, ends = 0, []
        for row, (tokens, start) in enumerate(zip(rows, starts, strict=True)):
            for offset, token in enumerate(tokens):
                self.batch.token[count] = token
                self.batch.pos[count] = start + offset
                self.batch.n_seq_id[count] = 1
                self.batch.seq_id[count][0] = row
                self.batch.logits[count] = offset == len(tokens) - 1
                count += 1
            ends.append(count - 1)
        self.batch.n_tokens = count
        if status := llama_cpp.llama_decode(context, self.batch):
            raise RuntimeError(f"llama_decode of {count} tokens failed with {status}")
        return [int(self._logits(context, end).argmax()) for end in ends]

    def _logits(self, context: Any, place: int) -> np.ndarray:
        found = llama_cpp.llama_get_logits_ith(context, place)
        return np.ctypeslib.as_array(found, (self.vocab_size,))

    def peak_memory(self) -> int:
        return peak_resident()
