"""What is trained: shapes, and the files from which every contestant begins alike."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bench.shapes import SHAPES
from llama_jax.config import Config

ROUND_ROWS = 4096
"""Rows of random ids, over and over: the time of a step does not depend on them."""


@dataclasses.dataclass(frozen=True)
class Work:
    """One model's training."""

    config: Config
    batch: int
    time: int
    steps: int
    """Steps of a round."""
    learning_rate: float = 3e-4
    beta2: float = 0.95
    warmup: int = 10


def _small(dim: int, hidden: int, vocabulary: int, time: int, **others: Any) -> Config:
    fields = {"dim": dim, "hidden_dim": hidden, "head_dim": 32, "n_layers": 4}
    heads = {"n_heads": dim // 32, "n_kv_heads": dim // 32, "tie_embeddings": True}
    sizes = {"vocab_size": vocabulary, "max_seq_len": time}
    return dataclasses.replace(SHAPES["S"], **{**fields, **heads, **sizes, **others})


WORKS = {
    "toy": Work(_small(64, 176, 256, 64, n_layers=2), 4, 64, 2),
    "S": Work(dataclasses.replace(SHAPES["S"], max_seq_len=512), 1, 512, 2),
    "1M": Work(_small(128, 352, 2048, 384), 8, 384, 10),
    "3M": Work(_small(256, 688, 512, 256), 8, 256, 10),
}
"""S is llama2.c's stories110M, with one row of 512 tokens. 1M is the model that
configs/train/stories.toml trains, but with as many key heads as query heads. 3M is twice as wide
and has fewer words."""
NANOGPT = Work(_small(128, 352, 65, 64), 12, 64, 200, learning_rate=1e-3, beta2=0.99, warmup=100)
"""nanoGPT's recipe for a CPU, as its README shortens config/train_shakespeare_char.py: 4 layers, 4
heads, 128 wide, block 64, batch 12, 2,000 steps, no dropout; here of a LLaMA of as many
parameters."""


def write(work: Work, folder: Path, steps: int, text: str | None) -> None:
    """Weights, tokens, the ids of each step's rows and its learning rate, in a new folder.

    The tokens are the text's characters, of which the last tenth is for validation as nanoGPT has
    it, or random ids.
    """
    shutil.rmtree(folder, ignore_errors=True)
    tokens = folder / "tokens"
    tokens.mkdir(parents=True)
    if text is None:
        count = ROUND_ROWS * work.time + 1
        ids = np.random.default_rng(0).integers(0, work.config.vocab_size, count)
        ids.astype("<u2").tofile(tokens / "train.bin")
    else:
        letters = sorted(set(text))
        if len(letters) > work.config.vocab_size:
            raise ValueError(
                f"the text has {len(letters)} characters and the model {work.config.vocab_size}"
            )
        ids = np.searchsorted(letters, list(text)).astype("<u2")
        cut = len(ids) * 9 // 10
        ids[:cut].tofile(tokens / "train.bin")
        ids[cut:].tofile(tokens / "val.bin")
    _write_plan(work, folder, steps)
    write_weights(work.config, folder)


def _write_plan(work: Work, folder: Path, steps: int) -> None:
    import jax.numpy as jnp

    from llama_jax.train.optimizer import learning_rate
    from llama_jax.train.rows import TextRows
    from llama_jax.train.token_folder import open_tokens

    rows = TextRows(open_tokens(folder / "tokens").train, work.time, "joined")
    order = rows.order(work.batch, seed=0)
    np.save(folder / "rows.npy", np.stack([order.at(step) for step in range(steps)]))
    rates = learning_rate(recipe_of(work, steps), jnp.arange(steps))
    np.save(folder / "rates.npy", np.asarray(rates))


def recipe_of(work: Work, steps: int) -> Any:
    """The training as our recipe: the paper's but for the rates that nanoGPT states."""
    from llama_jax.train.recipe import Optimizer, Recipe, Step

    return Recipe(
        steps=steps,
        optimizer=Optimizer(
            learning_rate=work.learning_rate,
            warmup=min(work.warmup, steps - 1),
            beta2=work.beta2,
        ),
        step=Step(
            batch=work.batch,
            context=work.time,
            dtype="float32",
            remat="none",
            documents="joined",
        ),
    )


def write_weights(config: Config, folder: Path) -> None:
    """The same random weights as we and as transformers read them."""
    import jax

    import llama_jax
    from llama_jax.checkpoint.export import export
    from llama_jax.model.transformer import init_params

    llama_jax.save(init_params(jax.random.key(0), config), folder / "native")
    export(folder / "native", folder / "hf", format="hf")
