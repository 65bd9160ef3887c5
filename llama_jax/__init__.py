"""LLaMA in JAX: `load` a checkpoint, `generate` text, or take `forward` apart.

A name is imported when it is first used, so a program pays only for what it uses.
"""

from etils import epy as _epy

__version__ = "0.1.0"

# `as` marks a public name for type checkers. This is the only list of them.
with _epy.lazy_api_imports(globals()):
    from llama_jax import distributed as distributed
    from llama_jax.checkpoint import load as load
    from llama_jax.checkpoint import save as save
    from llama_jax.completions import generate as generate
    from llama_jax.completions import stream as stream
    from llama_jax.config import Config as Config
    from llama_jax.config import DynamicScaling as DynamicScaling
    from llama_jax.config import LinearScaling as LinearScaling
    from llama_jax.config import Llama3Scaling as Llama3Scaling
    from llama_jax.config import YarnScaling as YarnScaling
    from llama_jax.generation.chat import Conversation as Conversation
    from llama_jax.generation.chat import chat as chat
    from llama_jax.generation.constraint import Constraint as Constraint
    from llama_jax.generation.constraint import constraint_for as constraint_for
    from llama_jax.generation.grammar import JSONSchema as JSONSchema
    from llama_jax.generation.prompts import Prompt as Prompt
    from llama_jax.generation.results import Completion as Completion
    from llama_jax.generation.results import Delta as Delta
    from llama_jax.generation.results import FinishReason as FinishReason
    from llama_jax.generation.results import NaNLogitsError as NaNLogitsError
    from llama_jax.generation.results import Perplexity as Perplexity
    from llama_jax.generation.results import Score as Score
    from llama_jax.generation.results import TokenLogprob as TokenLogprob
    from llama_jax.generation.score import perplexity as perplexity
    from llama_jax.generation.score import score as score
    from llama_jax.generation.settings import SamplingSettings as SamplingSettings
    from llama_jax.model.cache import Cache as Cache
    from llama_jax.model.cache import KVCache as KVCache
    from llama_jax.model.cache import ModelCache as ModelCache
    from llama_jax.model.cache import Past as Past
    from llama_jax.model.cache_protocol import Positions as Positions
    from llama_jax.model.int8_cache import Int8KVCache as Int8KVCache
    from llama_jax.model.int8_cache import Int8Slots as Int8Slots
    from llama_jax.model.transformer import Logits as Logits
    from llama_jax.model.transformer import Tokens as Tokens
    from llama_jax.model.transformer import forward as forward
    from llama_jax.model.transformer import init_params as init_params
    from llama_jax.ops.attention import NewKeys as NewKeys
    from llama_jax.ops.attention import Queries as Queries
    from llama_jax.ops.attention import Slots as Slots
    from llama_jax.ops.rope import Frequencies as Frequencies
    from llama_jax.rope_scaling import RopeScaling as RopeScaling
    from llama_jax.serve.engine import Engine as Engine
    from llama_jax.serve.stats import Stats as Stats
    from llama_jax.serve.stream import EngineClosedError as EngineClosedError
    from llama_jax.serve.stream import QueueFullError as QueueFullError
    from llama_jax.serve.stream import RequestFailedError as RequestFailedError
    from llama_jax.serve.stream import Stream as Stream
    from llama_jax.sharding.adapters import merge as merge
    from llama_jax.sharding.arrays import shard_params as shard_params
    from llama_jax.sharding.mesh import make_mesh as make_mesh
    from llama_jax.tokenizer import Tokenizer as Tokenizer
    from llama_jax.tokenizer import load_tokenizer as load_tokenizer
    from llama_jax.tokenizer.protocol import Answers as Answers
    from llama_jax.tokenizer.protocol import Message as Message
    from llama_jax.tokenizer.protocol import Tools as Tools
    from llama_jax.weights.params import Params as Params
    from llama_jax.weights.params import Weights as Weights
    from llama_jax.weights.quantize import Rule as Rule
    from llama_jax.weights.quantize import quantize as quantize
    from llama_jax.weights.table import WeightPath as WeightPath

del _epy
__all__ = sorted(name for name in __dir__() if not name.startswith("_"))  # type: ignore[name-defined]  # noqa: F821


def __dir__() -> list[str]:
    """The public names, and Python's own; not the rooms, which show once they are imported."""
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
