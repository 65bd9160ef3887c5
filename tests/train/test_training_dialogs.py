"""Dialogs to train on: what a line may hold, what of it is trained, and how rows hold it."""

import itertools
import json
import os

import numpy as np
import pytest
import tokenizers
from helpers import run
from small_tokenizers import sentencepiece_file, tiktoken_file, tokenizer_of
from token_files import tokenizer_file

from llama_jax.tokenizer import load_tokenizer
from llama_jax.tokenizer.dialog import encode_llama2_answers
from llama_jax.train.batches import batch_sharding, evaluation_batches
from llama_jax.train.dialog_tokens import tokenize_dialogs
from llama_jax.train.dialogs import example_of, read_dialogs
from llama_jax.train.packed_rows import rows_in
from llama_jax.train.token_folder import open_tokens

FORMATS = {"sentencepiece": "tiny-sentencepiece", "tiktoken": "tiny-tiktoken"}
TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Was there a llama?"},
    {"role": "assistant", "content": "Once, </s> <|eot_id|> and it was \N{LLAMA}."},
    {"role": "user", "content": "the time"},
    {"role": "assistant", "content": "x"},
]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
REWRITING = "{{ messages | length }}: " + CHATML


def lines(folder, *values, name="dialogs.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file


def examples_of(folder, tokenizer, *values):
    return [example_of(dialog, tokenizer) for dialog, _ in read_dialogs([lines(folder, *values)])]


def hugging_face(folder, template):
    """A tokenizer of bytes with ChatML's control tokens, and a chat template."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=["<s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(["\n\n\n\nOnce upon a time a llama\n"] * 20, trainer)
    (folder / "tokenizer.json").write_text(made.to_str())
    config = {"bos_token": "<s>", "eos_token": "<|im_end|>", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def beside(folder, format, template, eos="<|im_end|>"):
    """A tokenizer.model with ChatML's control tokens and a template beside it; alone for None."""
    content = {"sentencepiece": sentencepiece_file, "tiktoken": tiktoken_file}[format]()
    (folder / "tokenizer.model").write_bytes(content)
    if template is not None:
        size = load_tokenizer(folder).vocab_size
        added = {"<|im_start|>": size, "<|im_end|>": size + 1}
        (folder / "added_tokens.json").write_text(json.dumps(added))
        config = {"chat_template": template} | ({} if eos is None else {"eos_token": eos})
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def trained_runs(example):
    """The runs of tokens that are trained."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], example.trained.astype(int), [0]])))
    return [example.ids[a:b] for a, b in edges.reshape(-1, 2)]


# What is trained


@pytest.mark.parametrize("format", FORMATS)
def test_the_answers_and_their_ends_are_trained_and_nothing_else(tmp_path, format):
    tokenizer = tokenizer_of(FORMATS[format])
    [example] = examples_of(tmp_path, tokenizer, {"messages": TURNS})
    for turn, answered in zip((2, 4), trained_runs(example), strict=True):
        # An answer begins where the model would begin to write it.
        before = tokenizer.encode_dialog(TURNS[:turn])
        assert example.ids[: len(before)] == before
        assert example.ids[len(before) :][: len(answered)] == answered
        assert tokenizer.decode(answered[:-1]).strip() == TURNS[turn]["content"]
        assert answered[-1] in (tokenizer.stop_ids if format == "tiktoken" else [2])
        assert not set(answered[:-1]) & set(tokenizer.stop_ids)


@pytest.mark.parametrize("template", [CHATML, MARKED], ids=["by difference", "by generation"])
@pytest.mark.parametrize("content", ["Once upon", "\n\nOnce", "", "a <|im_end|> b", "\N{LLAMA}\n"])
def test_a_template_says_which_tokens_are_the_assistants(tmp_path, template, content):
    tokenizer = hugging_face(tmp_path, template)
    turns = [*TURNS[:2], {"role": "assistant", "content": content}, *TURNS[3:]]
    if template == CHATML and content.startswith("\n"):
        with pytest.raises(ValueError, match=r"before message 2 depend on it, .* generation"):
            tokenizer.encode_answers(turns)
        return
    [example] = examples_of(tmp_path, tokenizer, {"messages": turns})
    ids, writers = tokenizer.encode_answers(turns)
    assert ids[: len(example.ids)] == example.ids
    first, second = trained_runs(example)
    assert example.ids[-1] == second[-1] == first[-1] == tokenizer.special["<|im_end|>"]
    assert tokenizer.decode(first).endswith(content)
    assert tokenizer.decode(second) == "x"
    assert first[:-1].count(first[-1]) == 0
    assert sorted(set(writers)) == [-1, 2, 4]
    for turn, written in ((2, first), (4, second)):
        before = tokenizer.encode_dialog(turns[:turn])
        if not content.startswith("\n"):  # such a token begins before the answer
            assert example.ids[len(before) :][: len(written)] == written


@pytest.mark.parametrize("template", [None, CHATML, MARKED])
@pytest.mark.parametrize("format", FORMATS)
def test_a_template_beside_metas_files_says_which_tokens_are_the_assistants(
    tmp_path, format, template
):
    content = "Once\N{LLAMA} a </s> <|im_end|> é"
    turns = [*TURNS[:2], {"role": "assistant", "content": content}, *TURNS[3:]]
    tokenizer = beside(tmp_path, format, template)
    ids, writers = tokenizer.encode_answers(turns)
    question = [{"role": "user", "content": "?"}]
    if template is not None:
        assert ids == tokenizer.encode_dialog([*turns, *question])[: len(ids)]
    for turn in (2, 4):
        written = [id for id, writer in zip(ids, writers, strict=True) if writer == turn]
        assert written[-1] in tokenizer.stop_ids
        assert tokenizer.decode(written[:-1]).strip() == turns[turn]["content"]
        assert writers.index(turn) == len(tokenizer.encode_dialog(turns[:turn]))


@pytest.mark.parametrize("template", [None, CHATML, MARKED])
@pytest.mark.parametrize("format", FORMATS)
def test_answers_are_of_the_messages_that_a_dialog_has(tmp_path, format, template):
    tokenizer = beside(tmp_path, format, template)
    parts = [{"type": "text", "text": text} for text in ("Once, ", "the time")]
    given = [TURNS[1], {"role": "assistant", "content": parts, "tool_calls": None}]
    meant = [TURNS[1], {"role": "assistant", "content": "Once, the time"}]
    assert tokenizer.encode_answers(given) == tokenizer.encode_answers(meant)
    with pytest.raises(ValueError, match="message 1 has no 'content'"):
        tokenizer.encode_answers([TURNS[1], {"role": "assistant", "content": None}])


@pytest.mark.parametrize("format", FORMATS)
def test_a_template_that_ends_answers_with_a_token_that_no_file_calls_an_end(tmp_path, format):
    tokenizer = beside(tmp_path, format, CHATML, eos=None)
    ids, writers = tokenizer.encode_answers(TURNS)
    end = tokenizer.special["<|im_end|>"]
    assert end not in tokenizer.stop_ids
    assert {ids[n] for n in range(len(ids)) if writers[n] == 2 and writers[n + 1] != 2} == {end}


@pytest.mark.parametrize("template", [CHATML, MARKED])
def test_a_dialog_that_begins_with_an_answer_needs_marks(tmp_path, template):
    tokenizer = hugging_face(tmp_path, template)
    if template == CHATML:
        with pytest.raises(ValueError, match="message 0 is the assistant's, and no message stands"):
            tokenizer.encode_answers(TURNS[2:])
    else:
        assert set(tokenizer.encode_answers(TURNS[2:])[1]) == {-1, 0, 2}


def test_a_template_that_rewrites_what_stands_before_is_refused(tmp_path):
    tokenizer = hugging_face(tmp_path, REWRITING)
    with pytest.raises(
        ValueError, match=r"dialogs\.jsonl, line 1: .*before message 2 depend on it"
    ):
        examples_of(tmp_path, tokenizer, {"messages": TURNS})


def test_a_template_whose_marks_are_not_the_assistants_is_refused(tmp_path):
    tokenizer = hugging_face(tmp_path, CHATML + "{% generation %}{% endgeneration %}")
    with pytest.raises(ValueError, match=r"line 1: .* marks 1 parts .* has 2 of its messages"):
        examples_of(tmp_path, tokenizer, {"messages": TURNS})


@pytest.mark.parametrize("format", FORMATS)
def test_a_message_may_say_that_it_is_not_trained(tmp_path, format):
    tokenizer = tokenizer_of(FORMATS[format])
    untrained = [*TURNS[:2], {**TURNS[2], "train": False}, *TURNS[3:]]
    cut = [*TURNS[:4], {**TURNS[4], "train": False}]
    whole, second, first = examples_of(
        tmp_path, tokenizer, *({"messages": turns} for turns in (TURNS, untrained, cut))
    )
    assert second.ids == whole.ids
    assert trained_runs(second) == trained_runs(whole)[1:]
    assert trained_runs(first) == trained_runs(whole)[:1]
    assert first.ids == whole.ids[: len(first.ids)]  # up to the last that is trained


@pytest.mark.parametrize("template", [None, CHATML, MARKED], ids=["own", "difference", "marked"])
@pytest.mark.parametrize("weight", [0, 1])
def test_openais_weight_is_followed_whatever_writes_the_dialog(tmp_path, weight, template):
    tokenizer = beside(tmp_path, "sentencepiece", template)
    weighed = [*TURNS[:2], {**TURNS[2], "weight": weight}, *TURNS[3:]]
    whole, one, other = examples_of(
        tmp_path,
        tokenizer,
        {"messages": TURNS},
        {"messages": weighed},
        {"messages": [*weighed[:2], {**weighed[2], "train": weight == 0}, *weighed[3:]]},
    )
    assert one.ids == other.ids == whole.ids
    assert trained_runs(one) == trained_runs(whole)[1 - weight :]
    assert trained_runs(other) == trained_runs(whole)[weight:], "its own word goes before"


def test_three_ways_to_write_a_dialog_are_one(tmp_path):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    sharegpt = [{"from": names[turn["role"]], "value": turn["content"]} for turn in TURNS[:3]]
    question, answer = TURNS[1]["content"], TURNS[2]["content"]
    one, two, three, four, five = examples_of(
        tmp_path,
        tokenizer_of("tiny-tiktoken"),
        {"messages": TURNS[:3]},
        {"conversations": sharegpt, "id": "a"},
        {"prompt": TURNS[:2], "completion": TURNS[2:3]},
        {"messages": TURNS[1:3]},
        {"prompt": question, "completion": answer},
    )
    for other in (two, three):
        assert one.ids == other.ids
        assert (one.trained == other.trained).all()
    assert four.ids == five.ids


def test_a_completion_alone_is_trained(tmp_path):
    prompt = [*TURNS[:4]]
    one, two = examples_of(
        tmp_path,
        tokenizer_of("tiny-tiktoken"),
        {"prompt": prompt, "completion": TURNS[4:]},
        {"messages": TURNS},
    )
    assert one.ids == two.ids
    assert trained_runs(one) == trained_runs(two)[1:]


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"text": "a"}, "its keys are 'text'; a dialog has messages; conversations"),
        ({"messages": []}, "'messages' must be a list of messages with at least one"),
        ({"messages": "a"}, "'messages' must be a list"),
        ({"messages": ["a"]}, "message 0 is a str; it must be an object"),
        ({"messages": TURNS[:2]}, "no message is trained"),
        ({"messages": [*TURNS[:2], {**TURNS[2], "train": False}]}, "no message is trained"),
        ({"messages": [{**TURNS[1], "train": True}]}, "only the assistant's messages are trained"),
        ({"messages": [{**TURNS[2], "train": 1}]}, '"train": 1; it is true or false'),
        (
            {"messages": [TURNS[1], {**TURNS[2], "weight": 0.5}]},
            'has "weight": 0.5; it is 0 or 1',
        ),
        ({"messages": [{**TURNS[1], "weight": 1}]}, "\"weight\": 1 and role 'user'; only the"),
        ({"messages": [TURNS[1], {**TURNS[2], "wait": 0}]}, "message 1 has 'wait', which"),
        ({"messages": [{"role": "bot", "content": "a"}, TURNS[2]]}, "message 0 has role 'bot'"),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            "message 0 has no 'content', only 'role'",
        ),
        ({"conversations": [{"from": "bing", "value": "a"}]}, "is from 'bing'; it is one of"),
        ({"conversations": [{"from": ["gpt"], "value": "a"}]}, r"is from \['gpt'\]; it is one of"),
        ({"conversations": [{"from": "x" * 9000, "value": "a"}]}, r"is from 'xxx.{200,400}\Z"),
        ({"conversations": [{"role": "user"}]}, "needs 'from' and 'value'"),
        ({"prompt": "a", "completion": 3}, "'completion' must be a list of messages"),
        ({"prompt": "a"}, "its keys are 'prompt'; a dialog has"),
    ],
)
def test_a_line_that_is_no_example_is_named(tmp_path, value, error):
    with pytest.raises(ValueError, match=error) as raised:
        examples_of(tmp_path, tokenizer_of("tiny-tiktoken"), {"messages": TURNS}, value)
    assert "dialogs.jsonl, line 2: " in str(raised.value)


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_answer_trains_its_end(tmp_path, format):
    turns = [TURNS[1], {"role": "assistant", "content": ""}]
    tokenizer = tokenizer_of(FORMATS[format])
    [example] = examples_of(tmp_path, tokenizer, {"messages": turns})
    [run] = trained_runs(example)
    assert tokenizer.decode(run[:-1]).strip() == ""
    assert run[-1] == example.ids[-1]


def test_an_answer_that_shares_a_token_with_its_question_is_refused():
    class Words:
        """A tokenizer that makes a token of any text."""

        def encode(self, text, *, bos, eos):
            return [len(text)]

    with pytest.raises(ValueError, match="message 1 begins within a token of the question's"):
        encode_llama2_answers(Words(), TURNS[1:3])


# Rows


def dialogs(count):
    return [
        {"messages": [*TURNS[1:2], {"role": "assistant", "content": f"Once {n} " * (n % 7 + 1)}]}
        for n in range(count)
    ]


def packed(tmp_path, count=40, context=400, **settings):
    tokenizer = tokenizer_file(tmp_path / "tokenizer", "tiktoken")
    settings = {"validation_every": 5, **settings}
    out = tmp_path / "out"
    done = tokenize_dialogs(
        [lines(tmp_path, *dialogs(count))], tokenizer, out, context=context, **settings
    )
    return done, open_tokens(out, check_hashes=True)


@pytest.mark.parametrize("name", ["trained.bin", "rows.npy"])
def test_a_file_of_packed_rows_that_shrinks_is_an_error(tmp_path, name):
    _, folder = packed(tmp_path)
    rows = rows_in(folder.train, time=400, documents="separate")
    os.truncate(folder.path / "train" / name, 10)
    with pytest.raises(ValueError, match=rf"{name} had [0-9,]* bytes when it was opened and has 1"):
        rows.read(np.arange(2))


def test_rows_hold_every_example_once_with_its_own_positions_and_weights(tmp_path):
    done, folder = packed(tmp_path)
    examples = examples_of(tmp_path, load_tokenizer(folder.path), *dialogs(40))
    rows = rows_in(folder.train, time=400, documents="separate")
    batch = rows.read(np.arange(len(rows)))
    found = []
    for row in range(len(rows)):
        begins = [*np.flatnonzero(batch.positions[row] == 0), 400]
        for begin, end in itertools.pairwise(begins):
            if not batch.tokens[row, begin]:
                continue  # padding
            assert batch.positions[row, begin:end].tolist() == list(range(end - begin))
            weights = batch.weights[row, begin:end]
            assert weights[-1] == 0  # the next dialog is not predicted from this one
            trained = [False, *(weights[:-1] > 0).tolist()]
            ids = batch.tokens[row, begin:end].tolist()
            assert batch.targets[row, begin : end - 1].tolist() == ids[1:]
            found.append((ids, trained))
    wanted = [(e.ids, e.trained.tolist()) for i, e in enumerate(examples) if i % 5 != 4]
    assert sorted(found) == sorted(wanted)
    assert batch.weights.sum() == done.splits["train"]["packed"]["trained_tokens"]
    assert (batch.weights[batch.tokens == 0] == 0).all()


def test_packed_rows_are_evaluated_whole(tmp_path):
    done, folder = packed(tmp_path)
    rows = rows_in(folder.validation, time=400, documents="separate")
    batches = evaluation_batches(rows, 4, batch_sharding(None, 4))
    trained = done.splits["validation"]["packed"]["trained_tokens"]
    assert sum(float(batch.weights.sum()) for batch in batches) == trained


def test_packing_is_made_once_and_is_the_same_again(tmp_path):
    packed(tmp_path)
    first = (tmp_path / "out/manifest.json").read_bytes()
    packed(tmp_path, overwrite=True)
    assert (tmp_path / "out/manifest.json").read_bytes() == first


def test_a_dialog_longer_than_a_row_is_named_or_left_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"line 5: the dialog has \d+ tokens, and a row 70; .*long"
    ):
        packed(tmp_path, context=70)
    done, folder = packed(tmp_path, context=70, drop_long=True)
    kept = sum(split["documents"] for split in done.splits.values())
    assert kept + done.left_out == 40
    assert 0 < kept < 40
    assert folder.train.packed.time == 70


def test_rows_of_another_length_or_joined_are_refused(tmp_path):
    _, folder = packed(tmp_path)
    with pytest.raises(ValueError, match="packed into rows of 400 tokens, not 512"):
        rows_in(folder.train, time=512, documents="separate")
    with pytest.raises(ValueError, match="would let packed dialogs see each other"):
        rows_in(folder.train, time=400, documents="joined")


@pytest.mark.parametrize("name", ["train/rows.npy", "train/trained.bin"])
def test_a_changed_plan_is_noticed(tmp_path, name):
    _, folder = packed(tmp_path)
    content = bytearray((folder.path / name).read_bytes())
    content[-9] ^= 1
    (folder.path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name} was changed: its sha256"):
        open_tokens(folder.path, check_hashes=True)


def test_the_command_packs_dialogs(tmp_path):
    tokenizer = tokenizer_file(tmp_path / "tokenizer", "tiktoken")
    given = lines(tmp_path, *dialogs(40)), "--tokenizer", tokenizer, "--out", tmp_path / "out"
    done = run("tokenize", *given, "--dialogs", "--context", 400, "--validation-every", 5)
    assert done.exit_code == 0, done.output
    assert "32 dialogs" in done.stdout
    assert "% full" in done.stdout
    for more, error in (
        (["--dialogs"], "--dialogs needs --context"),
        (["--context", "400"], "--context and --drop-long are for --dialogs"),
    ):
        refused = run("tokenize", *given, *more)
        assert refused.exit_code == 2
        assert error in refused.stderr
