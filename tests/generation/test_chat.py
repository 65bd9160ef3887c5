"""Conversations: what a turn reads, what is forgotten, and what Ctrl-C leaves behind."""

import re
import sys

import jax
import pexpect
import pytest
from helpers import Letters

import llama_jax
from llama_jax import Conversation, generate
from llama_jax.generation import driver
from llama_jax.generation.limits import ACCELERATOR, CPU
from llama_jax.generation.turn import prepare_turns

WORDS = {"forbidden_ids": [id for id in range(256) if id not in b"abcdefgh \x02"]}
SETTINGS = WORDS | {"temperature": 1.0, "max_new_tokens": 16}
# Answers of a fixed length whose text encodes to the very tokens that were written.
ONLY_LETTERS = SETTINGS | {"forbidden_ids": [*WORDS["forbidden_ids"], 2], "stop_ids": []}


class Dialogs(Letters):
    """Letters whose dialogs read "U:question\\x02A:answer\\x02", after bos."""

    def encode_dialog(self, messages):
        ids = [1]
        for message in messages:
            ids += [*message["role"][0].upper().encode(), *b":", *message["content"].encode(), 2]
        return [*ids, *b"A:"]


def conversation(params, **changes):
    return Conversation(params, tokenizer=Dialogs(), **SETTINGS | changes)


def answered(talk, question):
    """The answer's text and tokens."""
    deltas = list(talk.ask(question))
    assert deltas[-1].finish_reason in ("stop", "length")
    return "".join(d.text for d in deltas), [token for d in deltas for token in d.tokens]


def from_scratch(params, ids, **changes):
    (done,) = generate(params, [ids], **SETTINGS | changes, tokenizer=Dialogs())
    return done


def test_chat_answers_a_dialog(params):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
    ]
    done = llama_jax.chat(params, messages, tokenizer=Dialogs(), **SETTINGS, seed=3)
    wanted = from_scratch(params, Dialogs().encode_dialog(messages), seed=3)
    assert (done.text, done.tokens, done.finish_reason) == (
        wanted.text,
        wanted.tokens,
        wanted.finish_reason,
    )
    settings = llama_jax.SamplingSettings(**SETTINGS, seed=3, logprobs=2, prompt_logprobs=0)
    told = llama_jax.chat(params, messages, settings, tokenizer=Dialogs())
    assert told.tokens == done.tokens
    assert len(told.logprobs) == len(told.tokens)
    assert len(told.prompt_logprobs) == len(Dialogs().encode_dialog(messages))


def test_a_dialog_needs_a_tokenizer(params):
    for call in (lambda: Conversation(params), lambda: llama_jax.chat(params, [])):
        with pytest.raises(ValueError, match="no tokenizer, and a dialog is text"):
            call()


def test_a_turn_reads_only_what_is_new_and_answers_as_if_it_had_read_all(params):
    talk, ids = conversation(params, system="be brief"), [1, *b"S:be brief\x02"]
    for turn, question in enumerate(("hello", "a longer question than that", "b")):
        ids += [*b"U:", *question.encode(), *b"\x02A:"]
        new = len(ids) if turn == 0 else 1 + len(question) + 6
        text, tokens = answered(talk, question)
        wanted = from_scratch(params, ids)
        assert (tokens, text) == (wanted.tokens, wanted.text)
        # What was appended since, and the newest token, which was not in the cache yet.
        assert talk.prefilled == (len(ids) if turn == 0 else new)
        ids += [*tokens, 2]
    roles = [message["role"] for message in talk.messages]
    assert roles == ["system", *["user", "assistant"] * 3]
    assert talk.messages[-1]["content"] == text


def test_text_that_encodes_otherwise_is_read_again_from_there(params):
    """The model sees what the format makes of an answer's text, say of half a character."""
    changes = {"forbidden_ids": [2], "logit_bias": {0xE7: 9.0}, "max_new_tokens": 3}
    talk = conversation(params, **changes)
    text, tokens = answered(talk, "x")
    assert "\ufffd" in text
    before = talk.ids
    _, more = answered(talk, "y")
    ids = Dialogs().encode_dialog(talk.messages[:-1])
    assert more == from_scratch(params, ids, **changes).tokens
    kept = next(i for i, (a, b) in enumerate(zip(before, ids, strict=False)) if a != b)
    assert kept >= len(before) - len(tokens), "the question and what encodes alike are kept"
    assert talk.prefilled == len(ids) - kept


