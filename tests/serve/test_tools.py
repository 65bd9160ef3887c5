"""Calls are found however a text is cut, nothing of them leaks, and what is no call stays text."""

import json
import re

import pytest
from helpers import Letters
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_jax.generation.constraint import constraint_for
from llama_jax.serve.tools import (
    ArgumentsPiece,
    CallBegun,
    CallEnded,
    Text,
    parser_of,
    schema_for,
)

TOOLS = [
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}},
    {"type": "function", "function": {"name": "brave_search"}},
    {"name": "get-weather"},
]


def heard(pieces):
    """Texts and calls of an answer that came in pieces; calls that were not ended have None."""
    parser, found = parser_of(None, TOOLS), []
    events = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    ids = set()
    for event in events:
        match event:
            case Text(text) if found and isinstance(found[-1], str):
                found[-1] += text
            case Text(text):
                found.append(text)
            case CallBegun(index, id, name):
                assert re.fullmatch("call_[0-9a-f]{24}", id)
                ids.add(id)
                assert index == len(ids) - 1
                found.append((name, "", False))
            case ArgumentsPiece(index, text):
                name, arguments, _ = found[-1]
                assert index == len(ids) - 1
                found[-1] = name, arguments + text, False
            case CallEnded(index):
                found[-1] = *found[-1][:2], True
    return found


def calls(*named):
    return [(name, given, True) for name, given in named]


CASES = {
    '{"name": "f", "parameters": {"a": 1}}': calls(("f", {"a": 1})),
    ' \n{ "name" : "f" , "arguments" : {"a": {"b": "}\\"{"}} } \n': calls(
        ("f", {"a": {"b": '}"{'}})
    ),
    '{"type": "function", "name": "f", "parameters": {}}': calls(("f", {})),
    '{"type": "function", "function": {"name": "f", "parameters": {"é": [1]}}}': calls(
        ("f", {"é": [1]})
    ),
    '{"parameters": {"a": 1}, "name": "get-weather"}': calls(("get-weather", {"a": 1})),
    '{"name": "f"}': calls(("f", {})),
    '{"name": "f", "parameters": null}': calls(("f", {})),
    '{"name": "f", "parameters": {"a": 1}, "id": "x}"}': calls(("f", {"a": 1})),
    '{"name": "f", "parameters": {}}; {"name": "get-weather", "parameters": {"a": 1}}': calls(
        ("f", {}), ("get-weather", {"a": 1})
    ),
    '{"name": "f", "parameters": {}}\n{"name": "f", "parameters": {"a": []}};': calls(
        ("f", {}), ("f", {"a": []})
    ),
    'brave_search.call(query="llamas (old) \\"and\\" new")': calls(
        ("brave_search", {"query": 'llamas (old) "and" new'})
    ),
    "[f(a=1, b=[True, null, -2.5]), brave_search(query='it\\'s [')]": calls(
        ("f", {"a": 1, "b": [True, None, -2.5]}), ("brave_search", {"query": "it's ["})
    ),
    '[\n f(a={"b": (1, false)})]': calls(("f", {"a": {"b": [1, False]}})),
    '[f(), {"name": "f"}]': ['[f(), {"name": "f"}]'],
    '{"name": "f", "parameters": {}}\nDone.': [*calls(("f", {})), "\nDone."],
    '{"name": "f", "parameters": {}}; {"name": "g", "parameters": {}}': [
        *calls(("f", {})),
        '; {"name": "g", "parameters": {}}',
    ],
    '{"name": "g", "parameters": {}}': ['{"name": "g", "parameters": {}}'],
    '{"city": "Bern", "name": "f"}': ['{"city": "Bern", "name": "f"}'],
    '{"name": "f", "parameters": [1]} ': ['{"name": "f", "parameters": [1]} '],
    "{}": ["{}"],
    '{"name": "f", "par': ['{"name": "f", "par'],
    "[f(a=1": ["[f(a=1"],
    "[f(x)]": ["[f(x)]"],
    "[f(1)]": ["[f(1)]"],
    "[f(a=open('x'))]": ["[f(a=open('x'))]"],
    "[f(a={1, 2})]": ["[f(a={1, 2})]"],
    "[f(a=1e999)]": ["[f(a=1e999)]"],
    "[1] says so": ["[1] says so"],
    "[]": ["[]"],
    "found it": ["found it"],
    "brave_searching": ["brave_searching"],
    ' The call {"name": "f", "parameters": {}} is one': [
        ' The call {"name": "f", "parameters": {}} is one'
    ],
    "": [],
    " \n": [" \n"],
}


def in_json(found):
    return [
        (one[0], json.loads(one[1]), one[2]) if isinstance(one, tuple) else one for one in found
    ]


