"""Masks are exact for every kind of tokenizer; bombs are refused; a copy goes its own way."""

import datetime
import json
import random
import re
import sys

import numpy as np
import pytest
from dialog_kinds import byte_folder
from helpers import Letters
from small_tokenizers import SENTENCEPIECES, needs_shared, tokenizer_of

from llama_jax import load_tokenizer
from llama_jax.generation import grammar as grammar_module
from llama_jax.generation.constraint import constraint_for
from llama_jax.generation.grammar import grammar_of
from llama_jax.generation.guide import Guide
from llama_jax.generation.limits import GRAMMARS, MAX_GRAMMAR_BYTES
from llama_jax.generation.masks import bits_of
from llama_jax.generation.settings import SamplingSettings
from llama_jax.generation.token_table import TokenTable, table_of
from llama_jax.tokenizer import detokenize

LANGUAGE = ["a llama", "a llamas", " the llama", "the", "there was", "é", "猫🐈", "there\n", "a  b"]
REGEX = "|".join(LANGUAGE)
KINDS = ["tiny-tiktoken", *SENTENCEPIECES, "letters", "hugging face"]


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    made = {name: tokenizer_of(name) for name in ("tiny-tiktoken", *SENTENCEPIECES)}
    folder = byte_folder(tmp_path_factory.mktemp("bytes"), "{{ messages }}")
    return {**made, "letters": Letters(), "hugging face": load_tokenizer(folder)}


def allowed(constraint):
    return set(np.flatnonzero(bits_of(constraint.mask())).tolist())


def may_follow(tokenizer, size, written, at_start):
    """By the language as a list: ids whose bytes go on with one of its texts, and stop ids."""
    texts = [text.encode() for text in LANGUAGE]
    found = set(tokenizer.stop_ids) if written in texts else set()
    for id in set(range(size)) - {*tokenizer.stop_ids}:
        added, _ = tokenizer.token_bytes(id, at_start=at_start)
        if added and any(text.startswith(written + added) for text in texts):
            found.add(id)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("alone", [True, False], ids=["an answer", "after a text"])
def test_a_mask_allows_just_the_ids_that_spell_a_beginning(tokenizers, kind, alone):
    tokenizer, rng = tokenizers[kind], random.Random(kind)
    more = 0 if kind == "letters" else 40  # a model may have more ids than its tokenizer
    size = tokenizer.vocab_size + more
    before = [] if alone else tokenizer.encode("Once", bos=True, eos=False)
    start = constraint_for(tokenizer, size, regex=REGEX, after=before)
    ended = set()
    for _ in range(25):
        constraint, ids, written = start.copy(), [], b""
        while True:
            first = alone and not ids
            found = allowed(constraint)
            assert found == may_follow(tokenizer, size, written, at_start=first)
            token = rng.choice(sorted(found))
            constraint.take(token)
            if token in tokenizer.stop_ids:
                break
            written += tokenizer.token_bytes(token, at_start=first)[0]
            ids.append(token)
        assert written.decode() in LANGUAGE
        assert detokenize(tokenizer, ids, before) == written.decode()
        ended.add(written.decode())
    assert len(ended) > 3


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_place_is_unknown_the_first_token_is_one_that_fits_anywhere(tokenizers, kind):
    tokenizer = tokenizers[kind]
    constraint = constraint_for(tokenizer, tokenizer.vocab_size, regex=REGEX)
    alone, after = (
        may_follow(tokenizer, tokenizer.vocab_size, b"", at_start=start) for start in (True, False)
    )
    found = allowed(constraint)
    assert found <= alone & after
    assert all(
        tokenizer.token_bytes(id, at_start=True)[0] == tokenizer.token_bytes(id, at_start=False)[0]
        for id in found
    )


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama2", "llama3"])
@pytest.mark.parametrize("alone", [True, False], ids=["an answer", "after a text"])
def test_masks_of_real_vocabularies_are_exact_too(name, alone):
    tokenizer, rng = tokenizer_of(name), random.Random(name)
    size = tokenizer.vocab_size
    before = [] if alone else tokenizer.encode("Once", bos=True, eos=False)
    constraint, written = constraint_for(tokenizer, size, regex=REGEX, after=before), b""
    while True:
        first = alone and not written
        found = allowed(constraint)
        assert found == may_follow(tokenizer, size, written, at_start=first)
        token = rng.choice(sorted(found))
        if token in tokenizer.stop_ids:
            break
        constraint.take(token)
        written += tokenizer.token_bytes(token, at_start=first)[0]
    assert written.decode() in LANGUAGE


