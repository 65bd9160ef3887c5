"""Stop strings, and text that comes piece by piece: nothing is shown that has to be taken back."""

import dataclasses
import math
import random
import signal
import time
import types
from types import MappingProxyType

import pytest
from helpers import Letters

import llama_jax
from llama_jax import SamplingSettings, generate, stream
from llama_jax.generation import driver, placement
from llama_jax.generation import text as text_module
from llama_jax.generation.limits import (
    ACCELERATOR,
    CPU,
    ROUND_TOKENS,
    STOP_STRING_TOKENS,
    tokens_per_round,
)
from llama_jax.generation.text import TextStream
from llama_jax.tokenizer import detokenize

TEXT = "Once upon a time, a tiny cat sat. A cat, a hat, aab aaab. \n\nEnd of it; 猫が🐈座った。 é!"
SENTENCES = [
    "一只聪明的狐狸在老橡树下找到了一把闪亮的钥匙。",
    "cats 🐈‍⬛ and flags 🇳🇱, families 👩‍👩‍👧‍👦, and 𝄞 clefs",
    "naïve café, Ωμέγα, кот, नमस्ते",
]


class Pieces:
    """A tokenizer whose tokens are any bytes at all: the ids are places in a list."""

    bos_id, eos_id, stop_ids, vocab_size, special = -1, -1, (), 0, MappingProxyType({})

    def __init__(self, pieces):
        self.pieces = pieces

    def token_bytes(self, id, *, at_start):
        return self.pieces[id], False


def cut(text, rng, longest):
    """The text's bytes in pieces of random lengths, which cut through characters as well."""
    left, pieces = text.encode(), []
    while left:
        size = rng.randint(1, longest)
        pieces.append(left[:size])
        left = left[size:]
    return Pieces(pieces)


def before_the_stop_that_is_whole_first(text, stops):
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)]
    return text


def spelled(tokenizer, ids, stops):
    """What is shown after each id, and at the end."""
    text, shown = TextStream(tokenizer, (), stops), [""]
    for id in ids:
        shown.append(shown[-1] + text.push(id))
    shown.append(shown[-1] + text.finish())
    return shown, text.stopped


@pytest.mark.parametrize("longest", [1, 2, 5, 40])
@pytest.mark.parametrize("length", [1, 2, 3, 6, 15])
def test_a_stop_string_ends_the_text_wherever_tokens_are_cut(longest, length):
    rng = random.Random(longest * 100 + length)
    for start in range(len(TEXT) - length + 1):
        stop = TEXT[start : start + length]
        tokenizer = cut(TEXT, rng, longest)
        shown, stopped = spelled(tokenizer, range(len(tokenizer.pieces)), [stop])
        wanted = TEXT[: TEXT.index(stop)]
        assert shown[-1] == wanted
        assert all(wanted.startswith(part) for part in shown), "a part of a stop string was shown"
        assert stopped


def test_of_several_stop_strings_the_one_that_is_whole_first_ends_the_text():
    rng = random.Random(0)
    for trial in range(400):
        text = "".join(rng.choice("ab") for _ in range(12))
        stops = ["".join(rng.choice("ab") for _ in range(rng.randint(2, 6))) for _ in range(3)]
        wanted = before_the_stop_that_is_whole_first(text, stops)
        for longest in (1, 3, 12):
            tokenizer = cut(text, rng, longest)
            shown, stopped = spelled(tokenizer, range(len(tokenizer.pieces)), stops)
            assert shown[-1] == wanted, (trial, text, stops, tokenizer.pieces)
            assert all(wanted.startswith(part) for part in shown)
            assert stopped == (wanted != text)


def test_text_that_only_might_have_become_a_stop_string_is_shown_in_the_end():
    tokenizer = Pieces([b"one ", b"EN", b"E", b"EN", b"D"])
    assert spelled(tokenizer, range(4), ["ENDE"])[0] == [
        "",
        "one ",
        "one ",
        "one EN",
        "one ENE",
        "one ENEEN",
    ]
    assert spelled(tokenizer, range(5), ["END"])[0][-1] == "one ENE"


def test_no_text_waits_where_no_stop_string_can_begin():
    tokenizer = Pieces([bytes([byte]) for byte in b"plain words"])
    shown, _ = spelled(tokenizer, range(11), ["\n\n", "END"])
    assert [len(part) for part in shown] == [*range(12), 11]


def test_an_unfinished_character_is_a_replacement_that_may_itself_be_a_stop():
    tokenizer = Pieces([b"a", "🐈".encode()[:2]])
    assert spelled(tokenizer, range(2), [])[0] == ["", "a", "a", "a�"]
    shown, stopped = spelled(tokenizer, range(2), ["�"])
    assert (shown[-1], stopped) == ("a", True)


