"""A conversation's ids are what its chat template makes of `messages`, at every turn."""

import dataclasses
import json

import jax
import pytest
import tokenizers
from dialog_kinds import CALL, KINDS, TOOL_TEMPLATE, TOOLS, byte_folder
from small_tokenizers import tiktoken_file

import llama_jax
from llama_jax import Conversation, generate, init_params, load_tokenizer
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

QUESTIONS = ("Who is Lily?", "Why?", "Where?", "And then?", "Is that all?")
LETTERS = "abcd."


@pytest.fixture(scope="module")
def params(config):
    return init_params(jax.random.key(0), dataclasses.replace(config, vocab_size=264))


def settings_of(tokenizer):
    """An answer of eight letters and full stops, which end a thought."""
    bias = dict.fromkeys(tokenizer.encode(LETTERS, bos=False, eos=False), 60.0)
    settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8}
    return settings | {"logit_bias": bias, "stop_ids": []}


def talk_in(params, folder, **changes):
    tokenizer = load_tokenizer(folder)
    return Conversation(params, tokenizer=tokenizer, **settings_of(tokenizer) | changes)


def encoded(folder, text):
    """The ids of a rendered dialog, by the library itself."""
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    return made.encode(text, add_special_tokens=False).ids


def shared(one, other):
    both = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(both) if a != b), min(len(one), len(other)))


def turn(talk, answer):
    """The ids that an answer was asked with, and those that it has."""
    before = list(talk.ids)
    tokens = [token for delta in answer for token in delta.tokens]
    asked = talk.ids[: len(talk.ids) - len(tokens)]
    # All that agrees is kept, but the newest token of the last turn, which the cache has not read.
    kept = min(shared(before[:-1], asked), len(asked) - 1)
    assert talk.prefilled == len(asked) - kept
    return asked, tokens


@pytest.mark.parametrize("kind", KINDS)
def test_five_turns_are_what_the_template_makes_of_the_messages(params, tmp_path, kind):
    template, written = KINDS[kind]
    folder = byte_folder(tmp_path, template)
    talk = talk_in(params, folder, system="Be brief.")
    for question in QUESTIONS:
        asked, tokens = turn(talk, talk.ask(question))
        assert len(tokens) == 8
        assert asked == encoded(folder, written(talk.messages[:-1]))
        assert talk.messages[-2:] == [
            {"role": "user", "content": question},
            {"role": "assistant", "content": talk.tokenizer.decode(tokens)},
        ]
    # The kept keys are those of this dialog: read afresh, it has the same answer.
    (done,) = generate(params, [asked], tokenizer=talk.tokenizer, **settings_of(talk.tokenizer))
    assert done.tokens == tokens


def test_a_plain_dialog_reads_only_what_is_new(params, tmp_path):
    talk = talk_in(params, byte_folder(tmp_path, KINDS["plain"][0]))
    list(talk.ask(QUESTIONS[0]))
    for question in QUESTIONS[1:]:
        list(talk.ask(question))
        assert talk.prefilled == len(question) + 7, "the newest token and the marks"


def test_a_template_is_asked_of_no_dialog_that_the_user_does_not_have(params, tmp_path):
    """One that insists on a system message, on order and on the first question."""
    template = (
        "{% if messages[0].content != 'Be brief.' or messages[1].content != 'Who is Lily?' %}"
        "{{ raise_exception('another dialog') }}{% endif %}" + KINDS["insisting on order"][0]
    )
    talk = talk_in(params, byte_folder(tmp_path, template), system="Be brief.", stop_ids=None)
    for question in QUESTIONS[:3]:
        list(talk.ask(question))
    assert len(talk.messages) == 7


