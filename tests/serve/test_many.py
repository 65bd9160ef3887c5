"""More rows than a batch has: they run by an engine's turns, and each is what it is alone."""

import dataclasses
import itertools
import random

import jax
import numpy as np
import pytest
from any_settings import settings_of
from helpers import Letters, config_of

from llama_jax.completions import as_finished, generate, stream
from llama_jax.generation.asked import rows_asked
from llama_jax.generation.batch import Form
from llama_jax.generation.completed import completed
from llama_jax.generation.driver import wait_for
from llama_jax.generation.limits import ACCELERATOR, CPU
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import KVCache, ModelCache
from llama_jax.model.int8_cache import Int8KVCache
from llama_jax.model.paged import Paged
from llama_jax.model.transformer import init_params
from llama_jax.serve import many
from llama_jax.sharding.arrays import shard_params
from llama_jax.sharding.mesh import make_mesh

SMALL = config_of(dim=32, n_kv_heads=2, hidden_dim=64, vocab_size=256, max_seq_len=192)


@pytest.fixture(scope="module")
def model():
    return init_params(jax.random.key(3), SMALL)


def asked_of(params, prompts, settings, cache=KVCache):
    form = Form(None, None, None)
    return rows_asked(params, prompts, settings, {}, tokenizer=Letters(), cache=cache, form=form)


def mix(count, seed):
    """Prompts of 1 token to the whole context, some with one beginning; settings of every kind."""
    draw = random.Random(seed)
    shared = [draw.randrange(3, 256) for _ in range(80)]
    for i in range(count):
        own = [
            draw.randrange(3, 256) for _ in range(draw.choice([1, 2, 63, 64, 65, 100, 191, 192]))
        ]
        prompt = (shared[: draw.choice([0, 0, 64, 80])] + own)[:192]
        settings = settings_of(draw)
        yield prompt, settings.replace(prompt_logprobs=2 if i % 7 == 0 else None)


def alike(found, wanted):
    """The same completions, log-probabilities but for rounding."""
    for one, other in zip(found, wanted, strict=True):
        for field in ("text", "tokens", "finish_reason", "stop_token"):
            assert getattr(one, field) == getattr(other, field)
        assert one.prompt_logprobs == other.prompt_logprobs, "to the bit: `score` gives both"
        assert (one.logprobs is None) == (other.logprobs is None)
        for a, b in zip(one.logprobs or [], other.logprobs or [], strict=True):
            assert a.token == b.token
            np.testing.assert_allclose(a.logprob, b.logprob, atol=3e-5)
            assert list(a.top) == list(b.top)
        assert (one.stop_logprob is None) == (other.stop_logprob is None)


def chosen(model, prompts, settings):
    """What turns are chosen for."""
    assert many.suits(model, asked_of(model, prompts, settings))
    return {"prompts": prompts, "settings": settings, "tokenizer": Letters()}


def by_index(pairs):
    return [one for _, one in sorted(pairs, key=lambda pair: pair[0].index)]


@pytest.mark.parametrize("cache", [KVCache, Int8KVCache])
def test_a_mix_of_all_settings_is_what_batches_give(model, cache):
    prompts, settings = zip(*mix(40, 5), strict=True)
    asked = asked_of(model, prompts, settings, cache=cache)
    assert many.suits(model, asked)
    turns = by_index(completed(model, asked, many.by_turns(model, asked)))
    batches = by_index(completed(model, asked))
    assert {one.finish_reason for one in turns} == {"stop", "length"}
    alike(turns, batches)


def bits(completion):
    entries = [*completion.logprobs, completion.stop_logprob]
    return completion.tokens, [entry and (entry.logprob, entry.top) for entry in entries]


def test_a_row_is_the_same_to_the_bit_whatever_the_other_rows_are(model):
    pairs = [(p, s.replace(logprobs=3, prompt_logprobs=None)) for p, s in mix(80, 9)]
    others = [pair for pair in pairs[40:] if len(pair[0]) < 150]
    few = generate(model, *zip(*pairs[:40], strict=True), tokenizer=Letters())
    many_more = pairs[::-1] + others
    found = generate(model, *zip(*many_more, strict=True), tokenizer=Letters())[:80][::-1]
    assert [bits(one) for one in found[:40]] == [bits(one) for one in few]