@pytest.mark.parametrize("least", range(0, 14))
def test_a_stop_string_that_is_whole_too_early_is_text_like_any_other(least):
    """Of "ENDENDxEND", one token a character, "END" is whole after 3, 6 and 10 tokens."""
    tokenizer = Pieces([bytes([byte]) for byte in b"ENDENDxEND"])
    text = TextStream(tokenizer, (), ["END", "DE"], least)
    found, taken = text.push_all(range(10))
    ends = {3: "", 4: "EN", 6: "END", 10: "ENDENDx"}  # "DE" is whole after 4
    end = next((end for end in sorted(ends) if end >= least), None)
    if end is None:
        assert (found + text.finish(), taken, text.stopped) == ("ENDENDxEND", 10, False)
    else:
        assert (found, taken, text.stopped) == (ends[end], end, True)


def test_a_token_costs_no_more_beside_a_long_stop_string():
    """Counted in steps of the matcher, not in seconds: a few a character, whatever the length."""
    steps = 0

    class Counted(str):
        __slots__ = ()

        def __getitem__(self, place):
            nonlocal steps
            steps += 1
            return str.__getitem__(self, place)

    for stop, text in (("z" * 4000, "z" * 3999 + "a"), ("ab" * 2000, "ab" * 1999 + "aab" * 900)):
        matcher = text_module.StopMatcher(Counted(stop))
        text_module.shorter_ends(matcher.text)  # once a stop string, not once a text
        steps = 0
        assert not any(map(matcher.is_whole_after, text))
        assert steps <= 4 * len(text) + 4
    shown, stopped = spelled(Pieces([b"z"] * 5000), range(5000), ["z" * 4000])
    assert (set(shown), stopped) == ({""}, True)


# Characters of many bytes


@pytest.fixture(scope="module", params=["bytes", "llama2", "llama3", "stories260K"])
def tokenizer(request):
    if request.param == "bytes":
        return Letters()
    shared = request.getfixturevalue("shared")
    folder = (
        "models/stories260K-meta"
        if request.param == "stories260K"
        else f"tokenizers/{request.param}"
    )
    return llama_jax.load_tokenizer(shared / folder)


@pytest.mark.parametrize("stops", [(), ("。。", "🐈🐈"), ("\n",)], ids=str)
@pytest.mark.parametrize("text", SENTENCES)
def test_no_stream_shows_half_a_character(tokenizer, text, stops):
    ids = tokenizer.encode(text, bos=True, eos=False)
    shown, _ = spelled(tokenizer, ids[1:], stops)
    assert shown[-1] == text
    assert not any("\ufffd" in part for part in shown)
    assert len(set(shown)) > 5, "the text came in too few pieces to be streamed"


@pytest.mark.parametrize("text", SENTENCES)
def test_a_stop_string_of_such_characters_ends_the_text_before_it(tokenizer, text):
    ids = tokenizer.encode(text, bos=True, eos=False)[1:]
    for start in range(len(text)):
        stop = text[start : start + 2]
        shown, _ = spelled(tokenizer, ids, [stop])
        assert shown[-1] == text[: text.index(stop)]


# The whole way: a model, and the loop that pauses for the host


def plain_writer(params):
    forbidden = [id for id in range(256) if id not in b"abc "]
    settings = {"forbidden_ids": forbidden, "seed": 5, "temperature": 1.5, "max_new_tokens": 48}
    return params, Letters(), settings, "abc"


@pytest.fixture(
    scope="module", params=["stories260K", pytest.param("tiny", marks=pytest.mark.slow)]
)
def writer(request, params):
    """A model, its tokenizer, settings under which it writes plain characters, and a prompt."""
    if request.param == "tiny":
        return plain_writer(params)
    model = llama_jax.load(
        request.getfixturevalue("shared") / "models/stories260K-meta", dtype="float32"
    )
    greedy = {"temperature": 0.0, "max_new_tokens": 48}
    return model, llama_jax.load_tokenizer(model.tokenizer), greedy, "One day, a dog"