@pytest.mark.parametrize("text", CASES)
def test_calls_are_found_whole_and_letter_by_letter(text):
    assert in_json(heard([text])) == CASES[text]
    assert heard(text) == heard([text])


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_cut_gives_the_same_events(data):
    pieces = st.sampled_from([*CASES, *'{}[]();\n", :f=', '"name"', '"parameters"', "f(", '"f"'])
    text = "".join(data.draw(st.lists(pieces, min_size=1, max_size=4)))
    places = data.draw(st.lists(st.integers(0, len(text)), max_size=8).map(sorted))
    cut = [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]
    assert heard(cut) == heard([text])


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="{}[]()\"\\':;, \nfgname1=", max_size=40))
def test_what_is_no_call_comes_out_whole(text):
    found = heard(text)
    if not any(isinstance(one, tuple) for one in found):
        assert "".join(found) == text


def test_arguments_come_as_they_are_written_and_a_cut_call_is_never_ended():
    parser = parser_of(None, TOOLS)
    assert parser.push('{"name": "f", "parameters": ') == []
    begun, piece = parser.push('{"a": "lon')
    assert (begun.name, piece.text) == ("f", '{"a": "lon')
    assert parser.push("g") == [ArgumentsPiece(0, "g")]
    assert parser.finish() == []


class Tagged(Letters):
    """Letters, in which 3 is the tag."""

    special = {**Letters.special, "<|python_tag|>": 3}  # noqa: RUF012

    def token_bytes(self, id, *, at_start):
        return (b"", at_start) if id == 3 else super().token_bytes(id, at_start=at_start)


@pytest.mark.parametrize("size", [1, 2, 5, 100])
@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize(
    ("before", "after", "found"),
    [
        ("", '{"name": "f", "parameters": {"a": 1}}', calls(("f", {"a": 1}))),
        ("", 'brave_search.call(query="x")', calls(("brave_search", {"query": "x"}))),
        ("Sure é. ", '{"name": "f", "parameters": {}}', ["Sure é. ", *calls(("f", {}))]),
        ('{"name": "f"', ' and more"', ['{"name": "f" and more"']),
        ("", "print(1)", ["print(1)"]),
    ],
)
def test_the_tag_is_found_by_its_token_wherever_deltas_are_cut(before, after, found, size, lag):
    """`lag`: text that may become a stop string waits, its tokens do not."""
    ids = [*before.encode(), 3, *after.encode()]
    parser, events, text, given = parser_of(Tagged(), TOOLS), [], before + after, 0
    for start in range(0, len(ids), size):
        tokens = ids[start : start + size]
        spelled = bytes(id for id in ids[: start + size] if id != 3).decode(errors="ignore")
        certain = max(len(spelled) - lag, given)
        events += parser.push(text[given:certain], tokens)
        given = certain
    events += parser.push(text[given:]) + parser.finish()
    names = [event.name for event in events if isinstance(event, CallBegun)]
    assert names == [one[0] for one in found if isinstance(one, tuple)]
    texts = "".join(event.text for event in events if isinstance(event, Text))
    assert texts == "".join(one for one in found if isinstance(one, str))


def test_without_tools_there_is_no_parser():
    assert parser_of(Letters(), None) is None
    assert parser_of(Letters(), []) is None


def follows(schema, text):
    constraint = constraint_for(Letters(), 256, json_schema=schema)
    try:
        for byte in text.encode():
            constraint.take(byte)
        return bool(constraint.mask()[0] & 0b100)  # the stop id, 2
    except ValueError:
        return False


SEARCH = {
    "name": "search",
    "parameters": {
        "type": "object",
        "properties": {"q": {"$ref": "#/$defs/query"}, "n": {"type": "integer"}},
        "required": ["q"],
        "$defs": {"query": {"type": "string"}},
    },
}


def test_required_and_named_calls_have_a_schema_that_the_parser_reads():
    tools = [{"type": "function", "function": SEARCH}, {"name": "now"}]
    asked, now = '{"name": "search", "parameters": {"q": "x"}}', '{"name": "now", "parameters": {}}'
    required = schema_for(tools, "required")
    assert follows(required, asked)
    assert follows(required, now)
    named = schema_for(tools, {"type": "function", "function": {"name": "now"}})
    assert follows(named, now)
    assert not follows(named, asked)
    for wrong in (
        '{"name": "search", "parameters": {}}',
        '{"name": "search", "parameters": {"q": 1}}',
        '{"name": "now", "parameters": {"q": "x"}}',
        '{"name": "now"}',
        "now",
    ):
        assert not follows(required, wrong)
    for text in (asked, now):
        (begun, *_, ended) = parser_of(None, tools).push(text)
        assert isinstance(ended, CallEnded)
        assert begun.name in text


def test_a_free_choice_has_no_schema_and_an_unknown_name_is_refused():
    assert [schema_for(TOOLS, choice) for choice in (None, "none", "auto")] == [None] * 3
    with pytest.raises(
        ValueError, match="tool_choice names 'g'; the tools are 'f', 'brave_search'"
    ):
        schema_for(TOOLS, {"type": "function", "function": {"name": "g"}})
    with pytest.raises(ValueError, match="asks for a call, and there are no tools"):
        schema_for([], "required")
