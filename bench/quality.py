"""How much rounding a model's weights, or its cache, costs: perplexity of a text, for each kind.

    python -m bench.quality MODEL TEXT --ggml /path/to/libggml-base.so

The weights of every kind are made float32 again and run by one program, so a row differs from the
first by the error of its weights alone. Beside the difference, from `--against`, stands its
standard error over the windows, each against itself: a smaller difference shows nothing. The cache
is compared with a float32 one that reads the same way. `libggml-base` of any build of
llama.cpp rounds the same weights as `llama-quantize` would; without it those rows are left out.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import llama_jax
from bench.ggml import FILES, Ggml, type_of
from llama_jax.checkpoint import load
from llama_jax.kernels import COMPILER_OPTIONS
from llama_jax.tokenizer import load_tokenizer
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import EMBEDDING, WeightPath, weight_table
from llama_jax.weights.weight import is_value

KINDS = ("int8", "int8_channel", "int4", "fp8")
WEIGHTS = ("float32", *KINDS, *FILES, "Q4_0, embedding kept")
ROWS = (*WEIGHTS, "int8 cache")


class Made(NamedTuple):
    """A model made float32 again."""

    params: Any
    bits: float
    """A number of its matrices."""


def main() -> None:
    asked = _arguments()
    params = load(asked.model, dtype="float32", quantize="none")
    windows = windows_of(params, asked)
    ggml = None if asked.ggml is None else Ggml(asked.ggml)
    if ggml is None and asked.against not in ("float32", *KINDS):
        raise SystemExit(f"--against {asked.against!r} needs --ggml")
    print(
        f"{asked.model}: {windows.size:,} tokens of {asked.text.name}, {windows.shape[1]} a window"
    )
    versions = f"jax {jax.__version__}" + (f", ggml {ggml.version}" if ggml else "")
    print(versions, flush=True)
    score = scorer(params, windows)
    against = score(remade(params, asked.against, ggml).params)
    for row in asked.rows:
        if row == "int8 cache":
            bits, nll = 32.0, cached_nll(params, windows, llama_jax.Int8KVCache)
            change, error = change_of(nll - cached_nll(params, windows, llama_jax.KVCache))
        elif row in ("float32", *KINDS) or ggml is not None:
            made = remade(params, row, ggml)
            bits, nll = made.bits, score(made.params)
            change, error = change_of(nll - against)
        else:
            continue
        told = f"{math.exp(nll.mean()):9.4f}  {change:+.3f} % (standard error {error:.3f})"
        print(f"  {row:22} {bits:5.2f} bits  {told}", flush=True)


def change_of(apart: np.ndarray) -> tuple[float, float]:
    """Of differences of log-likelihood, one a window: perplexity's in %, and its standard error."""
    spread = apart.std(ddof=1) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
    return 100 * math.expm1(apart.mean()), 100 * spread


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("model", help="a checkpoint, as every command takes it")
    parser.add_argument("text", type=Path, help="a text that the model was not trained on")
    parser.add_argument("--ggml", help="libggml-base of a build of llama.cpp")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=256, help="in a window")
    parser.add_argument("--against", choices=WEIGHTS, default="float32")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    return parser.parse_args()


def windows_of(params: Any, asked: argparse.Namespace) -> np.ndarray:
    """The text's first tokens, [windows, tokens]; each window begins with bos, if there is one."""
    tokenizer = load_tokenizer(params.tokenizer)
    text = asked.text.read_text(encoding="utf-8")[: 40 * asked.windows * asked.tokens]
    ids = tokenizer.encode(text, bos=False, eos=False)
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    each = asked.tokens - len(start)
    if len(ids) < each * asked.windows:
        raise SystemExit(f"{asked.text} has {len(ids):,} tokens, too few for --windows")
    cut = np.array(ids[: each * asked.windows]).reshape(asked.windows, each)
    return np.hstack([np.tile(start, (asked.windows, 1)), cut]).astype(np.int32)


def scorer(params: Any, windows: np.ndarray) -> Callable[[Any], np.ndarray]:
    """What gives the negative log-likelihood of a token in each window, of these shapes."""
    positions = jnp.broadcast_to(jnp.arange(windows.shape[1]), (1, windows.shape[1]))

    def row(params: Any, tokens: Any) -> Any:
        logits, _ = llama_jax.forward(params, tokens[None], positions)
        return _losses(logits[:, :-1], tokens[None, 1:]).mean()

    compiled = jax.jit(row).lower(params, windows[0]).compile(COMPILER_OPTIONS)
    return lambda model: np.array([float(compiled(model, one)) for one in windows])


def cached_nll(params: Any, windows: np.ndarray, kind: Any) -> np.ndarray:
    """The same read token by token, so that every token sees what a cache kept of the others."""
    rows, length = windows.shape
    cache = kind.empty(params.config, batch=rows, slots=length, dtype=jnp.float32).continued()

    def run(params: Any, windows: Any, cache: Any) -> Any:
        def step(cache: Any, at: Any) -> tuple[Any, Any]:
            tokens = jax.lax.dynamic_slice_in_dim(windows, at, 1, 1)
            logits, cache = llama_jax.forward(params, tokens, jnp.full((rows, 1), at), cache)
            target = jax.lax.dynamic_slice_in_dim(windows, at + 1, 1, 1)
            return cache.continued(), _losses(logits, target)[:, 0]

        return jax.lax.scan(step, cache, jnp.arange(length - 1))[1]

    # Weights are arguments: as constants of the program they would cost XLA hours.
    lowered = jax.jit(run).lower(params, windows, cache)
    return np.asarray(lowered.compile(COMPILER_OPTIONS)(params, windows, cache)).mean(axis=0)


def _losses(logits: Any, targets: Any) -> Any:
    found = jnp.take_along_axis(
        jax.nn.log_softmax(logits.astype(jnp.float32)), targets[..., None], -1
    )
    return -found[..., 0]


def remade(params: Any, row: str, ggml: Ggml | None) -> Made:
    weights: dict[WeightPath, Any] = {}
    count = size = 0
    for path, array, nbytes in _rounded(params, row, ggml):
        weights[path] = array
        if len(array.shape) == 2:
            count, size = count + array.size, size + nbytes
    return Made(params.replace(weights=nested(weights)), 8 * size / count)


def _rounded(params: Any, row: str, ggml: Ggml | None) -> Iterator[tuple[WeightPath, Any, int]]:
    """Every weight of the model in float32, and the bytes that its kind takes."""
    config = params.config
    source = llama_jax.quantize(params, row) if row in KINDS else params
    for path in weight_table(config):
        weight = weight_at(source.weights, path)
        if is_value(weight):
            yield path, weight.dense(), sum(part.nbytes for part in weight.parts().values())
            continue
        kept = row == "Q4_0, embedding kept" and path == EMBEDDING
        if ggml is None or row in ("float32", *KINDS) or weight.ndim != 2 or kept:
            yield path, weight, weight.nbytes
            continue
        matrix = np.asarray(weight)
        matrix = matrix if path == EMBEDDING else matrix.T
        kind = type_of(path, matrix.shape[1], config, row.split(",")[0])
        made, nbytes = ggml.rounded(matrix, kind)
        yield path, jnp.asarray(made if path == EMBEDDING else made.T), nbytes


if __name__ == "__main__":
    main()