def test_a_model_stops_before_its_stop_string_at_every_alignment(writer):
    model, tokenizer, settings, prompt = writer
    base = SamplingSettings(**settings, logprobs=0)
    (free,) = generate(model, [prompt], base, tokenizer=tokenizer)
    text, after = free.text, tokenizer.encode(prompt, bos=True, eos=False)
    stops = [text[i : i + size] for size in (1, 3, 8) for i in range(0, len(text) - size, 5)]
    stops = (stops + stops)[:30]
    each = [base.replace(stop=[stop]) for stop in stops]
    each += [base, base.replace(stop=["never written"])]  # which write on beside the others
    *done, whole, also = generate(model, [prompt] * 32, each, tokenizer=tokenizer)
    for other in (whole, also):
        assert (other.text, other.tokens, other.finish_reason) == (text, free.tokens, "length")
    shown, tokens, reasons = ([[] for _ in each] for _ in range(3))
    for delta in stream(model, [prompt] * 32, each, tokenizer=tokenizer):
        shown[delta.row].append(delta.text)
        tokens[delta.row] += delta.tokens
        reasons[delta.row].append(delta.finish_reason)
    for i, (stop, completion) in enumerate(zip(stops, done, strict=True)):
        assert completion.text == text[: text.index(stop)]
        assert completion.finish_reason == "stop"
        new = completion.tokens
        assert new == free.tokens[: len(new)]
        assert len(completion.logprobs) == len(new)
        assert stop in detokenize(tokenizer, new, after), "its tokens spell the stop string"
        assert stop not in detokenize(tokenizer, new[:-1], after).rstrip("\ufffd")
        assert ("".join(shown[i]), tokens[i]) == (completion.text, new)
        assert reasons[i][-1] == "stop"
        assert set(reasons[i][:-1]) <= {None}


def test_few_tokens_are_decoded_beyond_a_stop_string_and_they_are_dropped(writer, monkeypatch):
    """The host looks every 16 tokens, and a row that has stopped is asked for no more."""
    model, tokenizer, settings, prompt = writer
    counts, take = {}, driver.RowWriter.take

    def watched(self, buffer, i):
        counts[self.row.index] = int(buffer.count[i])
        return take(self, buffer, i)

    monkeypatch.setattr(driver.RowWriter, "take", watched)
    (free,) = generate(model, [prompt], tokenizer=tokenizer, **settings)
    assert counts.pop(0) == 48
    each = SamplingSettings(**settings)
    for start, size in ((0, 1), (3, 2), (5, 9), (20, 4)):
        stopping = each.replace(stop=[free.text[start : start + size]])
        done, other = generate(model, [prompt] * 2, [stopping, each], tokenizer=tokenizer)
        assert len(done.tokens) <= counts[0] < len(done.tokens) + STOP_STRING_TOKENS
        assert counts[0] <= 48
        assert (other.tokens, counts[1]) == (free.tokens, 48)


