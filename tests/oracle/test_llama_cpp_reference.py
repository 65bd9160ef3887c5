"""Our GGUF files in llama.cpp: its greedy tokens are our model's but for near ties.

llama.cpp rounds the activations that meet a quantized matrix to 8 bits, 32 to a scale of float16;
of such files our model does here too. Logits are 0.09 and 0.10 apart at most even so, and 0.003 of
float files; docs/notes/performance.md says what is known.
"""

import dataclasses
import importlib.resources

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import forward
from llama_jax.checkpoint import load
from llama_jax.checkpoint.export import export
from llama_jax.ops.linear import linear, linear_transposed
from llama_jax.tokenizer import load_tokenizer
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import weight_table
from llama_jax.weights.weight import PartAxis, is_value

pytest.importorskip("llama_cpp", reason="llama.cpp is absent; pip install llama-cpp-python")

MODEL = importlib.resources.files("llama_jax") / "pretrained"
PROMPTS = ["Once upon a time", "Lily and Tom", "The dog", "One day, a big", "She said", "In the"]
NEW = 40
ROUNDING = {"float32": False, "float16": False, "q8_0": True, "q4_0": True}
"""Whether llama.cpp rounds activations."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AsGgml:
    """A matrix whose products round their activations as ggml's Q8_0 does."""

    array: jax.Array

    kind = "as-ggml"
    dtype = np.dtype("float32")

    @property
    def shape(self):
        return self.array.shape

    def matmul(self, x):
        return linear(rounded_activations(x), self.array)

    def matmul_transposed(self, x):
        return linear_transposed(rounded_activations(x), self.array)

    def rows(self, ids):
        return self.array[ids]

    def parts(self):
        return {"array": self.array}

    def layout(self):
        return {"array": (PartAxis(0), PartAxis(1))}

    def constants(self):
        return {}

    @classmethod
    def from_parts(cls, parts, constants, dtype):
        return cls(**parts)


def rounded_activations(x):
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    largest = jnp.abs(blocks).max(axis=-1, keepdims=True)
    numbers = jnp.round(blocks * jnp.where(largest > 0, 127 / largest, 0))
    scale = (largest / 127).astype(jnp.float16).astype(jnp.float32)
    return (numbers * scale).reshape(x.shape)


def as_ggml(params):
    """The model of float32 matrices that round their activations."""
    weights = {}
    for path in weight_table(params.config):
        weight = weight_at(params.weights, path)
        dense = weight.dense() if is_value(weight) else weight
        weights[path] = AsGgml(dense) if dense.ndim == 2 else dense
    return params.replace(weights=nested(weights))


@dataclasses.dataclass(frozen=True)
class Theirs:
    """What llama.cpp makes of a file."""

    tokens: list[list[int]]
    """A prompt and its greedy continuation."""
    logits: np.ndarray
    """Those after each prompt, [prompts, vocab]."""


@pytest.fixture(scope="module", params=ROUNDING)
def exported(request, tmp_path_factory):
    """A file of ours, and what llama.cpp makes of it."""
    from bench.contestant import Loading
    from bench.llama_cpp_peer import LlamaCpp

    folder = tmp_path_factory.mktemp(request.param) / "out"
    export(MODEL, folder, format="gguf", dtype=request.param)
    params = load(folder / "model.gguf", dtype="float32")
    tokenizer = load_tokenizer(params.tokenizer)
    prompts = [tokenizer.encode(text, bos=True, eos=False) for text in PROMPTS]
    peer = LlamaCpp(Loading(folder / "model.gguf", "float32", "cpu", 1, {1: 128}))
    tokens = [prompt + peer.decode([prompt], NEW).tokens[0] for prompt in prompts]
    logits = np.stack([peer.logits(prompt) for prompt in prompts])
    return request.param, params, prompts, Theirs(tokens, logits)


def logits_of(params, tokens):
    """After every token of each row, float32."""
    length = max(map(len, tokens))
    ids = np.array([row + [0] * (length - len(row)) for row in tokens], np.int32)
    positions = jnp.broadcast_to(jnp.arange(length), ids.shape)
    return np.asarray(jax.jit(forward)(params, ids, positions)[0])


def test_llama_cpps_greedy_tokens_are_ours_but_for_near_ties(exported):
    """At each place its token is our likeliest, or nearer to it than the logits are apart."""
    dtype, params, prompts, theirs = exported
    model = as_ggml(params) if ROUNDING[dtype] else params
    logits = logits_of(model, theirs.tokens)
    ends = np.stack([row[len(p) - 1] for row, p in zip(logits, prompts, strict=True)])
    error = np.abs(ends - theirs.logits).max()
    wrong = [
        (prompt, place)
        for row, prompt, tokens in zip(logits, prompts, theirs.tokens, strict=True)
        for place in range(len(prompt), len(tokens))
        if row[place - 1].max() - row[place - 1][tokens[place]] > 2 * error
    ]
    print(f"{dtype}: logits at most {error:.5f} apart")
    assert wrong == []
