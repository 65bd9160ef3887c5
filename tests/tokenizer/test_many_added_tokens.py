"""Thousands of added tokens: found as a plain search finds them, and in one pass."""

import json
import random
import re
import time

import pytest
from small_tokenizers import sentencepiece_file

from llama_jax.tokenizer import load_tokenizer
from llama_jax.tokenizer.added import (
    MAX_ADDED,
    AddedToken,
    AddedTokens,
    read_added_tokens,
    unknown_controls,
)
from llama_jax.tokenizer.beside import Stated
from llama_jax.tokenizer.hidden_controls import HiddenControls


def longest_first(text, ids):
    """Where each token lies: at the first place that any has, the longest there."""
    found, at = [], 0
    while at < len(text):
        here = max((t for t in ids if text.startswith(t, at)), key=len, default=None)
        if here is not None:
            found.append((ids[here], (at, at + len(here))))
        at += len(here or "x")
    return found


@pytest.mark.parametrize("seed", range(20))
def test_tokens_are_found_as_a_plain_search_finds_them(seed):
    rng = random.Random(seed)
    spelled = {"".join(rng.choices("ab<\u00e9\U0001f999 ", k=rng.randint(1, 4))) for _ in range(12)}
    ids = {text: 100 + n for n, text in enumerate(sorted(spelled))}
    tokens = AddedTokens([AddedToken(id, text, special=False) for text, id in ids.items()], {})
    for _ in range(30):
        text = "".join(rng.choices("ab<x\u00e9\U0001f999 \n", k=rng.randint(0, 30)))
        parts = list(tokens.split(text))
        assert [part for part in parts if isinstance(part[0], int)] == longest_first(text, ids)
        assert all(isinstance(part, int) or part == text[a:b] for part, (a, b) in parts)
        edges = [0, *(edge for _, place in parts for edge in place), len(text)]
        assert edges[::2] == edges[1::2], "every character lies in one part"


@pytest.mark.parametrize("seed", range(20))
def test_a_message_is_hidden_wherever_a_plain_search_finds_a_control_token(seed):
    rng = random.Random(seed)
    spelled = {"".join(rng.choices("ab<\u00e9\U0001f999 ", k=rng.randint(1, 4))) for _ in range(12)}
    ids = {text: 100 + n for n, text in enumerate(sorted(spelled))}
    hidden = HiddenControls(ids)
    for _ in range(30):
        text = "".join(rng.choices("ab<x\u00e9\U0001f999 \n", k=rng.randint(0, 30)))
        found = longest_first(text, ids)
        shown, edges = hidden.hide(text), [0, *(edge for _, ab in found for edge in ab), len(text)]
        plain = [text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        assert re.split("[0-9]{45}", shown) == plain
        assert hidden.reveal(shown) == text
        begin = text[: found[0][1][1]] if found and found[0][1][0] == 0 else None
        assert hidden.begins(text) == begin


def test_80_000_control_tokens_delay_no_dialog():
    began = time.process_time()
    hidden = HiddenControls({f"<{n}>": n for n in range(MAX_ADDED)})
    assert hidden.reveal(hidden.hide("a <79999>, <x>" * 1000)) == "a <79999>, <x>" * 1000
    assert time.process_time() - began < 5  # a tenth of a second; a pattern of all takes seconds


def test_control_tokens_are_found_where_asked_for_alone():
    tokens = AddedTokens([AddedToken(7, "<x>", special=True)], {"<s>": 1})
    assert list(tokens.split("a<x><s>")) == [("a<x><s>", (0, 7))]
    found = [("a", (0, 1)), (7, (1, 4)), (1, (4, 7))]
    assert list(tokens.split("a<x><s>", controls=True)) == found
    assert list(tokens.split("", controls=True)) == []


def test_a_text_is_searched_once_for_thousands_of_tokens():
    tokens = AddedTokens([AddedToken(n, f"<{n}>", special=False) for n in range(20_000)], {})
    began = time.process_time()
    found = [part for part, _ in tokens.split("Once <upon> a <time> <19999> " * 500)]
    assert found.count(19_999) == 500
    assert time.process_time() - began < 5  # a tenth of a second; a search token by token, an hour


def test_comments_of_a_template_are_left_out_in_one_pass():
    source = "<|a|>{# <|b|> {# <|c|> #}<|d|>{# <|e|> #}<|f|>" + "{#" * 300_000
    began = time.process_time()
    assert unknown_controls(source, lambda text: None) == ["<|a|>", "<|d|>", "<|f|>"]
    assert time.process_time() - began < 5  # milliseconds; by a pattern, minutes


def test_a_folder_adds_so_many_tokens_at_most():
    with pytest.raises(ValueError, match=r"json adds 80,001 tokens of .*, and at most 80,000"):
        read_added_tokens(None, {str(n): n for n in range(MAX_ADDED + 1)}, lambda text: False)
    decoder = {str(n): {"content": "x" * 500 + str(n)} for n in range(2000)}
    with pytest.raises(ValueError, match="adds 2,000 tokens of 1,006,890 characters"):
        read_added_tokens(decoder, {}, lambda text: False)


def test_what_many_additions_give_cause_for_is_said_of_a_few():
    ignored = [AddedToken(n, f"<{n}>", special=False) for n in range(100)]
    _, notes = Stated(added=tuple(ignored)).join(lambda text: 5, 1000)
    assert len(notes) == 21
    assert notes[-1] == "and so on: 79 more of that kind"


def test_a_file_names_so_many_control_tokens_at_most(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    names = [f"<{n}>" for n in range(MAX_ADDED + 1)]
    said = json.dumps({"additional_special_tokens": names})
    (tmp_path / "tokenizer_config.json").write_text(said)
    with pytest.raises(ValueError, match=r"80,001 tokens of .* and at most 80,000"):
        load_tokenizer(tmp_path)


def test_control_tokens_that_no_file_gives_an_id_are_counted(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    for count in (256, 257):
        names = ", ".join(f'"<{n}>"' for n in range(count))
        config = f'{{"additional_special_tokens": [{names}]}}'
        (tmp_path / "tokenizer_config.json").write_text(config)
        if count == 256:
            assert len(load_tokenizer(tmp_path).notes) == 21
            continue
        with pytest.raises(ValueError, match="257 control tokens to which none gives an id"):
            load_tokenizer(tmp_path)