EDITS = {
    "an answer is changed": lambda m: m[-1].update(content="EDITED"),
    "a turn is removed": lambda m: m.__delitem__(slice(-2, None)),
    "a system message comes first": lambda m: m.insert(0, {"role": "system", "content": "BRIEF"}),
    "an earlier question is changed": lambda m: m[0].update(content="EARLIER"),
    "turns are put in": lambda m: m.extend(
        [{"role": "user", "content": "more"}, {"role": "assistant", "content": "yes"}]
    ),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_what_is_edited_in_messages_is_what_the_model_sees(params, tmp_path, edit):
    template, written = KINDS["plain"]
    folder = byte_folder(tmp_path, template)
    talk = talk_in(params, folder)
    for question in QUESTIONS[:2]:
        list(talk.ask(question))
    edit(talk.messages)
    asked, tokens = turn(talk, talk.ask("so?"))
    assert asked == encoded(folder, written(talk.messages[:-1]))
    (done,) = generate(params, [asked], tokenizer=talk.tokenizer, **settings_of(talk.tokenizer))
    assert done.tokens == tokens


def test_a_history_given_before_the_first_question_is_seen(params, tmp_path):
    template, written = KINDS["plain"]
    folder = byte_folder(tmp_path, template)
    talk = talk_in(params, folder)
    talk.messages += [{"role": "user", "content": "E"}, {"role": "assistant", "content": "ok"}]
    asked, _ = turn(talk, talk.ask("so?"))
    assert asked == encoded(folder, written(talk.messages[:-1]))


def test_undo_takes_the_last_question_and_its_answer_back(params, tmp_path):
    talk = talk_in(params, byte_folder(tmp_path, KINDS["plain"][0]), system="Be brief.")
    assert talk.undo() is None
    list(talk.ask("first"))
    before = list(talk.messages)
    list(talk.ask("SECRET"))
    assert talk.undo() == {"role": "user", "content": "SECRET"}
    assert talk.messages == before
    list(talk.ask("third"))
    assert "SECRET" not in talk.tokenizer.decode(talk.ids)


def test_an_answer_that_goes_on_after_a_reset_leaves_the_new_dialog_alone(params, tmp_path):
    template, written = KINDS["plain"]
    folder = byte_folder(tmp_path, template)
    talk = talk_in(params, folder)
    old = talk.ask("An older question of some length?")
    next(old)
    talk.reset()
    next(old)
    list(talk.ask("new"))
    assert talk.messages[0]["content"] == "new"
    old.close()
    asked, tokens = turn(talk, talk.ask("so?"))
    assert asked == encoded(folder, written(talk.messages[:-1]))
    (done,) = generate(params, [asked], tokenizer=talk.tokenizer, **settings_of(talk.tokenizer))
    assert done.tokens == tokens


@pytest.mark.parametrize("stop", [["b"], ["cd", "da", "ab"]], ids="/".join)
def test_what_a_stop_string_cut_off_is_not_in_the_next_prompt(params, tmp_path, stop):
    template, written = KINDS["plain"]
    folder = byte_folder(tmp_path, template)
    talk = talk_in(params, folder, stop=stop, max_new_tokens=60)
    for question in QUESTIONS[:3]:
        deltas = list(talk.ask(question))
        assert deltas[-1].finish_reason == "stop"
        assert not any(text in talk.messages[-1]["content"] for text in stop)
        count = sum(len(delta.tokens) for delta in deltas)
        asked = talk.ids[: len(talk.ids) - count]
        assert asked == encoded(folder, written(talk.messages[:-1]))


def test_tools_their_calls_and_results_reach_the_template(params, tmp_path):
    folder = byte_folder(tmp_path, TOOL_TEMPLATE)
    talk = talk_in(params, folder, tools=TOOLS)
    asked, _ = turn(talk, talk.ask("Weather?"))
    head = "<s><|sys|>" + json.dumps(TOOLS[0]) + "\n<|u|>Weather?<|end|>"
    assert asked == encoded(folder, head + "<|a|>")
    talk.messages[-1] = {"role": "assistant", "content": None, "tool_calls": CALL}
    talk.messages.append({"role": "tool", "content": "21 degrees", "name": None})
    asked, tokens = turn(talk, talk.answer())
    call = '<|a|>{"name": "weather", "parameters": {"city": "Bern"}}<|end|>'
    assert asked == encoded(folder, head + call + "<|tool|>21 degrees<|end|><|a|>")
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    done = llama_jax.chat(
        params,
        talk.messages[:-1],
        tools=TOOLS,
        tokenizer=talk.tokenizer,
        **settings_of(talk.tokenizer),
    )
    assert done.tokens == tokens


@pytest.mark.parametrize("end", ["<|eom_id|>", "<|eot_id|>"])
def test_a_call_in_llama_3s_own_format_is_read_again_as_it_was_written(config, end):
    tokenizer = TiktokenTokenizer(tiktoken_file())
    size = tokenizer.vocab_size
    long = dataclasses.replace(config, vocab_size=size, max_seq_len=2048)
    params = init_params(jax.random.key(0), long)
    tag, stop = tokenizer.special["<|python_tag|>"], tokenizer.special[end]
    only = [id for id in range(size) if id not in (tag, stop)]
    settings = {"forbidden_ids": only, "max_new_tokens": 2, "min_new_tokens": 1, "temperature": 0}
    talk = Conversation(params, tools=TOOLS, tokenizer=tokenizer, **settings, logit_bias={stop: 99})
    tokens = [id for delta in talk.ask("Weather?") for id in delta.tokens]
    assert tokens == [tag]
    more = {"end": "eom"} if end == "<|eom_id|>" else {}
    assert talk.messages[-1] == {"role": "assistant", "content": "", "python_tag": True, **more}
    before = [*talk.ids, stop]
    talk.messages.append({"role": "tool", "content": "21 degrees"})
    list(talk.answer())
    assert talk.ids[: len(before)] == before


def test_tools_that_a_template_does_not_write_are_refused(params, tmp_path):
    talk = talk_in(params, byte_folder(tmp_path, KINDS["plain"][0]), tools=TOOLS)
    with pytest.raises(ValueError, match="chat template does not write tools="):
        list(talk.ask("Weather?"))
    assert talk.messages == []
    with pytest.raises(ValueError, match=r"tool 0 is .*function.*; describe it by a dict"):
        llama_jax.chat(
            params, [{"role": "user", "content": "a"}], tools=[print], tokenizer=talk.tokenizer
        )


def test_generate_and_stream_tell_each_dialog_of_tools(params, tmp_path):
    tokenizer = load_tokenizer(byte_folder(tmp_path, TOOL_TEMPLATE))
    dialogs = [[{"role": "user", "content": text}] for text in ("Weather?", "And now?")]
    how = {"tools": TOOLS, "tokenizer": tokenizer, **settings_of(tokenizer)}
    told = [llama_jax.chat(params, dialog, **how).tokens for dialog in dialogs]
    assert [done.tokens for done in generate(params, dialogs, **how)] == told
    streamed = [[], []]
    for delta in llama_jax.stream(params, dialogs, **how):
        streamed[delta.row] += delta.tokens
    assert streamed == told
    untold = generate(params, dialogs, **{**how, "tools": []})
    assert [done.tokens for done in untold] != told
    with pytest.raises(ValueError, match="prompt 1 is no dialog, and tools= are told in one"):
        generate(params, [dialogs[0], "Weather?"], **how)


@pytest.mark.parametrize("eos", ["</s>", "<|end|>"])
def test_the_templates_end_of_turn_stops_a_chat_where_the_files_forgot_it(params, tmp_path, eos):
    folder = byte_folder(tmp_path, KINDS["plain"][0], eos=eos)
    tokenizer = load_tokenizer(folder)
    end = tokenizer.special["<|end|>"]
    settings = {"temperature": 0, "logit_bias": {end: 60.0}, "max_new_tokens": 4}
    messages = [{"role": "user", "content": "a"}]
    if eos == "<|end|>":
        assert llama_jax.chat(params, messages, tokenizer=tokenizer, **settings).tokens == []
        return
    with pytest.warns(UserWarning, match=r"ends an answer with <\|end\|>, and the checkpoint's"):
        done = llama_jax.chat(params, messages, tokenizer=tokenizer, **settings)
    assert (done.tokens, done.finish_reason) == ([], "stop")
    with pytest.warns(UserWarning, match="the chat stops at it"):
        (delta,) = Conversation(params, tokenizer=tokenizer, **settings).ask("a")
    assert delta.finish_reason == "stop"
    told = llama_jax.chat(params, messages, tokenizer=tokenizer, stop_ids=[0], **settings)
    assert told.tokens == [end] * 4, "what the user says of stops counts"