def test_a_full_context_forgets_the_oldest_turns_and_keeps_the_system_message(params):
    talk = conversation(params, system="be brief", forbidden_ids=[], stop_ids=[])
    for turn in range(8):
        question = f"question {turn} " + "x" * 20
        _, tokens = answered(talk, question)
        assert len(tokens) == 16, "an answer has room"
        assert len(talk.ids) <= params.config.max_seq_len
        assert talk.messages[0] == {"role": "system", "content": "be brief"}
        assert talk.messages[-2]["content"] == question
    asked = [m["content"] for m in talk.messages if m["role"] == "user"]
    assert talk.forgotten == 8 - len(asked) > 0
    assert asked == [f"question {turn} " + "x" * 20 for turn in range(talk.forgotten, 8)]
    # The cache of what was forgotten does not show through.
    messages = talk.messages[:-1]
    wanted = from_scratch(params, talk.ids[: -len(tokens)], forbidden_ids=[], stop_ids=[])
    assert wanted.tokens == tokens
    assert messages[-1]["role"] == "user"


def test_a_message_beyond_the_context_is_refused_and_nothing_is_lost(params):
    talk = conversation(params)
    answered(talk, "hello")
    before, again = list(talk.messages), talk.ids
    with pytest.raises(ValueError, match=r"a dialog of 306 tokens and .* max_seq_len=256"):
        next(talk.ask("x" * 300))
    assert (talk.messages, talk.ids, talk.forgotten) == (before, again, 0)
    answered(talk, "and now")
    assert talk.prefilled < 20


def test_an_answer_that_is_cut_short_joins_the_dialog_as_far_as_it_came(params):
    talk = conversation(params, **ONLY_LETTERS)
    answer = talk.ask("hello")
    tokens = [token for _ in range(3) for token in next(answer).tokens]
    answer.close()
    assert len(tokens) == 3
    assert talk.messages[-1]["role"] == "assistant"
    ids = [1, *b"U:hello\x02A:", *tokens, 2, *b"U:go on\x02A:"]
    _, more = answered(talk, "go on")
    assert more == from_scratch(params, ids, **ONLY_LETTERS).tokens
    assert talk.prefilled == 1 + len(b"\x02U:go on\x02A:")
    unread = talk.ask("never begun")
    del unread
    assert [m["content"] for m in talk.messages if m["role"] == "user"] == ["hello", "go on"]


@pytest.mark.parametrize("where", ["in the loop", "in the prefill", "after the prefill"])
@pytest.mark.parametrize("forgetting", [False, True])
def test_an_interrupt_anywhere_leaves_a_conversation_that_goes_on(
    params, monkeypatch, where, forgetting
):
    talk = conversation(params, **ONLY_LETTERS)
    for turn in range(6 if forgetting else 1):
        answered(talk, f"hello {turn} " + "x" * 20)
    forgotten = talk.forgotten
    read, advance = driver.prefill, driver.decode
    steps = []

    def interrupted_prefill(*arguments, **options):
        if where == "after the prefill":
            read(*arguments, **options)  # the cache was given away, and nothing came back
        raise KeyboardInterrupt

    def interrupted_decode(*arguments, **options):
        steps.append(1)
        if len(steps) == 5:
            advance(*arguments, **options)
            raise KeyboardInterrupt
        return advance(*arguments, **options)

    with monkeypatch.context() as patch:
        if where == "in the loop":
            patch.setattr(driver, "decode", interrupted_decode)
        else:
            patch.setattr(driver, "prefill", interrupted_prefill)
        written = []
        with pytest.raises(KeyboardInterrupt):
            written.extend(delta.tokens for delta in talk.ask("stop me " + "y" * 20))
        written = [token for tokens in written for token in tokens]
    assert len(written) == (5 if where == "in the loop" else 0), "the prefill's and four steps'"
    assert talk.messages[-2]["content"].startswith("stop me")
    before = talk.ids
    assert before[len(before) - len(written) :] == written
    _, tokens = answered(talk, "go on")
    assert (talk.forgotten > forgotten) == forgetting
    assert tokens == from_scratch(params, talk.ids[: -len(tokens)], **ONLY_LETTERS).tokens
    if not forgetting:
        assert talk.ids[: len(before)] == before


