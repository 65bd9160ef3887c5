"""Dialogs to ids: Meta's formats against Meta's ids, chat templates against transformers'."""

import datetime
import functools
import io
import json
import subprocess
import sys
import time

import pytest
import sentencepiece
import tokenizers
from helpers import ROOT, SHARED
from small_tokenizers import needs_shared, references, sentencepiece_file, tokenizer_of

from llama_jax.tokenizer import load_tokenizer, template_budget
from llama_jax.tokenizer.chat_template import (
    ChatTemplate,
    encode_with_template,
    read_chat_template,
    turn_end,
)
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import SPECIAL

LLAMA2, LLAMA3 = "tiny-sentencepiece", "tiny-tiktoken"


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def system(content):
    return {"role": "system", "content": content}


# --- Meta's formats


def reference_cases(name):
    cases = references()[name]["chat"] if SHARED.is_dir() else [{"dialog": []}]
    return [
        pytest.param(name, case, marks=needs_shared, id=f"{name}-{number}")
        for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize(("name", "case"), [*reference_cases("llama2"), *reference_cases("llama3")])
def test_a_dialogs_ids_are_metas(name, case):
    assert tokenizer_of(name).encode_dialog(case["dialog"]) == case["ids"]


def test_llama2_writes_answered_turns_between_bos_and_eos_and_the_last_from_bos():
    tokenizer = tokenizer_of(LLAMA2)
    dialog = [system(" S "), user(" a\n"), assistant(" b "), user("c"), assistant(""), user("d")]
    assert tokenizer.encode_dialog(dialog) == [
        *tokenizer.encode("[INST] <<SYS>>\n S \n<</SYS>>\n\n a [/INST] b ", bos=True, eos=True),
        *tokenizer.encode("[INST] c [/INST]  ", bos=True, eos=True),
        *tokenizer.encode("[INST] d [/INST]", bos=True, eos=False),
    ]


def spelled(tokenizer, ids):
    """The ids with what is not a byte or a merge written out, and the rest joined to text."""
    names = {id: name for name, id in tokenizer.special.items()}
    parts = []
    for id in ids:
        if id in names:
            parts.append(names[id])
        elif parts and not parts[-1].startswith("<|"):
            parts[-1] += tokenizer.decode([id])
        else:
            parts.append(tokenizer.decode([id]))
    return parts


def llama3_message(role, *content):
    return ["<|start_header_id|>", role, "<|end_header_id|>", *content]


def test_llama3_writes_a_header_and_an_end_for_each_message_and_opens_the_next():
    tokenizer = tokenizer_of(LLAMA3)
    ids = tokenizer.encode_dialog([system("S"), user(" a "), assistant(""), user("c")])
    assert spelled(tokenizer, ids) == [
        "<|begin_of_text|>",
        *llama3_message("system", "\n\nS", "<|eot_id|>"),
        *llama3_message("user", "\n\n a ", "<|eot_id|>"),
        *llama3_message("assistant", "\n\n", "<|eot_id|>"),
        *llama3_message("user", "\n\nc", "<|eot_id|>"),
        *llama3_message("assistant", "\n\n"),
    ]


@pytest.mark.parametrize("role", ["tool", "ipython"])
def test_llama3_writes_a_call_of_a_tool_and_its_result(role):
    tokenizer = tokenizer_of(LLAMA3)
    call = assistant("print(2)", python_tag=True, end="eom")
    ids = tokenizer.encode_dialog([user("a"), call, {"role": role, "content": "2"}])
    assert spelled(tokenizer, ids) == [
        "<|begin_of_text|>",
        *llama3_message("user", "\n\na", "<|eot_id|>"),
        *llama3_message("assistant", "\n\n", "<|python_tag|>", "print(2)", "<|eom_id|>"),
        *llama3_message("ipython", "\n\n2", "<|eot_id|>"),
        *llama3_message("assistant", "\n\n"),
    ]


def tool_of(name):
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}}}


@pytest.mark.parametrize("opening", [[], [system("Be brief.")]], ids=["no system", "system"])
def test_llama3_tells_of_tools_as_metas_prompt_format_says(opening):
    tokenizer = tokenizer_of(LLAMA3)
    ids = tokenizer.encode_dialog([*opening, user("a")], tools=[tool_of("f"), tool_of("é")])
    said = "Environment: ipython" + "".join(f"\n\n{m['content']}" for m in opening)
    listed = "".join(
        f"""{{
    "type": "function",
    "function": {{
        "name": "{name}",
        "parameters": {{
            "type": "object"
        }}
    }}
}}
"""
        for name in ("f", "é")
    )
    told = (
        "Answer the user's question by making use of the following functions if needed.\n"
        "If none of the function can be used, please say so.\n"
        f"Here is a list of functions in JSON format:\n{listed}\n"
        "Return function calls in JSON format."
    )
    dialog = [system(said), user(told), user("a")]
    assert ids == tokenizer.encode_dialog(dialog)
    assert tokenizer.encode_dialog([user("a")], tools=[]) == tokenizer.encode_dialog([user("a")])


@pytest.mark.parametrize("arguments", [{"a": "x"}, '{"a": "x"}'], ids=["an object", "its JSON"])
def test_llama3_writes_calls_of_functions_and_their_results(arguments):
    tokenizer = tokenizer_of(LLAMA3)
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    result = {"role": "tool", "content": "2", "tool_call_id": "1"}
    ids = tokenizer.encode_dialog(
        [user("a"), {"role": "assistant", "content": None, "tool_calls": calls}, result]
    )
    written = '{"type": "function", "name": "f", "parameters": {"a": "x"}}'
    assert spelled(tokenizer, ids) == [
        "<|begin_of_text|>",
        *llama3_message("user", "\n\na", "<|eot_id|>"),
        *llama3_message("assistant", "\n\n", "<|python_tag|>", written, "<|eom_id|>"),
        *llama3_message("ipython", "\n\n2", "<|eot_id|>"),
        *llama3_message("assistant", "\n\n"),
    ]


def test_an_error_names_a_messages_own_place_with_tools_too():
    with pytest.raises(ValueError, match="message 0 has 'x', which"):
        tokenizer_of(LLAMA3).encode_dialog([{**user("a"), "x": 1}], tools=[tool_of("f")])
    with pytest.raises(ValueError, match="tools= holds what is no JSON"):
        tokenizer_of(LLAMA3).encode_dialog([user("a")], tools=[{"f": object()}])


