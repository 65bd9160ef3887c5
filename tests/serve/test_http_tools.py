"""Calls of tools as the openai client reads them, whole and streamed."""

import json
import threading
from types import SimpleNamespace

import msgspec
import openai
import pytest
from helpers import config_of
from scripted import Scripted, delta
from serving import NAME, served
from small_tokenizers import tiktoken_file

from llama_jax.serve.openai.chat import asked_for
from llama_jax.serve.openai.requests import ChatRequest
from llama_jax.serve.openai.served import Served
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOLS = [
    {"type": "function", "function": {"name": name, "description": "", "parameters": PARAMETERS}}
    for name in ("weather", "time")
]
ASKED = {"model": NAME, "messages": [{"role": "user", "content": "How is it?"}], "tools": TOOLS}
TWO = '{"name": "weather", "parameters": {"city": "Ulm; {1}"}}; {"name": "time", "parameters": {}}'


@pytest.fixture(scope="module")
def serving():
    engine = Scripted()
    with served(engine) as (url, _):
        yield engine, url


@pytest.fixture
def engine(serving):
    serving[0].asked.clear()
    return serving[0]


@pytest.fixture
def client(serving):
    with openai.OpenAI(base_url=f"{serving[1]}/v1", api_key="none", max_retries=0) as client:
        yield client


def answering(engine, text, reason="stop"):
    """The engine answers the next request with a text, letter by letter."""

    def answer():
        engine.say(engine.wait_for_stream(), *map(delta, text), delta("", reason))

    threading.Thread(target=answer).start()


def called(calls):
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def test_calls_are_told_apart_from_text(engine, client):
    answering(engine, TWO)
    (choice,) = client.chat.completions.create(**ASKED).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert called(choice.message.tool_calls) == [("weather", {"city": "Ulm; {1}"}), ("time", {})]
    assert len({call.id for call in choice.message.tool_calls}) == 2
    answering(engine, 'It is {"name": "warm"}.')
    (choice,) = client.chat.completions.create(**ASKED).choices
    assert choice.message.content == 'It is {"name": "warm"}.'
    assert (choice.message.tool_calls, choice.finish_reason) == (None, "stop")


def test_calls_are_streamed_without_a_letter_of_them_as_text(engine, client):
    answering(engine, TWO)
    chunks = list(client.chat.completions.create(**ASKED, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(one.content or "" for one in deltas) == ""
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    pieces = [call for one in deltas for call in one.tool_calls or []]
    begun = [(one.index, one.function.name) for one in pieces if one.id]
    assert begun == [(0, "weather"), (1, "time")]
    arguments = ["", ""]
    for one in pieces:
        arguments[one.index] += one.function.arguments
    assert list(map(json.loads, arguments)) == [{"city": "Ulm; {1}"}, {}]
    assert len(pieces) > 10  # as they come


def test_a_call_that_was_cut_ends_by_length(engine, client):
    answering(engine, TWO[:50], "length")
    (choice,) = client.chat.completions.create(**ASKED).choices
    assert choice.finish_reason == "length"
    assert choice.message.tool_calls[0].function.arguments == '{"city": "Ulm; {'


def test_the_model_is_told_of_tools_and_of_calls_as_templates_write_them(engine, client):
    call = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "noon"}
    asked = ASKED | {"messages": [*ASKED["messages"], said, result]}
    answering(engine, "Noon.")
    client.chat.completions.create(**asked)
    messages, tools = json.loads(bytes(engine.asked[-1][0][1:]))
    assert tools == TOOLS
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"a": 1}
    assert "content" not in messages[1]
    answering(engine, TWO)
    (choice,) = client.chat.completions.create(**asked, tool_choice="none").choices
    assert choice.message.content == TWO
    assert "tool_calls" in engine.asked[-1][0][1]  # a dialog, of which the engine knows no tools


def test_a_model_without_a_template_is_told_in_llama_3s_own_format():
    tokenizer = TiktokenTokenizer(tiktoken_file())
    config = config_of(vocab_size=tokenizer.vocab_size, max_seq_len=4096)
    served = Served(SimpleNamespace(config=config, tokenizer=tokenizer), NAME, 0)
    call = {"id": "1", "type": "function", "function": {"name": "time", "arguments": '{"a": 1}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    result = {"role": "tool", "tool_call_id": "1", "content": "noon"}
    messages = [*ASKED["messages"], said, result]
    request = msgspec.convert({**ASKED, "messages": messages}, ChatRequest)
    ((prompt,), _) = asked_for(served, request)
    assert prompt == tokenizer.encode_dialog(messages, tools=TOOLS)


def test_a_call_that_is_demanded_binds_the_answer(engine, client):
    pytest.importorskip("llguidance")
    answering(engine, TWO)
    client.chat.completions.create(**ASKED, tool_choice="auto")
    assert engine.asked[-1][-1] is None
    for choice in ("required", {"type": "function", "function": {"name": "time"}}):
        answering(engine, TWO)
        client.chat.completions.create(**ASKED, tool_choice=choice)
        constraint = engine.asked[-1][-1].copy()
        first = [id for id in range(256) if constraint.mask()[id // 32] >> (id % 32) & 1]
        assert ord("{") in first
        assert ord("a") not in first


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "required", "tools": []}, "tool_choice"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": TOOLS * 65}, "tools"),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
        ),
    ],
)
def test_tools_that_are_none_are_refused(engine, client, changes, param):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASKED | changes)
    assert error.value.param == param