def test_reset_forgets_all_but_a_system_message_and_the_old_cache_does_not_show(params):
    talk = conversation(params)
    first, _ = answered(talk, "hello")
    answered(talk, "something else")
    talk.reset()
    assert talk.messages == []
    assert answered(talk, "hello")[0] == first
    talk.reset("be brief")
    assert talk.messages == [{"role": "system", "content": "be brief"}]
    _, tokens = answered(talk, "hello")
    assert tokens == from_scratch(params, [1, *b"S:be brief\x02U:hello\x02A:"]).tokens


def test_an_answer_that_the_format_refuses_is_an_error_until_the_dialog_is_mended(params):
    class Strict(Dialogs):
        def encode_dialog(self, messages):
            if any("a" in m["content"] for m in messages if m["role"] == "assistant"):
                raise ValueError("a tag in a content")
            return super().encode_dialog(messages)

    for mend in ("undo", "edit"):
        talk = Conversation(params, tokenizer=Strict(), **ONLY_LETTERS | {"logit_bias": {97: 9.0}})
        answered(talk, "x")
        before = list(talk.messages)
        with pytest.raises(ValueError, match="a tag in a content"):
            next(talk.ask("y"))
        assert talk.messages == before, "nothing is lost"
        if mend == "undo":
            assert talk.undo() == {"role": "user", "content": "x"}
        else:
            talk.messages[-1]["content"] = "mended"
        answered(talk, "y")


def test_a_turn_computes_about_as_many_positions_as_it_reads(params):
    """A long past is not read again in the padding of a short question."""
    talk = conversation(params, max_new_tokens=4, forbidden_ids=[], stop_ids=[])
    seen = []
    original = driver.prefill

    def watched(*arguments, **options):
        seen.append(original.lower(*arguments, **options).as_text())
        return original(*arguments, **options)

    watched.lower = original.lower
    driver.prefill = watched
    try:
        answered(talk, "x" * 120)
    finally:
        driver.prefill = original
    widest = max(int(n) for n in re.findall(r"tensor<1x(\d+)x64xf32>", seen[0]))
    assert widest == CPU.turn_tokens < 128


def test_an_accelerator_reads_more_of_a_turn_at_once():
    assert ACCELERATOR.turn_tokens == 512 > CPU.turn_tokens == 64


def test_a_second_turn_in_the_same_buckets_compiles_nothing(params, compiled):
    talk = conversation(params, forbidden_ids=[], stop_ids=[])
    driver.decode.clear_cache()
    driver.prefill.clear_cache()
    answered(talk, "x" * 70)
    assert len(compiled) == 2, "a prefill and a loop"
    for _ in range(2):
        answered(talk, "y")
    assert len(compiled) == 2


def test_a_loaded_models_first_word_waits_for_both_programs_and_none_follows(params, compiled):
    """`load` puts weights on a device; a cache that lay elsewhere would be another program's."""
    driver.decode.clear_cache()
    driver.prefill.clear_cache()
    talk = conversation(jax.device_put(params, jax.devices()[0]))
    answer = talk.ask("hello")
    next(answer)
    assert len(compiled) == 2
    answer.close()
    for question in ("you", "and you"):
        answered(talk, question)
    assert len(compiled) == 2


def test_what_is_compiled_while_somebody_types_is_what_the_answer_runs(params, compiled):
    driver.decode.clear_cache()
    driver.prefill.clear_cache()
    held = jax.device_put(params, jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), held
    )
    for _ in prepare_turns(shapes):
        pass
    assert len(compiled) == 2
    answered(conversation(held), "hello")
    assert len(compiled) == 2


@pytest.mark.slow
def test_a_conversation_is_had_on_a_mesh(params):
    mesh = llama_jax.make_mesh(tensor=2)
    split = llama_jax.shard_params(params, mesh)
    one, other = conversation(params), conversation(split)
    for question in ("hello", "and more"):
        assert answered(one, question) == answered(other, question)
        for layer in other.cache.k:  # its key heads lie apart, from the first turn on
            assert layer.addressable_shards[0].data.shape[1] == params.config.n_kv_heads // 2
    assert one.prefilled == other.prefilled


# The real model, in a real terminal


