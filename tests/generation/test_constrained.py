"""What a model writes under a constraint is of its form, whatever the settings are."""

import dataclasses
import json
import math
import re

import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax import chat, generate, stream
from llama_jax.generation import chat as chat_module
from llama_jax.generation.asked import Asked
from llama_jax.generation.batch import Form, constrained, rows_of
from llama_jax.generation.completed import completed, in_order
from llama_jax.generation.constraint import constraint_for
from llama_jax.generation.placement import Placement
from llama_jax.generation.settings import for_each
from llama_jax.ops.sampling import allowed_only

ONCE = ["Once upon a time"]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "likes": {"type": "array", "items": {"enum": ["red", 'a "b"']}, "maxItems": 2},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
DRAWN = {"temperature": 1.5, "top_p": 1.0, "n": 16}  # one batch size: two programs for this file


@pytest.fixture(scope="module")
def own():
    return llama_jax.load()


def check_valid(value):
    assert value.keys() - {"likes"} == {"name", "age"}
    assert isinstance(value["name"], str)
    assert len(value["name"]) <= 10
    assert isinstance(value["age"], int)
    assert 0 <= value["age"] <= 120
    likes = value.get("likes", [])
    assert len(likes) <= 2
    assert set(likes) <= {"red", 'a "b"'}


def test_drawn_json_is_valid_and_ends_of_itself(own):
    done = generate(own, ONCE, json_schema=SCHEMA, max_new_tokens=180, **DRAWN)
    ended = [one for one in done if one.finish_reason == "stop"]
    assert len(ended) > 8, "some blanks may be long, most texts are short"
    for one in ended:
        check_valid(json.loads(one.text))
    assert len({one.text for one in ended}) == len(ended)
    for one in done:
        assert one.finish_reason == "stop" or len(one.tokens) == 180
        assert (one.finish_reason == "stop") == one.text.endswith("}"), "and not before"


def test_drawn_texts_match_the_regex_and_a_stream_is_the_same(own):
    regex = r" (Tom|Anna), (who was [a-z]{3,9}, )?saw \d{1,3} (cats?|dogs?)\."
    asked = {"regex": regex, "max_new_tokens": 60, **DRAWN}
    done = generate(own, ONCE, **asked)
    for one in done:
        assert (one.finish_reason, one.stop_token) == ("stop", None)
        assert re.fullmatch(regex, one.text)
    texts = [""] * len(done)
    for delta in stream(own, ONCE, **asked):
        texts[delta.row] += delta.text
    assert texts == [one.text for one in done]


def test_settings_hold_beside_a_constraint(own):
    tokenizer = llama_jax.load_tokenizer(own.tokenizer)
    comma = tokenizer.encode("a,", bos=False, eos=False)[-1]
    asked = {"max_new_tokens": 40, "logprobs": 2, **DRAWN}
    regex = r"( (red|blue),?)+"
    free = generate(own, ONCE, regex=regex, min_new_tokens=12, logit_bias={comma: 3.0}, **asked)
    assert all(re.fullmatch(regex, one.text) for one in free if one.finish_reason == "stop")
    assert all(len(one.tokens) == len(one.logprobs) >= 12 for one in free)
    assert any("," in one.text for one in free)
    assert {one.finish_reason for one in free} <= {"stop", "length"}
    for one in free:
        if one.finish_reason == "stop":
            assert one.stop_token in tokenizer.stop_ids, "more could have followed"
    without = generate(own, ONCE, regex=regex, logit_bias={comma: -math.inf}, **asked)
    assert all("," not in one.text for one in without)
    cut = generate(own, ONCE, regex=regex, stop=["blue"], min_new_tokens=3, **asked)
    assert all("blue" not in one.text or len(one.tokens) > 3 for one in cut)
    assert any(one.finish_reason == "stop" and one.text.endswith(" ") for one in cut)


def test_a_text_ends_where_nothing_may_follow_and_is_cut_where_it_is_too_long(own):
    four = {**DRAWN, "min_new_tokens": 5}
    (ended, *_) = generate(own, ONCE, regex=" cat", max_new_tokens=9, **four)
    assert (ended.text, ended.finish_reason, ended.stop_token) == (" cat", "stop", None)
    (nothing, *_) = generate(own, ONCE, regex="", max_new_tokens=9, **four)
    assert (nothing.text, nothing.tokens, nothing.finish_reason) == ("", [], "stop")
    (exact, *_) = generate(own, ONCE, regex=" cat", max_new_tokens=len(ended.tokens), **DRAWN)
    assert exact.finish_reason in ("stop", "length")
    assert (exact.finish_reason == "stop") == (exact.text == " cat")
    for cut in generate(own, ONCE, regex=" (cat )+dog", max_new_tokens=1, **DRAWN):
        assert cut.finish_reason == "length"
        assert " cat ".startswith(cut.text), "the first token is under the constraint too"


def test_rows_of_a_batch_may_be_without_one(own):
    """An engine mixes them: a row without a constraint draws as it always does."""
    tokenizer, config = llama_jax.load_tokenizer(own.tokenizer), own.config
    settings = for_each(None, {"temperature": 1.0, "max_new_tokens": 8}, 1)
    rows = rows_of(config, ONCE, settings, 16, tokenizer, False)
    form = Form(None, " (red|blue)", None)
    mixed = [*constrained(rows[:8], config.vocab_size, tokenizer, form), *rows[8:]]
    done = in_order(list(completed(own, Asked(mixed, Placement.of(own), tokenizer))))
    free = generate(own, ONCE, n=16, temperature=1.0, max_new_tokens=8)
    assert {one.text for one in done[:8]} <= {" red", " blue"}
    assert [one.tokens for one in done[8:]] == [one.tokens for one in free[8:]]


class Bare:
    """A tokenizer with a dialog format, for a model that has none."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def encode_dialog(self, messages, *, tools=None):
        return self.tokenizer.encode(messages[-1]["content"], bos=True, eos=False)


def test_an_answer_to_a_dialog_is_of_the_form(own, monkeypatch):
    tokenizer = Bare(llama_jax.load_tokenizer(own.tokenizer))
    asked = [{"role": "user", "content": ONCE[0]}]
    form = {"tokenizer": tokenizer, "regex": "yes|no"}
    for done in generate(own, [asked], max_new_tokens=9, **form, **DRAWN):
        assert done.text in ("yes", "no"), "a piece with a space adds none at an answer's start"
        assert done.finish_reason == "stop"
    # `chat` gives the same row to the same function.
    monkeypatch.setattr(chat_module, "completed", lambda _, asked: [(None, *asked.rows)])
    monkeypatch.setattr(chat_module, "in_order", lambda done: [row for _, row in done])
    constraint = constraint_for(tokenizer, own.config.vocab_size, regex="yes|no", after=())
    row = chat(own, asked, **form)
    assert row.constraint.mask().tolist() == constraint.mask().tolist()


def test_without_a_tokenizer_the_error_says_what_needs_one(own):
    bare = dataclasses.replace(own, tokenizer=None)
    with pytest.raises(ValueError, match="regex says what a text may be, and these params have no"):
        generate(bare, [[1, 2]], regex="a")


def test_only_allowed_tokens_keep_their_logits():
    words = jnp.array([[0b101, 1 << 7], [0, 0xFFFFFFFF]], jnp.uint32)
    found = np.asarray(allowed_only(jnp.ones((2, 40)), words))
    assert np.flatnonzero(found[0] == 1).tolist() == [0, 2, 39]
    assert np.flatnonzero(found[1] == 1).tolist() == list(range(32, 40))
    assert np.isneginf(found[found != 1]).all()
