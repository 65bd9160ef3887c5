"""What the openai client gets: what the engine gives, whole and streamed, to the letter."""

import json
import re
import shlex
import shutil
import subprocess

import openai
import pytest
from helpers import ROOT
from serving import NAME, served

import llama_jax
from llama_jax.generation.prompts import tokenizer_of
from llama_jax.serve.engine import Engine

PROMPT = "Once upon a time"
DIALOG = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def model():
    return llama_jax.load()


@pytest.fixture(scope="module")
def engine(model):
    with Engine(model, rows=1, cache_bytes=2 << 20) as engine:
        yield engine


@pytest.fixture(scope="module")
def address(engine):
    with served(engine) as (url, _):
        yield url


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def tokenizer(model):
    return tokenizer_of(model)


def whole(client, **changes):
    given = {"model": NAME, "prompt": PROMPT, "max_tokens": 12, "temperature": 0} | changes
    return client.completions.create(**given)


def streamed(client, **changes):
    return list(whole(client, stream=True, **changes))


def text_of(chunks, index=0):
    return "".join(c.text for chunk in chunks for c in chunk.choices if c.index == index)


@pytest.mark.parametrize(
    ("asked", "settings"),
    [
        ({}, {"temperature": 0.0}),
        ({"temperature": 1, "seed": 3}, {"temperature": 1.0, "seed": 3, "top_p": 1.0}),
        (
            {"temperature": 0.9, "top_p": 0.8, "seed": 2**32 + 5, "presence_penalty": 1.5},
            {"temperature": 0.9, "top_p": 0.8, "seed": 5, "presence_penalty": 1.5},
        ),
        ({"logit_bias": {"432": -100}}, {"temperature": 0.0, "logit_bias": {432: -100}}),
        ({"stop": " there"}, {"temperature": 0.0, "stop": [" there"]}),
        (
            {"extra_body": {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3}, "seed": 1}
            | {"temperature": 1.5},
            {"temperature": 1.5, "top_k": 3, "min_p": 0.1, "repetition_penalty": 1.3}
            | {"seed": 1, "top_p": 1.0},
        ),
    ],
)
def test_a_completion_is_the_engines(client, engine, asked, settings):
    (expected,) = engine.submit(PROMPT, max_new_tokens=12, **settings).completions()
    got = whole(client, **asked)
    assert (got.choices[0].text, got.choices[0].finish_reason) == (
        expected.text,
        expected.finish_reason,
    )
    assert got.usage.completion_tokens == len(expected.tokens)
    assert text_of(streamed(client, **asked)) == expected.text


@pytest.mark.skipif(shutil.which("curl") is None, reason="it runs curl; install it")
def test_what_the_pages_ask_by_curl_is_answered(address):
    pages = [ROOT / "README.md", ROOT / "docs/guides/serving.md"]
    text = "".join(page.read_text() for page in pages).replace("\\\n", "")
    lines = re.findall(r"^curl .*", text, flags=re.MULTILINE)
    assert len(lines) == 3
    for line in lines:
        asked = shlex.split(line.replace("http://127.0.0.1:8000", address))
        said = subprocess.run([*asked, "-sS", "--fail"], capture_output=True, text=True, check=True)
        assert '"text":"' in said.stdout


def test_prompts_come_in_all_four_forms(client, tokenizer):
    ids = tokenizer.encode(PROMPT, bos=True, eos=False)
    one = whole(client).choices[0].text
    assert whole(client, prompt=ids).choices[0].text == one
    several = whole(client, prompt=[PROMPT, "One day"], n=2, temperature=0)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]
    assert several.choices[1].text == one != several.choices[2].text
    assert several.usage.prompt_tokens == len(ids) + 3
    again = whole(client, prompt=[ids, tokenizer.encode("One day", bos=True, eos=False)], n=2)
    assert [c.text for c in again.choices] == [c.text for c in several.choices]
    chunks = streamed(client, prompt=[PROMPT, "One day"], n=2)
    assert [text_of(chunks, i) for i in range(4)] == [c.text for c in several.choices]


