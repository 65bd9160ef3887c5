"""A model in a few lines, for people: the same words in every command."""

from __future__ import annotations

import functools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, assert_never

from llama_jax.cli.console import one_line, stderr

if TYPE_CHECKING:
    from llama_jax.config import Config

_VALUES = 14
"""The column at which values begin."""
_ARGUMENT = re.compile(r"pass (max_seq_len|rope_factor) to change it")


def model_rows(c: Config) -> dict[str, str]:
    """What a person wants to know of a model, by name."""
    from llama_jax.checkpoint.published import family, parameter_count

    tied = ", output tied to the embedding" if c.tie_embeddings else ""
    biased = {"attention": c.attention_bias, "feed-forward": c.mlp_bias}
    biases = " and ".join(name for name, has in biased.items() if has)
    rows = {
        "model": family(c),
        "parameters": f"{parameter_count(c):,}",
        "layers": f"{c.n_layers}, dim {c.dim}, feed-forward {c.hidden_dim}",
        "heads": f"{c.n_heads} query, {c.n_kv_heads} key-value, of {c.head_dim}",
        "vocabulary": f"{c.vocab_size:,}{tied}",
        "RoPE": rope(c),
        "context": f"{c.max_seq_len:,} positions",
    }
    return {**rows, "biases": biases} if biases else rows


def rope(c: Config) -> str:
    """The base of a model's RoPE and its scaling."""
    from llama_jax.config import DynamicScaling, LinearScaling, Llama3Scaling, YarnScaling

    theta, scaling = f"theta {c.rope_theta:,.0f}", c.rope_scaling
    match scaling:
        case LinearScaling(factor):
            return f"{theta}, linear scaling by {factor:g}"
        case Llama3Scaling(factor=factor, original_max_seq_len=original):
            return f"{theta}, Llama 3 scaling by {factor:g} beyond {original:,} positions"
        case YarnScaling(factor=factor, original_max_seq_len=original):
            return f"{theta}, YaRN scaling by {factor:g} beyond {original:,} positions"
        case DynamicScaling(original_max_seq_len=original):
            return f"{theta}, dynamic scaling, which changes nothing within {original:,} positions"
        case None:
            return theta
    assert_never(scaling)


def print_notes(notes: Iterable[str]) -> None:
    """What a person should know of how a checkpoint was read, among what is printed of it."""
    for note in notes:
        print_rows({"note": _in_options(note)})


def say_notes(notes: Iterable[str]) -> None:
    """The same on stderr, beside what a model writes."""
    for note in notes:
        stderr.print(f"note: {_in_options(note)}", style="dim")


def _in_options(note: str) -> str:
    """A note in a command's words: options stand for arguments."""
    return _ARGUMENT.sub(
        lambda found: "`llama-jax convert` takes --" + found[1].replace("_", "-"), note
    )


def print_rows(rows: dict[str, str]) -> None:
    """Names to the left of a column, values to its right; a terminal's edge cuts no word."""
    indent = " " * _VALUES
    wrap = functools.partial(textwrap.fill, break_long_words=False, break_on_hyphens=False)
    for name, value in rows.items():
        row = f"{name:>{_VALUES - 2}}  {one_line(value)}"
        width = max(shutil.get_terminal_size().columns, 2 * _VALUES)
        if sys.stdout.isatty() and len(row) > width:
            row = wrap(row, width, subsequent_indent=indent)
        print(row)
