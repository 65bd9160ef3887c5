"""Two kinds of rounding beside each other, over one model written in many orders.

    python -m bench.orders MODEL TEXT --ggml /path/to/libggml-base.so --kinds Q4_0 int4

The order of a model's channels and heads changes nothing that it computes, but which weights share
a scale. So each order is another draw of the same rounding of the same model. Perplexity's change
differs between orders far more than between kinds, so one order, that of the file, cannot say which
kind is the better: the mean over the orders can, and its standard error over them is told.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bench.ggml import Ggml
from bench.quality import WEIGHTS, change_of, remade, scorer, windows_of
from llama_jax.checkpoint import load
from llama_jax.weights.params import nested, weight_at
from llama_jax.weights.table import EMBEDDING, NORM, OUTPUT, weight_table


def main() -> None:
    asked = _arguments()
    params = load(asked.model, dtype="float32", quantize="none")
    if params.config.attention_bias or params.config.mlp_bias:
        raise SystemExit(f"{asked.model} has biases, which are not put in order")
    windows = windows_of(params, asked)
    score = scorer(params, windows)
    ggml = None if asked.ggml is None else Ggml(asked.ggml)
    whole = score(params)
    print(f"{asked.model}: {windows.size:,} tokens of {asked.text.name}", flush=True)
    changes = []
    for order in range(asked.orders):
        model = params if order == 0 else reordered(params, order)
        apart = (score(remade(model, kind, ggml).params) - whole for kind in asked.kinds)
        changes.append([change_of(one)[0] for one in apart])
        print(f"  {order}: " + ", ".join(f"{one:+.2f} %" for one in changes[-1]), flush=True)
    found = np.array(changes)
    for kind, column in zip(asked.kinds, found.T, strict=True):
        print(f"{kind}: {_told(column)}; between orders {column.std(ddof=1):.2f}")
    first, *others = asked.kinds
    for i, kind in enumerate(others, 1):
        print(f"{kind} against {first}: {_told(found[:, i] - found[:, 0])}")


def reordered(params: Any, seed: int) -> Any:
    """The same model with its channels, heads and values in an order of chance.

    Channels of the residual stream, hidden channels of each layer, key-value heads with their
    query heads, query heads of one key-value head, and the values within a head. RoPE fixes the
    order within a query and a key.
    """
    c, rng = params.config, np.random.default_rng(seed)
    w = {path: np.asarray(weight_at(params.weights, path)) for path in weight_table(c)}
    channels, every = rng.permutation(c.dim), slice(None)

    def put(path: tuple[str, ...], *order: Any) -> None:
        for axis, one in enumerate(order):
            if one is not every:
                w[path] = w[path].take(one, axis)

    put(EMBEDDING, every, channels)
    put(NORM, channels)
    if OUTPUT in w:
        put(OUTPUT, channels)
    each = c.n_heads // c.n_kv_heads
    for i in range(c.n_layers):
        layer, attention, ffn = f"layers_{i}", "attention", "feed_forward"
        heads = rng.permutation(c.n_kv_heads)
        queries = np.concatenate([head * each + rng.permutation(each) for head in heads])
        inner = [rng.permutation(c.head_dim) for _ in heads]
        hidden = rng.permutation(c.hidden_dim)
        put((layer, "attention_norm", "scale"), channels)
        put((layer, attention, "wq"), channels, _of_heads(queries, c.head_dim))
        put((layer, attention, "wk"), channels, _of_heads(heads, c.head_dim))
        values = np.concatenate([head * c.head_dim + inner[head] for head in heads])
        put((layer, attention, "wv"), channels, values)
        outs = np.concatenate([query * c.head_dim + inner[query // each] for query in queries])
        put((layer, attention, "wo"), outs, channels)
        put((layer, "ffn_norm", "scale"), channels)
        put((layer, ffn, "w1"), channels, hidden)
        put((layer, ffn, "w3"), channels, hidden)
        put((layer, ffn, "w2"), hidden, channels)
    return params.replace(weights=nested({path: jnp.asarray(one) for path, one in w.items()}))


def _of_heads(heads: np.ndarray, head_dim: int) -> np.ndarray:
    return (heads[:, None] * head_dim + np.arange(head_dim)).ravel()


def _told(changes: np.ndarray) -> str:
    error = changes.std(ddof=1) / math.sqrt(len(changes))
    return f"mean {changes.mean():+.2f} % (standard error {error:.2f})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.orders", description=__doc__)
    parser.add_argument("model", help="a checkpoint, as every command takes it")
    parser.add_argument("text", type=Path, help="a text that the model was not trained on")
    parser.add_argument("--ggml", help="libggml-base of a build of llama.cpp, for its kinds")
    parser.add_argument("--kinds", nargs="+", choices=WEIGHTS, default=["Q4_0", "int4"])
    parser.add_argument("--orders", type=int, default=16, help="the first is the file's own")
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256, help="in a window")
    return parser.parse_args()


if __name__ == "__main__":
    main()