def test_usage_is_the_last_chunk_where_it_is_asked_for(client):
    chunks = streamed(client, stream_options={"include_usage": True})
    *others, last = chunks
    assert last.choices == []
    assert last.usage == whole(client).usage
    assert all(chunk.usage is None and chunk.choices[0].text for chunk in others[:-1])
    assert all(chunk.choices for chunk in streamed(client))
    assert [c.choices[0].finish_reason for c in others] == [None] * (len(others) - 1) + ["length"]


def test_echoed_logprobs_are_those_of_the_prompt(client, engine, tokenizer):
    """As lm-evaluation-harness asks for them."""
    ids = tokenizer.encode("Once upon a time, there was", bos=True, eos=False)
    got = whole(client, prompt=ids, max_tokens=1, logprobs=1, echo=True, seed=1234)
    found = got.choices[0].logprobs
    direct = engine.submit(ids, max_new_tokens=1, temperature=0, prompt_logprobs=1)
    direct.completions()
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == len(ids) + 1
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    scored = [entry.logprob for entry in direct.prompt_logprobs[1:]]
    assert found.token_logprobs[1:-1] == pytest.approx(scored, abs=1e-5)
    greedy = [
        max(top.values()) == own
        for own, top in zip(found.token_logprobs[1:], found.top_logprobs[1:], strict=True)
    ]
    assert True in greedy  # the same number, not one like it
    text = got.choices[0].text
    assert text.startswith("Once upon a time, there was")
    spelled = [*found.tokens[1:]]  # without <s>, which is no text
    assert "".join(spelled) == text
    assert [text[at:].startswith(t) for at, t in zip(found.text_offset[1:], spelled, strict=True)]
    assert (
        streamed(client, prompt=ids, max_tokens=1, logprobs=1, echo=True)[0]
        .choices[0]
        .text.startswith("Once")
    )


def test_logprobs_of_a_stream_join_to_those_of_the_whole(client):
    found = whole(client, logprobs=3).choices[0].logprobs
    chunks = streamed(client, logprobs=3)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        joined = [one for part in parts for one in getattr(part, name)]
        assert joined == getattr(found, name)
    assert [len(top) for top in found.top_logprobs] == [3] * 12


def test_a_text_ended_by_a_stop_id_lists_it_last(client, tokenizer):
    """So that evaluations, which drop the last token, drop no token of the prompt."""
    first = whole(client, max_tokens=2, logprobs=1).choices[0].logprobs
    ids = tokenizer.encode(PROMPT + ",", bos=True, eos=False)
    stop = [tokenizer.encode(PROMPT + ", there", bos=True, eos=False)[-1]]
    got = whole(client, prompt=ids, logprobs=1, echo=True, extra_body={"stop_token_ids": stop})
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.completion_tokens == 0
    assert len(got.choices[0].logprobs.tokens) == len(ids) + 1
    assert got.choices[0].logprobs.tokens[-1] == first.tokens[1] == " there"


def test_nothing_is_written_where_nothing_is_asked_for(client, tokenizer):
    got = whole(client, max_tokens=0, echo=True, logprobs=0)
    assert (got.choices[0].text, got.choices[0].finish_reason) == (PROMPT, "length")
    assert len(got.choices[0].logprobs.tokens) == 5
    full = tokenizer.encode("a " * 600, bos=True, eos=False)[:512]
    assert whole(client, prompt=full).choices[0].text == ""


def test_a_chat_is_the_engines_and_streams_role_content_and_end(client, engine):
    (expected,) = engine.submit(DIALOG, max_new_tokens=10, temperature=0).completions()
    given = {"model": NAME, "messages": DIALOG, "max_completion_tokens": 10, "temperature": 0}
    got = client.chat.completions.create(**given, logprobs=True, top_logprobs=2)
    assert got.choices[0].message.content == expected.text
    assert got.choices[0].message.role == "assistant"
    entries = got.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == expected.text
    assert all(entry.top_logprobs[0].logprob == entry.logprob for entry in entries)
    stream = client.chat.completions.create(**given, stream=True, logprobs=True)
    deltas = [chunk.choices[0] for chunk in stream]
    assert (deltas[0].delta.role, deltas[0].delta.content) == ("assistant", "")
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].delta.content is None
    assert "".join(one.delta.content for one in deltas[:-1]) == expected.text
    assert all(one.delta.content for one in deltas[1:-1])
    parts = [one.logprobs.content for one in deltas if one.logprobs is not None]
    assert [entry.token for part in parts for entry in part] == [entry.token for entry in entries]


