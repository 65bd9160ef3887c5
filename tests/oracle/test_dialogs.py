"""Dialogs against transformers' `apply_chat_template`, turn by turn and id for id."""

import dataclasses
from itertools import takewhile

import jax
import pytest
from dialog_kinds import CALL, KINDS, TOOL_TEMPLATE, TOOLS, byte_folder

from llama_jax import Config, Conversation, init_params, load_tokenizer

transformers = pytest.importorskip(
    "transformers", reason="transformers is absent; pip install -e '.[oracle]'"
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
QUESTIONS = ("Who is Lily?", "Why?", "Where?", "And then?", "Is that all?")


def theirs(tokenizer, messages, **options):
    ids = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False, **options
    )
    return list(ids)


@pytest.fixture(scope="module")
def params():
    config = dataclasses.replace(Config.named("tiny"), vocab_size=264, max_seq_len=1024)
    return init_params(jax.random.key(0), config)


@pytest.mark.parametrize("kind", KINDS)
def test_five_turns_are_read_as_transformers_writes_them(params, tmp_path, kind):
    template, written = KINDS[kind]
    folder = byte_folder(tmp_path, template)
    ours, their = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    letters = dict.fromkeys(ours.encode("ab.cd", bos=False, eos=False), 60.0)
    talk = Conversation(
        params, system="Be brief.", tokenizer=ours, top_p=1.0, max_new_tokens=8, logit_bias=letters
    )
    for question in QUESTIONS:
        tokens = [token for delta in talk.ask(question) for token in delta.tokens]
        dialog = talk.messages[:-1]
        assert talk.ids[: len(talk.ids) - len(tokens)] == theirs(their, dialog)
        rendered = their.apply_chat_template(dialog, tokenize=False, add_generation_prompt=True)
        assert rendered == written(dialog)


def test_five_turns_with_tools_are_read_as_transformers_writes_them(params, tmp_path):
    folder = byte_folder(tmp_path, TOOL_TEMPLATE)
    ours, their = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    letters = dict.fromkeys(ours.encode("ab.cd", bos=False, eos=False), 60.0)
    talk = Conversation(
        params, tools=TOOLS, tokenizer=ours, top_p=1.0, max_new_tokens=8, logit_bias=letters
    )

    def check(answer):
        before = list(talk.ids)
        tokens = [token for delta in answer for token in delta.tokens]
        asked = talk.ids[: len(talk.ids) - len(tokens)]
        assert asked == theirs(their, without_none(talk.messages[:-1]), tools=TOOLS)
        same = sum(
            1
            for _ in takewhile(
                lambda both: both[0] == both[1], zip(before[:-1], asked, strict=False)
            )
        )
        assert talk.prefilled == len(asked) - min(same, len(asked) - 1)

    for n, question in enumerate(QUESTIONS):
        check(talk.ask(question))
        if n % 2:  # the answer was a call
            talk.messages[-1] = {"role": "assistant", "content": None, "tool_calls": CALL}
            talk.messages.append({"role": "tool", "content": f"{n} degrees", "name": None})
            check(talk.answer())
    assert [message["role"] for message in talk.messages].count("tool") == 2


def without_none(messages):
    """Those keys that a message has: transformers' templates see a None too."""
    return [{k: v for k, v in message.items() if v is not None} for message in messages]


def test_tools_are_written_as_transformers_writes_them(tmp_path):
    folder = byte_folder(tmp_path, TOOL_TEMPLATE)
    ours, their = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    dialog = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "tool_calls": CALL},
        {"role": "tool", "content": "21 degrees"},
    ]
    for end in (1, 3):
        for tools in (None, TOOLS):
            expected = theirs(their, dialog[:end], tools=tools)
            assert ours.encode_dialog(dialog[:end], tools=tools) == expected