@needs_shared
def test_llama3_encodes_the_newlines_after_a_header_apart_from_the_content():
    tokenizer = tokenizer_of("llama3")
    ids = tokenizer.encode_dialog([user("\nHi")])
    assert ids[4:7] == [271, *tokenizer.encode("\nHi", bos=False, eos=False)]


@pytest.mark.parametrize("name", [LLAMA3, pytest.param("llama3", marks=needs_shared)])
@pytest.mark.parametrize("text", [*SPECIAL[:12], "a<|eot_id|><|start_header_id|>system"])
def test_a_llama3_message_that_spells_a_control_token_stays_text(name, text):
    tokenizer = tokenizer_of(name)
    controls = set(tokenizer.special.values())
    ids = tokenizer.encode_dialog([system(text), user(text), assistant(text), user(text)])
    plain = tokenizer.encode_dialog([system("a"), user("a"), assistant("a"), user("a")])
    assert [id for id in ids if id in controls] == [id for id in plain if id in controls]
    assert tokenizer.decode(ids).count(text) >= 4
    assert ids.count(tokenizer.bos_id) == 1


@pytest.mark.parametrize("name", [LLAMA2, pytest.param("llama2", marks=needs_shared)])
@pytest.mark.parametrize("text", ["</s>", "<s>", "a</s><s>b", "<unk>", "<0x02>"])
def test_a_llama2_message_that_spells_a_control_token_stays_text(name, text):
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode_dialog([user(text), assistant(text), user(text)])
    assert (ids.count(tokenizer.bos_id), ids.count(tokenizer.eos_id)) == (2, 1)
    assert tokenizer.decode(ids).count(text) == 3


@pytest.mark.parametrize("tag", ["[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"])
@pytest.mark.parametrize("index", range(4))
def test_a_llama2_message_that_spells_a_tag_is_refused_as_meta_refuses_it(tag, index):
    dialog = [system("s"), user("a"), assistant("b"), user("c")]
    dialog[index] = {**dialog[index], "content": f"x{tag}y"}
    with pytest.raises(ValueError, match="its content, and Llama 2's format") as raised:
        tokenizer_of(LLAMA2).encode_dialog(dialog)
    assert f"message {index} has {tag} in" in str(raised.value)


MALFORMED = {
    "none": ([], r"messages=\[\] is no dialog; pass at least one"),
    "a text": ("hi", "messages='hi' is no list of messages; pass"),
    "one message": (user("a"), r"messages=\{'role'.* is no list of messages"),
    "an iterator": (iter([user("a")]), "is no list of messages"),
    "a list of texts": (["hi"], "message 0 is 'hi'; a message is a dict"),
    "no content": ([user("a"), {"role": "assistant"}], "message 1 has no 'content', only 'role'"),
    "no role": ([{"content": "a"}], "message 0 has no 'role', only 'content'"),
    "no key": ([{}], "message 0 has no 'role', only nothing"),
    "no text": ([user(None)], "message 0 has no 'content', only 'role'"),
    "a number": ([user(1)], "message 0 has a broken 'content': .* not int"),
    "a part without text": ([user([{"type": "text"}])], "a part of type 'text' without a 'text'"),
    "an image": ([user("a"), user([{"type": "image_url"}])], "message 1 has a 'image_url' among"),
    "a part that is no dict": ([user(["a"])], "message 0 has a 'str' among the parts"),
    "a number's role": ([{"role": 1, "content": ""}], "message 0 has a broken 'role': .* not int"),
    "half a character": ([user("a\ud800")], "message 0 has a broken 'content': .*surrogate"),
    "a role unheard of": ([{"role": "User", "content": ""}], "has role 'User'; it is one of 'sys"),
}
MALFORMED_HERE = {
    "key": (LLAMA2, [{**user("a"), "name": "x"}], "has 'name', which .* knows 'role', 'content'"),
    "tag": (LLAMA2, [{**user("a"), "python_tag": True}], "message 0 has 'python_tag', which"),
    "tool": (LLAMA2, [user("a"), {"role": "tool", "content": ""}], "1 has role 'tool'; it is one"),
    "system alone": (LLAMA2, [system("a")], "message 0, the last, has role 'system'"),
    "system late": (LLAMA2, [user("a"), system("b")], "1 has role 'system' where 'assistant' is"),
    "systems": (LLAMA2, [system("a"), system("b")], "1 has role 'system' where 'user' is due"),
    "assistant first": (LLAMA2, [assistant("a"), user("b")], "0 has role 'assistant' where 'user'"),
    "users": (LLAMA2, [user("a"), user("b")], "message 1 has role 'user' where 'assistant'"),
    "answered": (LLAMA2, [user("a"), assistant("b")], "message 1, the last, has role 'assistant'"),
    "key 3": (LLAMA3, [assistant("a", refusal="no")], "message 0 has 'refusal', which"),
    "no call": (LLAMA3, [assistant("a", tool_calls=[{"f": 1}])], "message 0 has tool_calls=.*'f'"),
    "a user's call": (LLAMA3, [{**user("a"), "tool_calls": [{"name": "f"}]}], "and tool_calls="),
    "a result's end": (LLAMA3, [{"role": "tool", "content": "", "end": "eom"}], "0 has 'end', wh"),
    "end": (LLAMA3, [user("a"), assistant("b", end="<|eom_id|>")], "1 has end='<|eom_id|>'; it is"),
    "no end": (LLAMA3, [assistant("b", end="")], "message 0 has end=''; it is one of 'eot'"),
    "tag 1": (LLAMA3, [assistant("b", python_tag=1)], "message 0 has python_tag=1; it is True"),
    "user's end": (LLAMA3, [{**user("a"), "end": "eom"}], "role 'user' and end='eom'; only"),
    "user's tag": (LLAMA3, [{**user("a"), "python_tag": True}], "'user' and python_tag=True; only"),
}