def test_content_in_parts_and_the_developers_role_are_understood(client):
    parts = [{"type": "text", "text": "Tell me "}, {"type": "text", "text": "a story."}]
    given = {"model": NAME, "max_tokens": 3, "temperature": 0}
    one = client.chat.completions.create(messages=DIALOG, **given)
    assert one == client.chat.completions.create(
        messages=[{"role": "user", "content": parts}], **given
    ).model_copy(update={"id": one.id, "created": one.created})
    longer = client.chat.completions.create(
        messages=[{"role": "developer", "content": "Be brief."}, *DIALOG], **given
    )
    assert longer.usage.prompt_tokens > one.usage.prompt_tokens


@pytest.mark.parametrize("tokens", [2, 5])
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_begun_answer_is_continued(client, engine, tokenizer, tokens, in_parts):
    (answer,) = engine.submit(DIALOG, max_new_tokens=12, temperature=0).completions()
    begun = tokenizer.decode(answer.tokens[:tokens])
    content = [{"type": "text", "text": text} for text in (begun[:2], begun[2:])]
    said = {"role": "assistant", "content": content if in_parts else begun}
    got = client.chat.completions.create(
        model=NAME,
        messages=[*DIALOG, said],
        max_tokens=12 - tokens,
        temperature=0,
        extra_body={"continue_final_message": True, "add_generation_prompt": False},
    )
    assert begun + got.choices[0].message.content == answer.text


BEGUN = {"continue_final_message": True}
SAID = {"role": "assistant", "content": "Well"}


@pytest.mark.parametrize(
    ("last", "extra", "param", "said"),
    [
        (SAID, BEGUN | {"add_generation_prompt": True}, "continue_final_message", "send one of"),
        (DIALOG[0], BEGUN, "continue_final_message", "not the assistant's or has no text"),
        (SAID | {"content": ""}, BEGUN, "continue_final_message", "has no text"),
        (SAID | {"content": [{"type": "image_url"}]}, BEGUN, "messages", "image_url"),
        (DIALOG[0], {"add_generation_prompt": False}, "add_generation_prompt", "asks for no"),
        (SAID, {}, "messages", "assistant"),
    ],
)
def test_whether_an_answer_begins_or_goes_on_is_clear(client, last, extra, param, said):
    with pytest.raises(openai.BadRequestError, match=said) as error:
        client.chat.completions.create(model=NAME, messages=[*DIALOG, last], extra_body=extra)
    assert error.value.param == param


def test_no_answer_is_begun_before_a_question(client):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=NAME, messages=[SAID], extra_body=BEGUN)
    assert error.value.param == "messages"