def test_a_row_without_stop_strings_is_fetched_once_a_round(params, monkeypatch):
    fetches, take = [], driver.RowWriter.take
    monkeypatch.setattr(
        driver.RowWriter, "take", lambda self, *given: fetches.append(1) or take(self, *given)
    )
    long = params.replace(config=params.config.replace(max_seq_len=1024))
    asked = {"max_new_tokens": 200, "temperature": 0, "stop_ids": ()}
    generate(long, [[1, 2, 3]], tokenizer=Letters(), **asked)
    assert len(fetches) == 1
    generate(long, [[1, 2, 3]], tokenizer=Letters(), stop=["never written"], **asked)
    assert len(fetches) == 1 + -(-200 // STOP_STRING_TOKENS)


@pytest.mark.parametrize("how", [generate, stream])
def test_a_stop_that_only_text_can_show_ends_its_row_and_no_other(params, monkeypatch, how):
    """U+FFFD stands for bytes that are no character, so no token spells it."""
    monkeypatch.setattr("llama_jax.generation.limits.MIN_SLOTS", 32)
    monkeypatch.setattr("llama_jax.generation.limits.HEADROOM", 1)
    base = SamplingSettings(max_new_tokens=40, temperature=0, stop_ids=[])
    broken = base.replace(stop=["\ufffd"], logit_bias={0xE7: 1000.0})
    prompts = [[1] * 31, [1, 2, 3]]
    (alone,) = generate(params, prompts[1:], base, tokenizer=Letters())
    found = list(how(params, prompts, [broken, base], tokenizer=Letters()))
    if how is stream:
        texts = ["".join(delta.text for delta in found if delta.row == row) for row in range(2)]
        assert texts == ["", alone.text]
    else:
        assert (found[0].text, found[0].finish_reason) == ("", "stop")
        assert found[1] == alone
    (one,) = generate(params, prompts[:1], broken, tokenizer=Letters(), max_new_tokens=1)
    assert (one.text, one.finish_reason) == ("", "stop")


# Control tokens, whose names are no part of a text


class Named(Letters):
    special = MappingProxyType({"<s>": 1, "</s>": 2, "<|eot|>": 7, "<|eot_id|>": 8})


@pytest.mark.parametrize(("name", "id"), [("<|eot|>", 7), ("<|eot_id|>", 8), ("</s>", 2)])
def test_the_name_of_a_control_token_is_a_stop_id(params, name, id):
    to_it = {"logit_bias": {id: 1e6}, "temperature": 0, "max_new_tokens": 5}
    for stop_ids in (None, [], [100]):
        given = {"stop_ids": stop_ids, "stop": ["never", name], "tokenizer": Named()}
        (done,) = generate(params, [[1, 3]], **to_it, **given)
        assert (done.tokens, done.finish_reason, done.stop_token) == ([], "stop", id)
    (free,) = generate(params, [[1, 3]], stop_ids=[], tokenizer=Named(), **to_it)
    assert free.tokens == [id] * 5


@pytest.mark.parametrize("stop", ["a<|eot_id|>", "<|eot_id|>\n", "<|eot_id|><|eot_id|>"])
def test_a_stop_string_that_holds_such_a_name_is_refused_with_the_way_out(params, stop):
    message = r"holds '<\|eot_id\|>', which is a control token .* or its id, 8, as a stop id"
    for how in (generate, stream):
        with pytest.raises(ValueError, match=message):
            how(params, [[1, 3]], tokenizer=Named(), stop=[stop])


def test_the_characters_of_a_control_tokens_name_are_text(params):
    """A model may write them one by one, and a stop string finds them too."""
    text = TextStream(Named(), (), ["</s>"])
    assert text.push_all(b"a</s>b") == ("a", 5)


# What ended a text


def test_the_stop_id_that_ended_a_row_is_told_with_its_logprob(params):
    base = SamplingSettings(temperature=0, max_new_tokens=300, stop_ids=[])
    long = params.replace(config=params.config.replace(max_seq_len=512))
    for prompt in ([1, 2, 3], [9, 8]):
        (free,) = generate(long, [prompt], base, logprobs=3)
        seen = {token: i for i, token in reversed(list(enumerate(free.tokens)))}
        for token, first in [min(seen.items(), key=lambda x: x[1]), *sorted(seen.items())[:3]]:
            (done,) = generate(long, [prompt], base, stop_ids=[token], logprobs=2)
            assert (done.tokens, done.stop_token) == (free.tokens[:first], token)
            assert done.stop_logprob.token == token
            assert done.stop_logprob.logprob == pytest.approx(
                free.logprobs[first].logprob, abs=1e-5
            )
            assert len(done.stop_logprob.top) == 2
            *rest, last = list(stream(long, [prompt], base, stop_ids=[token], logprobs=2))
            assert (last.stop_token, last.stop_logprob) == (token, done.stop_logprob)
            assert {delta.stop_token for delta in rest} <= {None}
            (done,) = generate(long, [prompt], base, stop_ids=[token])
            assert (done.stop_token, done.stop_logprob) == (token, None)
        assert (free.stop_token, free.stop_logprob) == (None, None)


def test_a_stop_string_hides_a_stop_id_that_comes_after_it(params):
    to_it = {"logit_bias": {ord("b"): 1e6}, "temperature": 0, "tokenizer": Letters()}
    (done,) = generate(params, [[1, 3]], stop=["bb"], max_new_tokens=9, **to_it)
    assert (done.text, done.tokens, done.stop_token) == ("", [*b"bb"], None)


@pytest.mark.parametrize("least", [1, 5, 20])
def test_min_new_tokens_holds_back_stop_strings_as_it_does_stop_ids(params, least):
    to_it = {"logit_bias": {ord("b"): 1e6}, "temperature": 0, "max_new_tokens": 24}
    (done,) = generate(
        params, [[1, 3]], stop=["b"], min_new_tokens=least, tokenizer=Letters(), **to_it
    )
    assert (done.tokens, done.text) == ([*b"b"] * least, "b" * (least - 1))
    assert done.finish_reason == "stop"


# Ctrl-C


@pytest.mark.parametrize("nbytes", [10**6, 10**9, 16 * 10**9, 140 * 10**9])
def test_a_round_is_shorter_than_a_second_for_a_model_of_any_size(nbytes):
    for limits in (CPU, ACCELERATOR):
        tokens = tokens_per_round(limits, nbytes)
        assert limits.tokens_per_check <= tokens <= ROUND_TOKENS
        if tokens > limits.tokens_per_check:
            assert tokens * nbytes / limits.bytes_per_second <= 0.5


def test_the_host_looks_as_often_as_a_large_model_needs_and_the_tokens_are_the_same(
    params, monkeypatch
):
    asked = {"max_new_tokens": 50, "temperature": 1, "stop_ids": ()}
    whole = generate(params, [[1, 2, 3], [4]], **asked)
    looks, take = [], driver.RowWriter.take
    monkeypatch.setattr(
        driver.RowWriter, "take", lambda self, *given: looks.append(1) or take(self, *given)
    )
    slow = dataclasses.replace(CPU, bytes_per_second=14 * params.nbytes)
    monkeypatch.setattr(placement, "limits_on", lambda _: slow)
    assert generate(params, [[1, 2, 3], [4]], **asked) == whole
    assert len(looks) == 2 * math.ceil(50 / 7)


def test_ctrl_c_is_heard_while_the_device_works():
    class Never:
        def is_ready(self):
            return False

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            driver.wait_for(types.SimpleNamespace(count=Never()))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 2