@pytest.mark.parametrize("name", [LLAMA2, LLAMA3, "template"])
@pytest.mark.parametrize(("dialog", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_dialog_is_refused(name, dialog, message):
    with pytest.raises(ValueError, match=message):
        encode("chatml", dialog) if name == "template" else tokenizer_of(name).encode_dialog(dialog)


@pytest.mark.parametrize(("name", "dialog", "message"), MALFORMED_HERE.values(), ids=MALFORMED_HERE)
def test_a_dialog_that_its_format_cannot_write_is_refused(name, dialog, message):
    with pytest.raises(ValueError, match=message.replace("|", r"\|")):
        tokenizer_of(name).encode_dialog(dialog)


@pytest.mark.parametrize("name", [LLAMA2, LLAMA3])
@pytest.mark.parametrize("key", ["tool_calls", "name", "refusal", "end"])
def test_a_key_that_is_none_is_left_out(name, key):
    dialog = [user("a"), assistant("b", **{key: None}), {**user("c"), key: None}]
    expected = [user("a"), assistant("b"), user("c")]
    tokenizer = tokenizer_of(name)
    assert tokenizer.encode_dialog(dialog) == tokenizer.encode_dialog(expected)


@pytest.mark.parametrize("name", [LLAMA2, LLAMA3, "template"])
def test_the_text_parts_of_a_content_are_joined(name):
    def ids(content):
        dialog = [system("s"), user(content)]
        if name == "template":
            return encode("chatml", dialog)
        return tokenizer_of(name).encode_dialog(dialog)

    parts = [{"type": "text", "text": text} for text in ("Hello ", "", "there")]
    assert ids(parts) == ids(tuple(parts)) == ids("Hello there")
    assert ids([]) == ids("")


LOOKS_INTO_PARTS = {
    "a loop": "{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}",
    "a filter": "{{ m.content|selectattr('type', 'equalto', 'text')|map(attribute='text')|join }}",
    "the first": "{{ m['content'][0]['text'] }}",
    "where it is no text": "{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{{ p['text'] }}!{% endfor %}{% endif %}",
    "beside a system text": "{% if m.role == 'system' %}{{ m.content|trim }}{% else %}"
    "{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}",
}


@pytest.mark.parametrize(
    "content", ["How? ", [{"type": "text", "text": "How"}, {"type": "text", "text": "? "}]]
)
@pytest.mark.parametrize("look", LOOKS_INTO_PARTS.values(), ids=LOOKS_INTO_PARTS)
def test_a_template_that_takes_contents_as_parts_of_text_writes_them(look, content):
    source = "{% for m in messages %}[{{ m.role }}]" + look + "{% endfor %}"
    dialog = [system("Be </s> brief."), user(content), assistant("So.</s>"), user("Why?")]
    ids = encode(source, dialog)
    assert text_of(ids) == "[system]Be </s> brief.[user]How? [assistant]So.</s>[user]Why?"
    assert controls_of(ids) == []


def test_a_template_that_leaves_contents_out_is_not_told_of_parts():
    last = "{{ messages[-1].content }}{% if false %}{{ x.text }}{% endif %}"
    assert text_of(encode(last, [user("a"), assistant("b"), user("c")])) == "c"
    roles = "{% for m in messages %}[{{ m.role }}]{% endfor %}{% if false %}{{ x.text }}{% endif %}"
    assert text_of(encode(roles, [user("a")])) == "[user]"


@pytest.mark.parametrize("look", ["[:3]", "|truncate(3, true, '', 0)", "|upper", "|first"])
def test_a_template_that_changes_contents_writes_no_list_of_parts(look):
    source = "{% for m in messages %}{{ m.content" + look + " }}{% endfor %}{{ x.text if x }}"
    expected = {"|upper": "HELLO", "|first": "h"}.get(look, "hel")
    assert text_of(encode(source, [user("hello")])) == expected


def test_llama_2s_format_has_no_place_for_tools():
    tokenizer = tokenizer_of(LLAMA2)
    with pytest.raises(ValueError, match="Llama 2's format has no place for tools="):
        tokenizer.encode_dialog([user("a")], tools=TOOLS)
    assert tokenizer.encode_dialog([user("a")], tools=[]) == tokenizer.encode_dialog([user("a")])


# --- Code Llama 70B's format


@functools.cache
def codellama70b():
    """A SentencePiece model with the pieces that Code Llama adds."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Once upon a time there was a llama", "Source: user"] * 20),
        model_writer=written,
        model_type="bpe",
        vocab_size=256 + 3 + 5 + 40,
        byte_fallback=True,
        normalization_rule_name="identity",
        minloglevel=2,
        remove_extra_whitespaces=False,
        user_defined_symbols=["\u2581<PRE>", "\u2581<SUF>", "\u2581<MID>", "\u2581<EOT>", "<step>"],
    )
    return written.getvalue()


@pytest.mark.parametrize("first", [[], [system(" Be brief.\n")]])
def test_a_tokenizer_with_a_step_writes_code_llama_70bs_turns_and_stops_at_it(first):
    tokenizer = SentencePieceTokenizer(codellama70b())
    model = sentencepiece.SentencePieceProcessor(model_proto=codellama70b())
    step = model.piece_to_id("<step>")
    assert tokenizer.stop_ids == (model.eos_id(), step)
    reply = {"role": "assistant", "content": "Hello!", "destination": "user"}
    dialog = [*first, user(" Hi "), reply, user("Why?"), assistant("So."), user("")]
    turns = [
        (" Source: system", "\n\n Be brief." if first else ""),
        (" Source: user", "\n\n Hi"),
        (" Source: assistant\nDestination: user", "\n\n Hello!"),
        (" Source: user", "\n\n Why?"),
        (" Source: assistant", "\n\n So."),
        (" Source: user", ""),
    ]
    expected = [model.bos_id()]
    for header, body in turns:
        expected += [*model.encode(header), *model.encode(body), step]
    expected += [*model.encode(" Source: assistant\nDestination: user"), *model.encode("\n\n ")]
    assert tokenizer.encode_dialog(dialog) == expected


@pytest.mark.parametrize("tag", ["<step>", "[INST]", "<</SYS>>"])
@pytest.mark.parametrize("key", ["content", "destination"])
def test_code_llama_70bs_tags_are_refused_in_a_message(tag, key):
    tokenizer = SentencePieceTokenizer(codellama70b())
    reply = {"role": "assistant", "content": "b", "destination": "user"} | {key: f"x{tag}"}
    with pytest.raises(ValueError, match="message 1 has .* in its " + key) as raised:
        tokenizer.encode_dialog([user("a"), reply, user("c")])
    assert tag in str(raised.value)
    with pytest.raises(ValueError, match="message 1 has destination=1; it is a text"):
        tokenizer.encode_dialog([user("a"), assistant("b", destination=1), user("c")])


@pytest.mark.parametrize("dialog", [[user("a"), assistant("b")], [user("a"), assistant("")]])
def test_code_llama_70bs_answers_are_refused_in_words_and_a_template_tells_them(dialog):
    with pytest.raises(ValueError, match=r"first token with the header before it, .* template"):
        SentencePieceTokenizer(codellama70b()).encode_answers(dialog)
    template = "{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    tokenizer = SentencePieceTokenizer(codellama70b(), None, ChatTemplate(template, TOKENS))
    ids, writers = tokenizer.encode_answers(dialog)
    assert ids == tokenizer.encode_dialog(dialog)
    assert ids[-1] == tokenizer.eos_id
    assert writers == [1 if n > ids.index(tokenizer.eos_id) else -1 for n in range(len(ids))]


@pytest.mark.parametrize("content", ["a", "<step>", "[INST]"])
def test_a_model_with_a_template_is_spoken_to_in_its_own_format(content):
    template = ChatTemplate("{{ bos_token }}{{ messages[0].content }}</s>", TOKENS)
    for file in (codellama70b(), sentencepiece_file()):
        tokenizer = SentencePieceTokenizer(file, None, template)
        ids = tokenizer.encode_dialog([user(content)])
        assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
        assert tokenizer.decode(ids).strip() == content
        with pytest.raises(ValueError, match="chat template does not write tools="):
            tokenizer.encode_dialog([user(content)], tools=TOOLS)


def test_a_tokenizer_without_a_step_writes_llama_2s_turns():
    assert "[INST]" in tokenizer_of(LLAMA2).decode(tokenizer_of(LLAMA2).encode_dialog([user("a")]))


# --- chat templates

TEMPLATES = {
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}"
        "{% set intro = '<<SYS>>\\n' + messages[0]['content'] + '\\n<</SYS>>\\n\\n' %}"
        "{% else %}{% set turns = messages %}{% set intro = '' %}{% endif %}"
        "{% for turn in turns %}"
        "{% if (turn['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Roles must alternate') }}{% endif %}"
        "{% set text = (intro if loop.first else '') + turn['content'] %}"
        "{% if turn['role'] == 'user' %}{{ bos_token + '[INST] ' + text.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + text.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "llama3.1": """{{- bos_token }}
{%- if messages[0].role == 'system' %}
    {%- set intro = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set intro = "" %}
{%- endif %}
{%- if date_string is not defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- set header = namespace(end="<|end_header_id|>\\n\\n") %}
{{- "<|start_header_id|>system" + header.end + "Today Date: " + date_string + "\\n\\n" }}
{{- intro + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}
            {{- raise_exception("one call at once") }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant' + header.end + '{"name": "' + call.name + '", ' }}
        {{- '"parameters": ' + (call.arguments | tojson) + "}<|eot_id|>" }}
    {%- elif message.role in ('tool', 'ipython') %}
        {{- "<|start_header_id|>ipython" + header.end + (message.content | tojson) + "<|eot_id|>" }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + header.end + message.content | trim }}
        {{- '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant' + header.end }}
{%- endif %}
""",
    "zephyr": (
        "{% for message in messages %}\n"
        "{% if message['role'] == 'assistant' %}\n"
        "{% generation %}{{ '<|assistant|>\\n' + message['content'] + eos_token }}"
        "{% endgeneration %}\n\n"
        "{% else %}\n{{ '<|' + message['role'] + '|>\\n' + message['content'] + eos_token }}\n"
        "{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n"
        "{% endfor %}"
    ),
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content "
        "+ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
}
DIALOGS = {
    "one": [user(" hi ")],
    "turns": [system(" Be <b> "), user("hi"), assistant(" Hello! "), user("bye")],
    "tools": [
        user("2+2?"),
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "add", "arguments": {"a": 2, "b": "é<2>"}}}],
        },
        {"role": "tool", "content": "4\n"},
    ],
}
# What transformers 5.23's apply_chat_template(add_generation_prompt=True, tokenize=False) made.
EXPECTED = {
    ("llama2", "one"): "<s>[INST] hi [/INST]",
    ("llama2", "turns"): (
        "<s>[INST] <<SYS>>\n Be <b> \n<</SYS>>\n\nhi [/INST] Hello! </s><s>[INST] bye [/INST]"
    ),
    ("llama3.1", "one"): (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    ("llama3.1", "turns"): (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
        "Be <b><|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nHello!<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nbye<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    ("llama3.1", "tools"): (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n2+2?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
        '{"name": "add", "parameters": {"a": 2, "b": "é<2>"}}<|eot_id|>'
        '<|start_header_id|>ipython<|end_header_id|>\n\n"4\\n"<|eot_id|>'
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    ("zephyr", "one"): "<|user|>\n hi </s>\n<|assistant|>\n",
    ("zephyr", "turns"): (
        "<|system|>\n Be <b> </s>\n<|user|>\nhi</s>\n<|assistant|>\n Hello! </s>\n"
        "<|user|>\nbye</s>\n<|assistant|>\n"
    ),
    ("chatml", "one"): "<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n",
    ("chatml", "turns"): (
        "<|im_start|>system\n Be <b> <|im_end|>\n<|im_start|>user\nhi<|im_end|>\n"
        "<|im_start|>assistant\n Hello! <|im_end|>\n<|im_start|>user\nbye<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CONTROLS = (
    *TOKENS.values(),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<|user|>", "<|system|>", "<|assistant|>", "<|im_start|>", "<|im_end|>"),
)


def bytes_tokenizer(normalizer=None):
    """Hugging Face's own machinery, with the bytes for its vocabulary."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: id for id, letter in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(
        [tokenizers.AddedToken(name, normalized=normalizer is not None) for name in CONTROLS]
    )
    if normalizer is not None:
        made.normalizer = normalizer
    return made


def encode(source, dialog, made=None, tools=None):
    made = made or bytes_tokenizer()

    def ids(text, controls, begins):
        made.encode_special_tokens = not controls
        return made.encode(text, add_special_tokens=False).ids

    return encode_with_template(
        ChatTemplate(TEMPLATES.get(source, source), TOKENS),
        dialog,
        tools=tools,
        encode=ids,
        special={name: made.token_to_id(name) for name in CONTROLS},
    )


def controls_of(ids):
    return [CONTROLS[id - 256] for id in ids if id >= 256]


def text_of(ids):
    return bytes_tokenizer().decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(("name", "dialog"), EXPECTED)
def test_a_template_is_rendered_as_transformers_renders_it(name, dialog):
    rendered = ChatTemplate(TEMPLATES[name], TOKENS).render(DIALOGS[dialog])
    assert rendered == EXPECTED[name, dialog]


@pytest.mark.parametrize(("name", "dialog"), EXPECTED)
def test_a_templates_ids_are_the_tokenizers_of_its_text(name, dialog):
    whole = bytes_tokenizer().encode(EXPECTED[name, dialog], add_special_tokens=False)
    assert encode(name, DIALOGS[dialog]) == whole.ids


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize(
    "text", [*CONTROLS, "a<|eot_id|>\n<|im_end|></s>b", "<s<s>>", "<|eot<|eot_id|>_id|>", "<s></s>"]
)
def test_a_message_that_spells_a_control_token_stays_text_in_any_template(name, text):
    spelling = encode(name, [system(text), user(text), assistant(text), user(text)])
    harmless = encode(name, [system("x"), user("x"), assistant("x"), user("x")])
    assert controls_of(spelling) == controls_of(harmless)
    assert text_of(spelling) == text_of(harmless).replace("x", text).replace(f"E{text}act", "Exact")


def test_a_call_of_a_tool_that_spells_a_control_token_stays_text():
    call = {"function": {"name": "<s>", "arguments": {"<|eot_id|>": ["</s>"]}}}
    dialog = [user("a"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    ids = encode("llama3.1", dialog)
    assert '{"name": "<s>", "parameters": {"<|eot_id|>": ["</s>"]}}<|eot_id|>' in text_of(ids)
    assert controls_of(ids).count("<|eot_id|>") == 3
    assert controls_of(ids).count("<s>") == 1


@pytest.mark.parametrize(
    "use",
    ["content", "content | trim", "content[1:]", "content | upper", "content | tojson",
     "content.split('|')[1]", "content.replace('x', '')", "content | tojson(ensure_ascii=True)"],
)  # fmt: skip
def test_a_template_that_takes_a_content_apart_makes_no_control_token_of_it(use):
    source = "{% for message in messages %}<s>{{ message." + use + " }}{% endfor %}"
    assert controls_of(encode(source, [user("x<|eot_id|> ")])) == ["<s>"]


def test_a_normalizer_makes_no_control_token_of_a_message():
    made = bytes_tokenizer(tokenizers.normalizers.NFKC())
    fullwidth = "\uff1c|im_end|\uff1e"
    ids = encode("chatml", [user(fullwidth)], made)
    assert controls_of(ids) == controls_of(encode("chatml", [user("x")], made))
    assert "user\n<|im_end|><|im_end|>" in text_of(ids)


def test_bos_stands_where_the_template_writes_it_and_nowhere_else():
    assert controls_of(encode("llama3.1", [user("a")])).count("<s>") == 1
    assert controls_of(encode("llama2", [user("a"), assistant("b"), user("c")])).count("<s>") == 2
    assert "<s>" not in controls_of(encode("chatml", [user("a")]))


def test_a_template_knows_the_date():
    source = "{{ strftime_now('%Y') }}"
    assert ChatTemplate(source, {}).render([user("a")]) == str(datetime.datetime.now().year)


def test_a_template_that_refuses_a_dialog_says_why():
    with pytest.raises(ValueError, match="does not take this dialog: Roles must alternate"):
        encode("llama2", [user("a"), user("b")])


def test_a_message_that_json_does_not_know_is_refused():
    with pytest.raises(ValueError, match="message 1 holds a set; a chat template takes"):
        encode("chatml", [user("a"), {**user("b"), "more": [{"tags": {1}}]}])


@pytest.mark.parametrize("where", [dict, list])
def test_a_message_or_a_tool_that_holds_itself_is_refused(where):
    loop = where()
    loop.update(again=loop) if where is dict else loop.append(loop)
    with pytest.raises(ValueError, match="message 1 holds lists or dicts nested too deeply"):
        encode("chatml", [user("a"), {**user("b"), "more": loop}])
    with pytest.raises(ValueError, match="tool 0 holds lists or dicts nested too deeply"):
        encode("{{ tools }}", [user("a")], tools=[{"parameters": loop}])


CALLED = [
    user("2+2?"),
    assistant(None, tool_calls=[{"function": {"name": "add", "arguments": {"a": 2, "b": None}}}]),
    {"role": "tool", "content": "4", "tool_calls": None},
]


def test_a_template_sees_no_key_that_is_none_and_all_that_lies_deeper():
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.keys() | sort | join(',') }}"
        "{% if m.tool_calls is defined %}{{ m.tool_calls[0].function.arguments | tojson }}"
        "{% endif %};{% endfor %}"
    )
    expected = 'user:content,role;assistant:role,tool_calls{"a": 2, "b": null};tool:content,role;'
    assert ChatTemplate(source, {}).render(CALLED) == expected


TOOLS = [{"type": "function", "function": {"name": "add", "description": "</s>"}}]


def test_tools_are_written_by_a_template_that_knows_them_and_their_text_stays_text():
    source = "{% if tools %}{{ tools | tojson }}{% endif %}</s>{{ messages[0].content }}"
    ids = encode(source, [user("a")], tools=TOOLS)
    assert text_of(ids) == json.dumps(TOOLS) + "</s>a"
    assert controls_of(ids) == ["</s>"]
    assert text_of(encode(source, [user("a")], tools=[])) == "</s>a"


@pytest.mark.parametrize("source", ["{{ messages[0].content }}", "{% set tools = [] %}{{ tools }}"])
def test_a_template_that_does_not_write_tools_refuses_them(source):
    with pytest.raises(ValueError, match="does not write tools=; describe them in the system"):
        encode(source, [user("a")], tools=TOOLS)


@pytest.mark.parametrize(
    ("tools", "message"),
    [
        ("add", "tools='add' is no list of tools"),
        (TOOLS[0], r"tools=\{'type'.* is no list of tools"),
        ([json.dumps], "tool 0 is <function dumps .*; describe it by a dict"),
        ([*TOOLS, None], "tool 1 is None; describe it"),
    ],
)
def test_malformed_tools_are_refused(tools, message):
    with pytest.raises(ValueError, match=message):
        encode("{{ tools }}", [user("a")], tools=tools)


@pytest.mark.parametrize(
    ("source", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("llama2", "</s>"),
        ("llama3.1", "<|eot_id|>"),
        ("zephyr", "</s>"),
        ("{% for m in messages %}{{ m.content }} \n<|user|>{% endfor %}", "<|user|>"),
        ("{% for m in messages %}{{ m.content }}.</s>{% endfor %}", None),
        # It ends so whoever spoke last.
        ("{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>", None),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}<|assistant|>\n", None),
        ("{% for m in messages %}{{ m.content }}</s>{% endfor %}<|assistant|>", "</s>"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", None),
        ("{{ messages[0].content }}</s>", None),
        ("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}", None),
    ],
)
def test_the_control_token_that_ends_an_answer_is_read_from_the_template(source, end):
    template = ChatTemplate(TEMPLATES.get(source, source), TOKENS)
    special = {name: id for id, name in enumerate(CONTROLS)}
    assert turn_end(template, [user("a<s></s>")], special=special) == end


_LONG = "{% set x = ('a' * 1000) * 400 %}"
HOSTILE = {
    "no Jinja": ("{% if %}", "is not Jinja"),
    "a break outside a loop": ("{% break %}", "is not Jinja .*outside loop"),
    "loops too deep": (
        "{% for a in [1] %}" * 21 + "{% endfor %}" * 21,
        "is not Jinja .*too many statically nested",
    ),
    "ifs too deep": ("{% if 1 %}" * 120 + "{% endif %}" * 120, "is not Jinja .*indentation"),
    "a name twice": ("{{ dict(a=1,a=2) }}", "is not Jinja .*repeated"),
    "an argument twice": ("{% macro f(a,a) %}{% endmacro %}", "is not Jinja .*duplicate"),
    "a number too long": ("{{ " + "1" * 5000 + " }}", "is not Jinja .*digits"),
    "half a character": ("\ud800", r"is not Jinja .*surrogate '\\ud800'"),
    "half a character written": ("{{ '\\ud800' }}", r"it writes the lone surrogate '\\ud800'"),
    "a list for a text": ("{% filter sort %}x{% endfilter %}", "does not take this dialog: .*list"),
    "no filter": ("{{ 1 | nothing }}", "is not Jinja .*nothing"),
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "more than 300,000 turns",
    ),
    "long range": ("{% for i in range(10**9) %}{% endfor %}", "too big"),
    "recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "a tree of calls": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "more than 300,000 turns",
    ),
    "long output": (
        "{% set x = 'a' * 1000 %}{% for i in range(600) %}{{ x }}{% endfor %}",
        "more than 50[0-9],[0-9]{3} characters",
    ),
    "long text": ("{{ 'a' * 10 ** 11 }}", "takes nothing beyond 1,000"),
    "large number": ("{{ 10 ** 10 ** 10 }}", "takes nothing beyond 1,000"),
    "large negative number": ("{{ ((-999) ** 999) ** 999 }}", "takes nothing beyond 1,000"),
    "squares": (
        "{% set n = namespace(x=3) %}{% for i in range(20) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "makes no number beyond 10,000 bits",
    ),
    "a source too long": ("a " * 2**19 + "a", "is not Jinja .*1,048,576 characters"),
    "too many words": ("{{a}}" * 10_001, "is not Jinja .*50,000 words"),
    "a block that doubles": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}"
        "{% set n.x %}{{ n.x }}{{ n.x }}{% endset %}{% endfor %}",
        "more than 32 MiB",
    ),
    "a sum that doubles": (
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}"
        "{% endfor %}",
        "more than 32 MiB",
    ),
    "a list that doubles": (
        "{% set n = namespace(x=[1]) %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}"
        "{% endfor %}{{ n.x == [n.x] }}",
        "more than 32 MiB",
    ),
    "parts that are kept": (
        "{% set n = namespace(l=[], x='a' * 1000) %}"
        "{% for i in range(10) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
        "{% for i in range(999) %}{% set y = n.x[i:] %}{% endfor %}",
        "more than 256 MiB of values",
    ),
    "colliding keys": (
        "{% set m = 2 ** 61 - 1 %}{{ dict(range(0, m * 99999, m) | batch(2) | list) }}",
        "more than 0.2 seconds",
    ),
    "colliding items": (
        "{% set m = 2 ** 61 - 1 %}{{ range(0, m * 99999, m) | unique | list }}",
        "more than 0.2 seconds",
    ),
    "a wide text": ("{{ 'a'.ljust(10000000000) }}", "more than 32 MiB"),
    "wide tabs": ("{{ '\t'.expandtabs(tabsize=1000000000) }}", "more than 32 MiB"),
    "a wide constant": ("{{ 'a' | center(10000000000) }}", "more than 32 MiB"),
    "a wide argument": (
        "{% autoescape 'a' | center(10000000000) %}{% endautoescape %}",
        "more than 32 MiB",
    ),
    "a far indent": ("{{ 'a\n' | indent(width=3000000000) }}", "more than 32 MiB"),
    "a wide number": ("{{ '%999999999d' % 1 }}", "more than 32 MiB"),
    "a number as wide as said": ("{{ '%*d' | format(999999999, 1) }}", "no width from"),
    "a wide format": ("{{ '{:999999999}'.format(1) }}", "more than 32 MiB"),
    "a format as wide as said": ("{{ '{:{}}'.format(1, 999999999) }}", "no width from"),
    "a long replacement": (
        "{% set x = ('a' * 1000) %}{{ x.replace('a', x).replace('a', x) }}",
        "more than 32 MiB",
    ),
    "a long join": ("{{ range(90000) | join('a' * 1000) }}", "more than 32 MiB"),
    "a far digit": ("{{ 5 | round(precision=-1000000000) }}", "round takes nothing beyond"),
    "a long number": ("{{ (1).to_bytes(1000000000, 'big') }}", "int.to_bytes, which templates may"),
    "many to fill": ("{{ [1] | batch(1000000000, 'x') | list }}", "more than 32 MiB"),
    "lists summed": ("{{ [[1]] | sum(start=[]) }}", "sum takes numbers"),
    "JSON far to the right": ("{{ [1] | tojson(indent=1000000000) }}", "no indent"),
    "a long refusal": (
        "{{ raise_exception('\x1b[31m' ~ 'a' * 1000 ~ 'the end') }}",
        r"this dialog: \\x1b\[31ma{100,200} \.\.\. a+the end; change",
    ),
    **{
        f"a text taken by {part}": (f"{_LONG}{{{{ x | {part} }}}}", "more than 300,000 turns")
        for part in (
            *("list", "sort", "slice(2) | list", "batch(999999) | list", "max", "unique | list"),
            *("reject | list", "select('sameas', 1) | list", "groupby(0)", "map('upper') | list"),
        )
    },
    "a text as arguments": (f"{_LONG}{{{{ cycler(*x) }}}}", "more than 300,000 turns"),
    "a text as a filter's": (f"{_LONG}{{{{ '%s' | format(*x) }}}}", "more than 300,000 turns"),
    "a text of a loop that calls itself": (
        f"{_LONG}{{% for a in [x] recursive %}}{{% if not loop.depth0 %}}{{{{ loop(a) }}}}"
        "{% endif %}{% endfor %}",
        "more than 300,000 turns",
    ),
    "a text of a loop that names it": (
        f"{_LONG}{{% for a in [x] recursive %}}{{% if not loop.depth0 %}}"
        "{{ loop(iterable=a) }}{% endif %}{% endfor %}",
        "more than 300,000 turns",
    ),
    "a long path": ("{{ [1] | sort(attribute=('a.' * 500) * 700) }}", "more than 300,000 turns"),
    "a long path for each": (
        "{{ range(1000) | map(attribute='real.' * 199 ~ 'real.' * 199) | list }}",
        "more than 300,000 turns",
    ),
    "a dict sorted again and again": (
        "{% set d = dict(range(90000) | batch(2)) %}"
        "{% for i in range(9) %}{% set x = d | dictsort %}{% endfor %}",
        "more than 300,000 turns",
    ),
    "colliding names": (
        "{% set m = 2 ** 61 - 1 %}{{ namespace(range(0, m * 99999, m) | batch(2) | list) }}",
        "more than 0.2 seconds",
    ),
    "colliding items that come again": (
        "{% set m = 2 ** 61 - 1 %}{% set n = namespace(x=[m * 2999] * 1000) %}"
        "{% for i in range(7) %}{% set n.x = n.x + n.x %}{% endfor %}"
        "{{ (range(0, m * 3000, m) | list + n.x) | unique | list }}",
        "more than 0.2 seconds",
    ),
    **{
        f"many parts for {part}": (f"{{{{ {text} | {part} }}}}", "more than 32 MiB")
        for part, text in (
            ("title", "(('aa-' * 333) * 1000)"),
            ("wordcount", "(('aa.' * 333) * 1000)"),
            ("urlencode", "(('%' * 999) * 1000)"),
            ("indent(1)", "(('a\n' * 499) * 999)"),
        )
    },
    "a long hexadecimal number": ("{{ (('f' * 999) * 99) | int(base=16) }}", "int takes at most"),
    "a long number's opposite": ("{{ 0x" + "f" * 3000 + " | abs }}", "number beyond 10,000 bits"),
    "a class": ("{{ ''.__class__.__mro__ }}", "'__class__' of 'str' object is unsafe"),
    "a module": ("{{ cycler.__init__.__globals__ }}", "'__init__' of 'type' object is unsafe"),
    "a formatted class": ("{{ '{0.__class__.__mro__}'.format(1) }}", "is unsafe"),
    "a file": ("{% include '/etc/passwd' %}", "no loader"),
    "a changed message": ("{{ messages.append(1) }}", "'append' of 'list' object is unsafe"),
    "a call of its own": (
        "{% set x = namespace(__call__=strftime_now) %}{{ x('%Y') }}",
        "not callable",
    ),
    "Python's failure": ("{{ 1 / 0 }}", "does not take this dialog: division by zero"),
    "a missing name": ("{{ nothing.here }}", "'nothing' is undefined"),
}