@pytest.mark.parametrize("empty", [{"annotations": [], "refusal": None}, {"tool_calls": []}])
def test_an_answer_is_sent_back_as_it_came(client, empty):
    given = {"model": NAME, "max_tokens": 3, "temperature": 0}

    def answer(**fields):
        said = {"role": "assistant", "content": "Well.", **fields}
        got = client.chat.completions.create(messages=[*DIALOG, said, *DIALOG], **given)
        return got.choices[0].message, got.usage.prompt_tokens

    assert answer(**empty) == answer()
    with pytest.raises(openai.BadRequestError, match="message 1 has"):
        answer(**{name: [{"type": "citation"}] for name in empty})


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"temperature": 3}, "temperature", "temperature=3 is refused: expected float <= 2.0"),
        ({"n": 10**9}, "n", "expected int <= 16"),
        ({"logprobs": 21}, "logprobs", "<= 20"),
        ({"stop": ["a"] * 100_000}, "stop", "length <= 8"),
        ({"stop": ["</s>x"]}, "stop", "control token"),
        ({"logit_bias": {"many": 1}}, "logit_bias", "token ids from 0 to 2047"),
        ({"extra_body": {"stop_token_ids": [9999]}}, "stop_token_ids", "0 to 2047"),
        ({"prompt": "a " * 600}, "prompt", "602 tokens, and the context ends at 512"),
        ({"prompt": "a" * 10**6}, "prompt", "1,000,000 characters"),
        ({"prompt": [[1, 2], [1, 4096]]}, "prompt[1]", "token 4096"),
        ({"prompt": ["a", 1]}, "prompt", "mixes"),
        ({"prompt": []}, "prompt", "length >= 1"),
        ({"best_of": 3}, "best_of", "leave it out"),
        ({"suffix": "end"}, "suffix", "only continues"),
        ({"extra_body": {"chat_template": "{{ x }}"}}, "chat_template", "a template is a program"),
        ({"extra_body": {"guided_jsn": 1}}, "guided_jsn", "may change the answer"),
        (
            {"extra_body": {"guided_regex": "a", "guided_choice": ["b"]}},
            "guided_choice",
            "keep one",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(client, changes, param, said):
    with pytest.raises(openai.BadRequestError) as error:
        whole(client, **changes)
    assert error.value.param == param
    assert said in str(error.value)
    assert error.value.response.headers["x-should-retry"] == "false"


def test_what_changes_nothing_is_taken(client):
    ignored = {"user": "me", "extra_body": {"skip_special_tokens": True, "suffix": None}}
    assert whole(client, **ignored).choices[0].text == whole(client).choices[0].text


def test_a_dialog_that_the_format_cannot_write_is_refused(client):
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    for messages in ([{"role": "user", "content": [image]}], [{"role": "wizard", "content": "a"}]):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=NAME, messages=messages)
        assert error.value.param == "messages"


def test_a_dialog_too_long_to_be_read_is_refused(client):
    for text in ("a" * 10**6, [{"type": "text", "text": "a" * 10**6}], "a " * 600):
        with pytest.raises(openai.BadRequestError) as error:
            client.chat.completions.create(model=NAME, messages=[{"role": "user", "content": text}])
        assert error.value.code == "context_length_exceeded"


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as error:
        whole(client, model="gpt")
    assert error.value.code == "model_not_found"
    assert [one.id for one in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).max_model_len == 512
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")
    with pytest.raises(openai.NotFoundError, match="no embeddings"):
        client.embeddings.create(model=NAME, input="a")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({"extra_body": {"guided_choice": [" yes.", " no (a+b)"]}}, r" yes\.| no \(a\+b\)"),
        ({"extra_body": {"guided_regex": " [0-9]{3}"}}, " [0-9]{3}"),
        ({"extra_body": {"structured_outputs": {"regex": " [0-9]{3}"}}}, " [0-9]{3}"),
        (
            {
                "extra_body": {
                    "guided_json": {"type": "array", "items": {"const": 1}, "maxItems": 2}
                }
            },
            r"\s*\[\s*(1\s*(,\s*1\s*)?)?\]\s*",
        ),
    ],
)
def test_completions_are_what_was_asked_for(client, asked, expected):
    pytest.importorskip("llguidance")
    text = whole(client, temperature=1, seed=2, max_tokens=40, **asked).choices[0].text
    assert re.fullmatch(expected, text)


def test_an_answer_follows_a_schema(client):
    pytest.importorskip("llguidance")
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["Lily", "Tom"]}, "age": {"type": "integer", "maximum": 9}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    format = {"type": "json_schema", "json_schema": {"name": "who", "schema": schema}}
    given = {"model": NAME, "messages": DIALOG, "max_tokens": 80, "seed": 1}
    got = client.chat.completions.create(**given, response_format=format)
    found = json.loads(got.choices[0].message.content)
    assert found["name"] in ("Lily", "Tom")
    assert set(found) == {"name", "age"}
    assert got.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("format", "param"),
    [
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "xml"}, "response_format.type"),
        ({"type": "json_object", "shema": {}}, "response_format"),
        ({"type": "json_object", "schema": {"type": "no"}}, "response_format"),
        ({"type": "json_schema", "json_schema": {"schema": {"type": "no"}}}, "response_format"),
        ({"type": "regex", "regex": "(a"}, "response_format"),
        ({"type": "regex", "regex": "a" * 100_000}, "response_format.regex"),
    ],
)
def test_a_format_that_is_none_is_refused(client, format, param):
    pytest.importorskip("llguidance")
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(model=NAME, messages=DIALOG, response_format=format)
    assert error.value.param == param
