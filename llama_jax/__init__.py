"""LLaMA in JAX: `load` a checkpoint, `generate` text, or take `forward` apart."""

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