def test_a_stream_of_many_rows_joins_to_what_generate_gives(model):
    prompts, settings = zip(*mix(40, 2), strict=True)
    settings = [one.replace(prompt_logprobs=None) for one in settings]
    whole = generate(model, prompts, settings, tokenizer=Letters(), n=2)
    parts = [[] for _ in whole]
    for delta in stream(model, prompts, settings, tokenizer=Letters(), n=2):
        parts[delta.row].append(delta)
    for one, deltas in zip(whole, parts, strict=True):
        assert "".join(d.text for d in deltas) == one.text
        assert [t for d in deltas for t in d.tokens] == one.tokens
        assert [x for d in deltas for x in d.logprobs or []] == (one.logprobs or [])
        assert (deltas[-1].finish_reason, deltas[-1].stop_token) == (
            one.finish_reason,
            one.stop_token,
        )
    finished = dict(as_finished(model, prompts, settings, tokenizer=Letters(), n=2))
    assert [finished[i] for i in range(len(whole))] == whole


def test_turns_are_for_many_rows_of_unlike_lengths_where_they_were_measured(model):
    prompts = [[3] * (140 if i % 4 == 0 else 20) for i in range(CPU.most_in_batches + 1)]
    asked = asked_of(model, prompts, SamplingSettings(max_new_tokens=9))
    assert many.suits(model, asked)
    rows, place = asked.rows, asked.place
    bounded = [*rows[1:], dataclasses.replace(rows[0], constraint=object())]
    sharded = shard_params(model, make_mesh(tensor=2))
    for changed in (
        asked._replace(rows=rows[1:]),
        asked._replace(rows=bounded),
        asked._replace(place=dataclasses.replace(place, limits=ACCELERATOR)),
        asked._replace(place=dataclasses.replace(place, cache=ModelCache)),
        asked_of(sharded, prompts, SamplingSettings(max_new_tokens=9)),
        asked_of(model, [[3] * 140] * 40, SamplingSettings(max_new_tokens=9)),
    ):
        assert not many.suits(model, changed)


def test_places_are_what_either_way_computes(model):
    settings = [SamplingSettings(max_new_tokens=new) for new in [30, *[4] * 33]]
    asked = asked_of(model, [[3] * 100, *[[3] * 20] * 33], settings)
    # A batch of 32 rows padded to 128 tokens, of which one wants 30; then one of 2 rows.
    assert many.places_in_batches(model.config, asked) == 32 * (128 + 30) + 2 * (32 + 4)
    assert many.places_in_turns(asked) == 128 + 30 + 33 * (64 + 4)


def test_the_longest_rows_of_all_seats_must_fit_where_a_batch_would(model, monkeypatch):
    page = Paged.pool_bytes(model.config, pages=1, dtype=np.float32)
    lengths = [70] * 15 + [130] + [1] * 17  # with 10 new tokens 15 rows of two pages and one of 3
    asked = asked_of(model, [[3] * n for n in lengths], SamplingSettings(max_new_tokens=10))
    for pages, fits in ((32, False), (33, True)):
        monkeypatch.setattr(many, "MAX_CACHE_BYTES", pages * page)
        assert many.suits(model, asked) == fits
    found = by_index(completed(model, asked, many.by_turns(model, asked)))
    alike(found, by_index(completed(model, asked)))


@pytest.mark.parametrize("length", [64, 65])
def test_what_is_compiled_ahead_is_what_turns_run(model, compiled, length):
    asked = asked_of(model, [[3] * length] * 40, SamplingSettings(max_new_tokens=3))
    assert len(list(many.prepare(jax.eval_shape(lambda: model), asked))) == 2
    compiled.clear()
    assert len(list(completed(model, asked, many.by_turns(model, asked)))) == 40
    assert not compiled


def test_an_interrupt_ends_the_call_and_the_next_one_is_whole(model, monkeypatch):
    prompts, settings = zip(*mix(40, 2), strict=True)
    whole = generate(model, prompts, settings, tokenizer=Letters())
    calls = itertools.count()

    def interrupted(buffer):
        if next(calls) == 5:
            raise KeyboardInterrupt
        wait_for(buffer)

    monkeypatch.setattr(many, "wait_for", interrupted)
    monkeypatch.setattr(many, "ROUND_TOKENS", 10**9)  # as if the model were a large one
    with pytest.raises(KeyboardInterrupt):
        generate(model, prompts, settings, tokenizer=Letters())
    assert generate(model, prompts, settings, tokenizer=Letters()) == whole
