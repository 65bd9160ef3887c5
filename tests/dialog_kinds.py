"""Kinds of chat templates, each with what it writes stated once more in Python."""

from __future__ import annotations

import json

import tokenizers

CONTROLS = ("<s>", "</s>", "<|u|>", "<|a|>", "<|sys|>", "<|tool|>", "<|end|>")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def byte_folder(folder, template, *, eos="</s>", **more):
    """A tokenizer of bytes and control tokens, with a chat template."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: id for id, letter in enumerate(alphabet)}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(CONTROLS))
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    said = {"tokenizer_class": "PreTrainedTokenizerFast", **TOKENS, "eos_token": eos, **more}
    (folder / "tokenizer_config.json").write_text(json.dumps({**said, "chat_template": template}))
    return folder


def _system(messages):
    first = messages[0]
    return (first["content"], messages[1:]) if first["role"] == "system" else (None, messages)


def plain(messages):
    marks = {"system": "<|sys|>", "user": "<|u|>", "assistant": "<|a|>"}
    return "".join(f"{marks[m['role']]}{m['content']}<|end|>\n" for m in messages) + "<|a|>"


def dropping_thoughts(messages):
    """What an assistant wrote up to its last full stop was a thought."""
    text = "<s>"
    for m in messages:
        if m["role"] == "assistant":
            text += f"<|a|>{m['content'].split('.')[-1]}</s>"
        else:
            text += f"<|u|>{m['content']}" if m["role"] == "user" else m["content"]
    return text + "<|a|>"


def keeping_the_thoughts_since_the_last_question(messages):
    last = max(i for i, m in enumerate(messages) if m["role"] == "user")
    text = ""
    for i, m in enumerate(messages):
        mark = {"user": "u", "assistant": "a", "system": "sys"}[m["role"]]
        thought = m["role"] == "assistant" and i < last
        text += f"<|{mark}|>{m['content'].split('.')[-1] if thought else m['content']}<|end|>"
    return text + "<|a|>"


def moving_the_system_text(messages):
    """It stands before the last question, wherever that is."""
    system, turns = _system(messages)
    text = "<s>"
    for i, m in enumerate(turns):
        if m["role"] == "user":
            here = f"{system}\n\n" if system is not None and i == len(turns) - 1 else ""
            text += f"[INST] {here}{m['content']}[/INST]"
        else:
            text += f" {m['content']}</s>"
    return text


def counting_rounds(messages):
    turns, text = _system(messages)[1], ""
    for i, m in enumerate(turns):
        if m["role"] == "user":
            text += f"[Round {i // 2 + 1} of {(len(turns) + 1) // 2}]\nQ: {m['content']}\nA:"
        else:
            text += f" {m['content']}</s>\n"
    return text


def insisting_on_order(messages):
    system, turns = _system(messages)
    text = f"<<SYS>>{system}<</SYS>>"
    for m in turns:
        marks = ("<s>[INST] ", " [/INST]") if m["role"] == "user" else (" ", " </s>")
        text += marks[0] + m["content"].strip() + marks[1]
    return text


KINDS = {
    "plain": (
        "{% set marks = {'system': '<|sys|>', 'user': '<|u|>', 'assistant': '<|a|>'} %}"
        "{% for m in messages %}{{ marks[m.role] + m.content + '<|end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}",
        plain,
    ),
    "dropping thoughts": (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '<|u|>' + m.content }}"
        "{% elif m.role == 'assistant' %}{{ '<|a|>' + m.content.split('.')[-1] + eos_token }}"
        "{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}",
        dropping_thoughts,
    ),
    "keeping the last thoughts": (
        "{% set ns = namespace(last=0) %}"
        "{% for m in messages if m.role == 'user' %}{% set ns.last = ns.last + 1 %}{% endfor %}"
        "{% set seen = namespace(n=0) %}"
        "{% for m in messages %}{% if m.role == 'assistant' %}"
        "{% if seen.n < ns.last %}{{ '<|a|>' + m.content.split('.')[-1] + '<|end|>' }}"
        "{% else %}{{ '<|a|>' + m.content + '<|end|>' }}{% endif %}{% else %}"
        "{% if m.role == 'user' %}{% set seen.n = seen.n + 1 %}{% endif %}"
        "{{ ('<|u|>' if m.role == 'user' else '<|sys|>') + m.content + '<|end|>' }}"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}",
        keeping_the_thoughts_since_the_last_question,
    ),
    "moving the system text": (
        "{{ bos_token }}{% set turns = messages %}{% set text = none %}"
        "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}"
        "{% set text = messages[0].content %}{% endif %}"
        "{% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' }}"
        "{% if loop.last and text is not none %}{{ text + '\n\n' }}{% endif %}"
        "{{ m.content + '[/INST]' }}{% else %}{{ ' ' + m.content + eos_token }}"
        "{% endif %}{% endfor %}",
        moving_the_system_text,
    ),
    "counting rounds": (
        "{% set turns = messages | rejectattr('role', 'equalto', 'system') | list %}"
        "{% for m in turns %}{% if m.role == 'user' %}"
        "{{ '[Round ' ~ (loop.index0 // 2 + 1) ~ ' of ' ~ ((turns | length + 1) // 2) ~ ']\nQ: ' "
        "~ m.content ~ '\nA:' }}{% else %}{{ ' ' ~ m.content ~ eos_token ~ '\n' }}"
        "{% endif %}{% endfor %}",
        counting_rounds,
    ),
    "insisting on order": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}"
        "{% endif %}{{ '<<SYS>>' + messages[0].content + '<</SYS>>' }}"
        "{% for m in messages[1:] %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        insisting_on_order,
    ),
}
"""By name: the template, and the function that says what it writes for an answer to come."""

TOOL_TEMPLATE = (
    "{{ bos_token }}{% if tools %}{{ '<|sys|>' }}{% for tool in tools %}"
    "{{ tool | tojson + '\n' }}{% endfor %}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls is defined %}{{ '<|a|>' }}{% for call in m.tool_calls %}"
    "{{ {'name': call.function.name, 'parameters': call.function.arguments} | tojson }}"
    "{% endfor %}{{ '<|end|>' }}{% elif m.role in ('tool', 'ipython') %}"
    "{{ '<|tool|>' + m.content + '<|end|>' }}"
    "{% else %}{{ ('<|u|>' if m.role == 'user' else '<|a|>') + m.content + '<|end|>' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|a|>' }}{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
]
CALL = [{"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}]
