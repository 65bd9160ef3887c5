"""LLaMA in JAX: `load` a checkpoint, `generate` text, or take `forward` apart.

A name is imported when it is first asked for, so that what a program does not use costs it nothing.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama_jax import distributed
    from llama_jax.cache import KVCache
    from llama_jax.chat import Conversation, chat
    from llama_jax.checkpoint import load, save
    from llama_jax.config import Config, DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling
    from llama_jax.generate import Completion, generate, stream
    from llama_jax.mesh import make_mesh
    from llama_jax.model import forward, init_params
    from llama_jax.params import Params
    from llama_jax.score import perplexity, score
    from llama_jax.settings import SamplingSettings
    from llama_jax.sharding import shard_params
    from llama_jax.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = [
    "Completion",
    "Config",
    "Conversation",
    "DynamicScaling",
    "KVCache",
    "LinearScaling",
    "Llama3Scaling",
    "Params",
    "SamplingSettings",
    "YarnScaling",
    "chat",
    "distributed",
    "forward",
    "generate",
    "init_params",
    "load",
    "load_tokenizer",
    "make_mesh",
    "perplexity",
    "save",
    "score",
    "shard_params",
    "stream",
]

_HOMES = {
    "cache": ("KVCache",),
    "chat": ("Conversation", "chat"),
    "checkpoint": ("load", "save"),
    "config": ("Config", "DynamicScaling", "LinearScaling", "Llama3Scaling", "YarnScaling"),
    "generate": ("Completion", "generate", "stream"),
    "mesh": ("make_mesh",),
    "model": ("forward", "init_params"),
    "params": ("Params",),
    "score": ("perplexity", "score"),
    "settings": ("SamplingSettings",),
    "sharding": ("shard_params",),
    "tokenizer": ("load_tokenizer",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "distributed":
        return importlib.import_module("llama_jax.distributed")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(types.ModuleType):
    """Whose `generate` is the function: importing the file of that name would hide it."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, types.ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