def test_stop_ids_are_those_given_and_a_text_without_any_ends_all_the_same():
    own = constraint_for(Letters(), 256, regex="ab?", stop_ids=(7, 300))
    own.take(ord("a"))
    assert allowed(own) == {ord("b"), 7}
    own.take(7)  # beyond its end nothing changes
    none = constraint_for(Letters(), 256, regex="ab?", stop_ids=())
    for token in b"ab":
        none.take(token)
    assert allowed(none) == set()


def test_a_copy_goes_its_own_way_and_a_token_that_is_not_allowed_is_an_error():
    constraint = constraint_for(Letters(), 256, regex="a(b|c)")
    constraint.take(ord("a"))
    other = constraint.copy()
    other.take(ord("b"))
    assert (allowed(constraint), allowed(other)) == ({ord("b"), ord("c")}, {2})
    with pytest.raises(ValueError, match="token 120 does not follow the schema, regex or grammar"):
        constraint.take(ord("x"))


def test_what_the_vocabulary_cannot_spell_is_an_error_in_words():
    class Few(Letters):
        def token_bytes(self, id, *, at_start):
            return (b"", at_start) if id in (1, 2, ord("z")) else (bytes([id]), False)

    constraint = constraint_for(Few(), 256, regex="az")
    constraint.take(ord("a"))
    with pytest.raises(ValueError, match="no token of the vocabulary spells what comes next"):
        constraint.mask()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give one of json_schema, regex and grammar, not none"),
        ({"regex": "a", "grammar": "b"}, "not regex and grammar"),
        ({"json_object": True, "json_schema": {}}, "any object will do"),
        ({"json_schema": "{"}, "json_schema is no JSON"),
        ({"json_schema": "3"}, "json_schema=3 must be a JSON object, true or false"),
        ({"json_schema": {"a": float("nan")}}, "json_schema is no JSON"),
        ({"json_schema": {"type": "text"}}, "json_schema cannot be followed: Invalid type: text"),
        ({"json_schema": {"if": {}}}, 'Unimplemented keys: \\["if"\\]'),
        ({"json_schema": False}, "no text follows it"),
        ({"json_schema": {"$ref": "#"}}, "no text follows it"),
        ({"regex": 3}, "regex=3 must be a text"),
        ({"regex": "\ud800"}, "regex has a lone surrogate"),
        ({"regex": r"(a)\1"}, "regex cannot be followed: backreferences are not supported"),
        ({"regex": "[a&&b]"}, "regex cannot be followed: no text follows it"),
        ({"regex": "é" * 40_000}, "regex has 80,000 bytes; at most 65,536 are compiled"),
        ({"grammar": "start: b"}, 'grammar cannot be followed: unknown name: "b"'),
    ],
)
def test_what_is_wrong_is_said_in_a_line(given, message):
    with pytest.raises(ValueError, match=message) as error:
        constraint_for(Letters(), 256, **given)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_a_schema_that_takes_years_is_refused():
    bomb = {"allOf": [{"type": "string", "pattern": f".*{c}.*"} for c in "abcdefghijklmnopqrstu"]}
    with pytest.raises(ValueError, match="takes more than a second or a gigabyte to compile"):
        grammar_of(json_schema=bomb)


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": nested(3000)},
        {"json_schema": nested(200)},
        {"json_schema": json.dumps(nested(1))[:-1] + "," + '"a":1' * MAX_GRAMMAR_BYTES},
        {"grammar": "start: " + "(" * 5000 + '"a"' + ")" * 5000},
        {"json_schema": {"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}},
    ],
    ids=["deep", "deep in the compiler", "long", "deep grammar", "without end"],
)
def test_what_is_deep_long_or_without_end_is_refused(given):
    with pytest.raises(ValueError, match=r"cannot be followed|has .* bytes"):
        grammar_of(**given)


@pytest.mark.parametrize(
    "given",
    [
        {"json_schema": {"type": "\x1b[31m\x9b"}},
        {"json_schema": {"type": "\x1b[31m" * 1000}},
        {"grammar": 'start: \x1b[31m"a"'},
        {"grammar": "start: " + "b\x7f" * 1000},
    ],
)
def test_a_compilers_words_are_short_and_without_control_characters(given):
    with pytest.raises(ValueError, match="cannot be followed: ") as found:
        grammar_of(**given)
    assert len(str(found.value)) <= 500
    assert str(found.value).isprintable()