def test_stories260k_reads_a_second_turn_from_where_it_was(shared):
    model = llama_jax.load(shared / "models/stories260K-meta", dtype="float32")
    talk = Conversation(model, temperature=0.0, max_new_tokens=24)
    first = "".join(delta.text for delta in talk.ask("Tell me a story."))
    before = talk.ids
    tokenizer = llama_jax.load_tokenizer(model.tokenizer)
    asked = len(tokenizer.encode_dialog(talk.messages[:1]))
    assert first == talk.messages[-1]["content"] != ""
    deltas = list(talk.ask("And then?"))
    ids = tokenizer.encode_dialog(talk.messages[:-1])
    (done,) = generate(model, [ids], temperature=0.0, max_new_tokens=24)
    assert [token for delta in deltas for token in delta.tokens] == done.tokens
    assert talk.ids == ids + done.tokens
    both = zip(before[:-1], ids, strict=False)
    kept = next((i for i, (a, b) in enumerate(both) if a != b), len(before) - 1)
    # At the least the question: the format puts a space before an answer, whatever the model wrote.
    assert kept >= asked
    assert talk.prefilled == len(ids) - kept


# pexpect forks, at which JAX warns of deadlocks; the child is another program at once.
forks = pytest.mark.filterwarnings(
    "ignore:os.fork:RuntimeWarning", "ignore:.*multi-threaded:DeprecationWarning"
)


@pytest.fixture
def terminal(shared):
    def start(*options, program=("-m", "llama_jax")):
        command = [*program, "chat", str(shared / "models/stories260K-meta"), *options]
        child = pexpect.spawn(
            sys.executable, command, encoding="utf-8", timeout=120, dimensions=(40, 200)
        )
        children.append(child)
        child.expect("Type a message, or /help.")
        child.expect("> ")
        return child

    children = []
    yield start
    for child in children:
        child.close(force=True)


READ = r"read (\d+) tokens, wrote (\d+)"


def say(child, line):
    """Sends a line; what was read and written, once the next prompt shows."""
    child.sendline(line)
    child.expect(READ)
    counts = int(child.match[1]), int(child.match[2])
    child.expect("> ")
    return counts


@forks
def test_three_turns_in_a_terminal(terminal, shared):
    tokenizer = llama_jax.load_tokenizer(shared / "models/stories260K-meta")
    count = lambda text: len(tokenizer.encode_dialog([{"role": "user", "content": text}]))  # noqa: E731
    child = terminal("-n", "16", "-t", "0")
    read, wrote = say(child, "Tell me a story.")
    assert (read, 0 < wrote <= 16) == (count("Tell me a story."), True)
    for question in ("And then?", "Why?"):
        # The question, and what the format makes of the answer: at most its two spaces and eos more
        # than the model wrote. What stands before the answer is not read again.
        most = count(question) + wrote + 3
        read, wrote = say(child, question)
        assert count(question) < read <= most
    child.sendline("/reset")
    child.expect("forgotten")
    child.expect("> ")
    assert say(child, "Why?")[0] == count("Why?")
    child.sendline("/system Be brief.")
    child.expect("under that system message")
    child.expect("> ")
    assert say(child, "Why?")[0] > count("Why?")
    child.sendline("/nonsense")
    child.expect("/nonsense is no command; /help lists them")
    child.expect("> ")
    child.sendline("/help")
    child.expect("leave, as Ctrl-D does")
    child.expect("> ")
    child.sendline("")
    child.expect("> ")
    child.sendline("/quit")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0


SLOWLY = """
import runpy, time
from llama_jax.generation.row_writer import RowWriter
take = RowWriter.take
RowWriter.take = lambda *given: (time.sleep(0.1), take(*given))[1]
runpy.run_module("llama_jax", run_name="__main__", alter_sys=True)
"""


@forks
def test_ctrl_c_stops_an_answer_and_not_the_program(terminal):
    # So slow a model that it is still answering when Ctrl-C comes, however busy the machine is.
    child = terminal("-n", "3000", "-t", "1.5", "--top-p", "1", program=("-c", SLOWLY))
    for question in ("Tell me a long story.", "Go on."):
        child.sendline(question)
        child.expect_exact("thinking")
        child.expect("[a-z]{2,} [a-z]{2,} [a-z]{2,}")  # the answer's words
        child.sendintr()
        child.expect_exact(" ...\r\n")
        child.expect(READ)
        assert 2 <= int(child.match[2]) < 3000
        child.expect("> ")
    child.sendintr()  # at the prompt
    child.expect("Ctrl-D or /quit leaves")
    child.expect("> ")
    child.sendeof()
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