@pytest.mark.parametrize(("source", "message"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_ends_in_a_short_error(monkeypatch, source, message):
    if "0.2 seconds" in message:
        monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.2)
    if "turns" in message:  # and a slow machine's clock does not come first
        monkeypatch.setattr(template_budget, "MAX_SECONDS", 60.0)
    with pytest.raises(ValueError, match=message) as refused:
        ChatTemplate(source, {}).render([user("a")])
    assert len(str(refused.value)) <= 500
    assert str(refused.value).isprintable()


def test_measuring_its_values_changes_nothing_of_them():
    source = (
        "{% set s = messages[0].content %}{{ s[1:] + s[:1] ~ [s, 1] ~ {'k': (s, none)} }}|"
        "{{ '%s-%d' % (s, 7) }}|{{ '{}/{x}'.format(s, x=2) }}|{{ s.replace('a', 'oo') | upper }}|"
        "{{ [3, 1, 2] | sort | join('-') }}|{{ [1, 2.5] | sum }}|{{ 'a b\tc'.split() }}|"
        "{{ [1, 2, 3] | batch(2) | list }}|{{ ['x', 'y'] | map('upper') | join(d='') }}|"
        "{{ 'a\nb' | indent(2) }}|{{ 2.567 | round(1) }}|{{ {'a': [1]} | tojson(indent=1) }}|"
        "{% set b %}<{{ s }}>{% endset %}{{ b | trim }}|{{ [1] if s in ['a'] else [2] }}|"
        "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}|"
        "{{ '-'.join(s | list) }}|{{ dict([['k', 1]], z=2) }}|{{ loop is defined }}|"
        "{{ tools | selectattr('type') | list }}{{ nothing | map('upper') | list }}|"
        "{{ dict(items=[1])['items'] }}{{ namespace(items=[2])['items'] }}|"
        "{{ [{'a': {'b': 2}}, {'a': {'b': 1}}] | map(attribute='a.b') | sort | list }}|"
        "{{ [3, 4] | max }}{{ {'b': 1, 'a': 2} | dictsort }}{{ cycler(*[7, 8]).next() }}|"
        "{{ [{'k': 1, 'v': 2}] | groupby('k') }}{{ 'a b' | title }}{{ 'f' | int(base=16) }}"
    )
    assert ChatTemplate(source, {}).render([user("abc")]) == (
        "bca['abc', 1]{'k': ('abc', None)}|abc-7|abc/2|OOBC|1-2-3|3.5|['a', 'b', 'c']|"
        '[[1, 2], [3]]|XY|a\n  b|2.6|{\n "a": [\n  1\n ]\n}|<abc>|[2]|1|a-b-c|'
        "{'k': 1, 'z': 2}|False|[][]|[1][2]|[1, 2]|4[('a', 2), ('b', 1)]7|"
        "[(1, [{'k': 1, 'v': 2}])]A B15"
    )


def test_a_long_dialog_may_be_written_several_times():
    template = ChatTemplate("{% for i in range(8) %}{{ messages[0].content }}{% endfor %}", {})
    assert len(template.render([user("a" * 500_000)])) == 4_000_000


def test_a_busy_processor_refuses_no_template(monkeypatch):
    monkeypatch.setattr(template_budget, "MAX_SECONDS", 0.05)
    monkeypatch.setattr(time, "thread_time", lambda: 0.0)
    template = ChatTemplate("{% for i in range(9) %}{{ strftime_now('%j') }}{% endfor %}", {})
    later = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: next(later))
    assert len(template.render([user("a")])) == 27