TREE = {
    "type": "object",
    "properties": {"value": {"type": "number"}, "left": {"$ref": "#"}},
    "required": ["value"],
    "additionalProperties": False,
}
SCHEMAS = {
    "tree": (TREE, lambda x: x.keys() <= {"value", "left"} and type(x["value"]) in (int, float)),
    "date": ({"type": "string", "format": "date"}, datetime.date.fromisoformat),
    "union": (
        {
            "anyOf": [
                {"type": "null"},
                {"type": "array", "items": {"type": "boolean"}, "minItems": 1},
            ]
        },
        lambda x: x is None or (len(x) > 0 and all(type(one) is bool for one in x)),
    ),
    "bounds": (
        {
            "type": "array",
            "maxItems": 3,
            "items": {"type": "integer", "minimum": -5, "maximum": 17},
        },
        lambda x: len(x) <= 3 and all(type(one) is int and -5 <= one <= 17 for one in x),
    ),
    "text": ({"type": "string", "maxLength": 5}, lambda x: len(x) <= 5),
    "pattern": (
        {"type": "string", "pattern": "^[a-c]{2}-\\d+$"},
        lambda x: re.fullmatch(r"[a-c]{2}-\d+", x),
    ),
    "strict": (
        {"type": "object", "properties": {}, "additionalProperties": {"enum": [1, "é"]}},
        lambda x: set(x.values()) <= {1, "é"},
    ),
}


@pytest.mark.parametrize("name", SCHEMAS)
def test_whatever_is_drawn_is_json_of_the_schema(tokenizers, name):
    """Tokens drawn evenly from what is allowed; the bracket or quote that ends it more often."""
    schema, is_valid = SCHEMAS[name]
    tokenizer = tokenizers["tiny-tiktoken"]
    start = constraint_for(tokenizer, tokenizer.vocab_size, json_schema=schema, after=())
    whole = 0
    for seed in range(30):
        rng, constraint, ids = random.Random(seed), start.copy(), []
        while len(ids) < 200:
            found = sorted(allowed(constraint))
            ends = [id for id in found if id in (*b'"}]', *tokenizer.stop_ids)]
            token = rng.choice(ends if ends and rng.random() < 0.4 else found)
            constraint.take(token)
            if token in tokenizer.stop_ids:
                value = json.loads(detokenize(tokenizer, ids))
                assert is_valid(value), value
                whole += 1
                break
            ids.append(token)
    assert whole > 20


def test_blanks_between_the_tokens_of_json_come_to_an_end():
    constraint = constraint_for(Letters(), 256, json_schema=json.dumps({"type": "object"}))
    assert allowed(constraint) == {ord("{")}
    constraint.take(ord("{"))
    constraint.take(ord("\n"))
    for _ in range(20):
        constraint.take(ord(" "))
    assert ord(" ") not in allowed(constraint)
    assert {ord('"'), ord("}")} <= allowed(constraint)


def test_a_table_is_made_once_and_keeps_the_last_grammars_alone():
    tokenizer = Letters()
    table = table_of(tokenizer, 256)
    assert table_of(tokenizer, 256) is table
    for n in range(GRAMMARS + 5):
        table.matcher(f'start: "{n}"')
    assert len(table.compiled) == GRAMMARS
    assert 'start: "0"' not in table.compiled


def test_a_grammar_is_tried_once(monkeypatch):
    assert grammar_of(regex="once")
    monkeypatch.setattr(grammar_module.subprocess, "run", lambda *_, **__: pytest.fail("again"))
    assert grammar_of(regex="once")


def test_without_the_library_an_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ImportError, match=r'pip install "llama_jax\[grammar\]"'):
        constraint_for(Letters(), 256, regex="not tried before")
    with pytest.raises(ImportError, match=r'pip install "llama_jax\[grammar\]"'):
        TokenTable(Letters(), 256)


@pytest.mark.parametrize(
    ("regex", "settings", "over"),
    [
        ("", {}, "stop"),
        ("a?", {"min_new_tokens": 3}, None),
        ("a", {"forbidden_ids": [ord("a")]}, "length"),
        ("a?", {"logit_bias": {ord("a"): -float("inf")}}, "stop"),
        ("a?", {"logit_bias": {ord("a"): -5.0}}, None),
        ("a|b", {"forbidden_ids": [ord("a"), 4000]}, None),
    ],
)
def test_a_row_is_over_where_nothing_may_follow(regex, settings, over):
    constraint = constraint_for(Letters(), 256, regex=regex)
    assert Guide(constraint, SamplingSettings(**settings), (2,)).over == over
