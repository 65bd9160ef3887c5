"""What commands print on a terminal of 80 columns: the tables of `verify`, and rows of a model."""

import io
import sys

import pytest
from rich.console import Console

from llama_jax.cli.comparison import logits_table, tensor_table
from llama_jax.cli.description import print_rows
from llama_jax.verify.compare import LogitsDifference
from llama_jax.verify.differences import TensorDifference

MANY = 6_738_415_616


def printed(table):
    out = io.StringIO()
    Console(file=out, width=80).print(table)
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return lines


def tensor(*path, differing=0, kinds=(None, None)):
    error = 0.0954 if any(kinds) else 0.0
    dtypes, gap = ("bfloat16", "bfloat16"), 1.25e-02 * (differing > 0)
    return TensorDifference(path, MANY, dtypes, differing, gap, gap, False, (0, 0), error, kinds)


def test_equal_tensors_have_no_columns_of_differences():
    title, row = printed(tensor_table([tensor("layers_0", "attention_norm", "scale")]))
    assert title.split() == ["tensors", "count", "same"]
    assert row.split() == ["attention_norm.scale", "1", "all"]


def test_the_longest_names_and_numbers_stay_whole_in_80_columns():
    for kinds in ((None, None), (None, "int4")):
        lines = printed(
            tensor_table(
                [
                    tensor("tok_embeddings", "weight", differing=MANY, kinds=kinds),
                    tensor("layers_31", "feed_forward", "w1", differing=MANY, kinds=kinds),
                    tensor("layers_31", "attention_norm", "scale"),
                ]
            )
        )
        words = " ".join(lines).split()
        for word in ("tok_embeddings.weight", f"{MANY:,}", "layers_31", "attention_norm.scale"):
            assert word in words, lines
        assert ("quantized" in words) == any(kinds)
        assert ("mean" in words) == ("relative" not in words) == any(kinds)


def test_the_logits_of_far_positions_stay_whole_in_80_columns():
    positions = (*range(23), 131_071)
    one = LogitsDifference("near", tuple(range(256)), 1e-7, 30.0, (0, 0), None)
    far = LogitsDifference("far", positions, 1.0, 30.0, (0, 0), 1e-5)
    words = " ".join(printed(logits_table([one, far]))).split()
    assert "131,071" in words
    assert {"DIFFERENT", "rounding"} <= set(words)


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        ("word " * 20 + "end", ["        note  " + " ".join(["word"] * 13), "word " * 7 + "end"]),
        ("written to " + "/folder" * 12, ["        note  written to", "/folder" * 12]),
        ("short", ["        note  short"]),
    ],
)
def test_a_row_breaks_between_words_on_a_terminal_and_nowhere_in_a_pipe(monkeypatch, value, rows):
    monkeypatch.setenv("COLUMNS", "80")
    for is_terminal in (True, False):
        out = io.StringIO()
        out.isatty = lambda found=is_terminal: found
        monkeypatch.setattr(sys, "stdout", out)
        print_rows({"note": value})
        first, *more = out.getvalue().splitlines()
        assert [first, *map(str.strip, more)] == (
            rows if is_terminal else [f"        note  {value}"]
        )
        assert all(line.startswith(" " * 14) for line in more)