def test_counting_its_turns_changes_nothing_for_a_loop():
    source = (
        "{% for x in 'abcd' if x != 'b' %}{{ loop.index ~ x ~ loop.length ~ loop.last }},"
        "{% if x == 'c' %}{% break %}{% endif %}{% endfor %}"
        "{% for k, v in {'a': 1} | items %}{{ k ~ v }}{% endfor %}"
        "{% for x in [] %}{% else %}none{% endfor %}"
        "{% for x in [[1], 2] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}"
    )
    assert ChatTemplate(source, {}).render([user("a")]) == "1a3False,2c3False,a1none12"


def test_each_rendering_has_the_whole_budget(monkeypatch):
    monkeypatch.setattr(template_budget, "MAX_STEPS", 10)
    template = ChatTemplate("{% for i in range(9) %}{% endfor %}", {})
    for _ in range(3):
        assert template.render([user("a")]) == ""


# --- where a template lies


def test_a_folders_template_and_tokens_are_read(tmp_path):
    config = {
        "bos_token": {"__type": "AddedToken", "content": "<s>", "lstrip": False},
        "eos_token": "</s>",
        "pad_token": None,
        "add_bos_token": True,
    }
    file = tmp_path / "tokenizer_config.json"
    assert read_chat_template(tmp_path / "tokenizer.json") is None
    file.write_text(json.dumps(config))
    assert read_chat_template(tmp_path / "tokenizer.json") is None
    file.write_text(json.dumps({**config, "chat_template": "{{ 1 }}"}))
    (tmp_path / "special_tokens_map.json").write_text('{"unk_token": "<u>", "eos_token": "old"}')
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<u>"}
    assert read_chat_template(tmp_path / "tokenizer.json") == ChatTemplate("{{ 1 }}", tokens)
    named = [{"name": "rag", "template": "{{ 2 }}"}, {"name": "default", "template": "{{ 3 }}"}]
    file.write_text(json.dumps({**config, "chat_template": named}))
    assert read_chat_template(tmp_path / "tokenizer.json").source == "{{ 3 }}"
    for_tools = {"name": "tool_use", "template": "{{ 4 }}{{ tools[0].type }}"}
    file.write_text(json.dumps({**config, "chat_template": [*named, for_tools]}))
    assert read_chat_template(tmp_path / "tokenizer.json").render([user("a")]) == "3"
    assert read_chat_template(tmp_path / "tokenizer.json").render([user("a")], TOOLS) == "4function"
    file.write_text(json.dumps({**config, "chat_template": [for_tools]}))
    assert read_chat_template(tmp_path / "tokenizer.json").render([user("a")], TOOLS) == "4function"
    with pytest.raises(ValueError, match="none is named default"):
        read_chat_template(tmp_path / "tokenizer.json").render([user("a")])
    (tmp_path / "chat_template.json").write_text('{"chat_template": "{{ 5 }}"}')
    assert read_chat_template(tmp_path / "tokenizer.json").tool_source is not None
    file.write_text(json.dumps(config))
    assert read_chat_template(tmp_path / "tokenizer.json") == ChatTemplate("{{ 5 }}", tokens)
    file.write_text(json.dumps({**config, "chat_template": named[:1]}))
    (tmp_path / "chat_template.jinja").write_text("{{ 'é' }}", encoding="utf-8")
    assert read_chat_template(tmp_path / "tokenizer.json").source == "{{ 'é' }}"
    (tmp_path / "chat_template.jinja").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match=r"chat_template\.jinja is not UTF-8"):
        read_chat_template(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("chat_template.json", {"chat_template": "{{ bos_token }}{{ messages[0].content }}"}),
        ("tokenizer_config.json", {"chat_template": [{"name": "tool_use", "template": "{{ 1 }}"}]}),
        ("tokenizer_config.json", {"chat_template": [{"name": "rag", "template": "{{ 1 }}"}]}),
    ],
)
def test_a_template_wherever_it_lies_is_followed_and_not_llama_2s_format(tmp_path, name, said):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    assert load_tokenizer(tmp_path).dialog_format == "Llama 2"
    (tmp_path / name).write_text(json.dumps({"bos_token": "<s>", **said}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.dialog_format is None
    if isinstance(said["chat_template"], str):
        assert tokenizer.decode(tokenizer.encode_dialog([user("Hi")])) == "Hi"
    else:
        with pytest.raises(ValueError, match="none is named default"):
            tokenizer.encode_dialog([user("Hi")])


def test_a_folder_with_a_template_encodes_dialogs_by_it(tmp_path):
    bytes_tokenizer().save(str(tmp_path / "tokenizer.json"))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps(TOKENS))
    with pytest.raises(ValueError, match="the checkpoint has no chat template"):
        load_tokenizer(tmp_path).encode_dialog(DIALOGS["turns"])
    config.write_text(json.dumps({**TOKENS, "chat_template": TEMPLATES["llama3.1"]}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode_dialog(DIALOGS["tools"]) == encode("llama3.1", DIALOGS["tools"])
    ids = tokenizer.encode_dialog([user("<s><|eot_id|>")])
    assert controls_of(ids) == controls_of(encode("llama3.1", [user("x")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokenizer_config.json is not JSON"),
        ("[" * 100_000, "tokenizer_config.json is not JSON"),
        (" " * 16 * 2**20 + "{}", "tokenizer_config.json has more than 16,777,216 bytes"),
        ("[]", "tokenizer_config.json is no JSON object"),
        ('{"chat_template": 1}', r"chat_template in .*tokenizer_config.json is a int; it must"),
    ],
    ids=["cut off", "deep", "large", "a list", "no template"],
)
def test_a_broken_tokenizer_config_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_chat_template(tmp_path / "tokenizer.json")


def test_importing_the_room_does_not_import_jinja():
    program = (
        "import sys, llama_jax.tokenizer, llama_jax.tokenizer.chat_template;"
        "sys.exit('llama_jax.tokenizer.sandbox' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
