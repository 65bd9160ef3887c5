"""Requests that come and go together: each gets what `generate` gives it alone."""

import asyncio
import random
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from any_settings import settings_of
from helpers import Letters, config_of

from llama_jax.completions import generate
from llama_jax.generation.constraint import constraint_for
from llama_jax.generation.few_rows import for_few_rows
from llama_jax.generation.results import NaNLogitsError
from llama_jax.generation.score import score
from llama_jax.generation.settings import SamplingSettings
from llama_jax.model.cache import KVCache
from llama_jax.model.int8_cache import Int8KVCache
from llama_jax.model.transformer import init_params
from llama_jax.serve import programs
from llama_jax.serve.engine import Engine
from llama_jax.serve.programs import sizes_of
from llama_jax.serve.stream import (
    EngineClosedError,
    QueueFullError,
    RequestFailedError,
    Stream,
    UnfollowableError,
)
from llama_jax.sharding.arrays import shard_params
from llama_jax.sharding.mesh import make_mesh

SMALL = config_of(dim=32, n_kv_heads=2, hidden_dim=64, vocab_size=256, max_seq_len=448)
PAGE_BYTES = 2 * 2 * 2 * 64 * 8 * 4  # keys and values, layers, key heads, positions, numbers
FEW = {"rows": 4, "cache_bytes": 7 * PAGE_BYTES}  # the longest text needs every page
FEW_INT8 = {"rows": 4, "cache_bytes": 7 * PAGE_BYTES * 12 // 32, "cache": Int8KVCache}

FIRST = ["jit(decode_rows)", "jit(read_chunk)"]
"""What an engine's first requests run."""


@pytest.fixture(scope="module")
def model():
    return init_params(jax.random.key(3), SMALL)


@pytest.fixture(scope="module")
def engine(model):
    with Engine(model, tokenizer=Letters(), **FEW) as engine:
        yield engine


def requests_of(draw, count):
    shared = [draw.randrange(3, 256) for _ in range(300)]
    for _ in range(count):
        length = draw.choice([1, 2, 63, 64, 65, 130, 447, 448, draw.randrange(1, 400)])
        own = [draw.randrange(3, 256) for _ in range(length)]
        begin = draw.choice([0, 0, 64, 128, 200])
        yield (shared[:begin] + own)[:448], settings_of(draw), draw.choice([1, 1, 1, 3])


def alike(found, wanted):
    """Whether completions are the same, log-probabilities but for rounding."""
    for one, other in zip(found, wanted, strict=True):
        assert (one.tokens, one.text) == (other.tokens, other.text)
        assert (one.finish_reason, one.stop_token) == (other.finish_reason, other.stop_token)
        assert (one.logprobs is None) == (other.logprobs is None)
        pairs = zip(one.logprobs or [], other.logprobs or [], strict=True)
        for mine, theirs in pairs:
            assert mine.token == theirs.token
            assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert list(mine.top.values()) == pytest.approx(list(theirs.top.values()), abs=1e-4)
    return True


@pytest.mark.bits
def test_two_hundred_requests_get_what_generate_gives_them(model, engine):
    draw = random.Random(0)
    asked = list(requests_of(draw, 200))
    left = set(draw.sample(range(200), 20))  # requests whose clients leave
    found, before = {}, engine.stats()

    def client(mine):
        for i in mine:
            prompt, settings, n = asked[i]
            stream = engine.submit(prompt, settings, n=n)
            if i in left:
                stream.cancel()
                list(stream)
            else:
                found[i] = stream.completions()

    order = draw.sample(range(200), 200)
    clients = [threading.Thread(target=client, args=(order[k::16],)) for k in range(16)]
    for one in clients:
        one.start()
    for one in clients:
        one.join()

    rows = [(i, j) for i in sorted(found) for j in range(asked[i][2])]
    each = [asked[i][1].replace(seed=(asked[i][1].seed + j) % 2**32) for i, j in rows]
    wanted = generate(model, [asked[i][0] for i, _ in rows], each, tokenizer=Letters())
    for (i, j), one in zip(rows, wanted, strict=True):
        alike([found[i][j]], [one])
    now = engine.stats()
    assert now.preemptions > before.preemptions
    assert now.cached_tokens > before.cached_tokens
    assert (now.running, now.waiting, now.used_pages) == (0, 0, 0)


def in_company(engine, regexes, **settings):
    """Completions under constraints, beside requests that take the pages away."""
    letters = Letters()
    others = [
        engine.submit([k] * 40, max_new_tokens=n, temperature=0, stop_ids=())
        for k, n in ((3, 300), (4, 30), (5, 250))
    ]
    streams = [
        engine.submit("ab", constraint=constraint_for(letters, 256, regex=regex), **settings)
        for regex in regexes
    ]
    found = [stream.completions()[0] for stream in streams]
    for other in others:
        list(other)
    return found


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.bits
def test_a_constraint_holds_in_company_and_after_a_preemption(model, exact):
    pytest.importorskip("llguidance")
    letters, settings = Letters(), {"temperature": 1.3, "seed": 5, "max_new_tokens": 90}
    regexes = ["[a-f]{70}", "(cat|dog)", "[0-9]+"]
    wanted = [
        c for x in regexes for c in generate(model, ["ab"], tokenizer=letters, regex=x, **settings)
    ]
    with Engine(model, tokenizer=letters, **FEW, exact=exact) as engine:
        alike(in_company(engine, regexes, **settings), wanted)
        assert engine.stats().preemptions > 0
        # All that may follow is the end, and that is forbidden: the text is over, no row but it.
        (short,) = in_company(engine, ["cat"], **settings, min_new_tokens=40)
        assert (short.text, short.finish_reason) == ("cat", "stop")
        (none,) = in_company(engine, [""], **settings)
        assert (none.text, none.finish_reason) == ("", "stop")
        assert engine.failure is None
        assert engine.stats().used_pages == 0


def test_a_constraint_that_cannot_go_on_ends_its_request_alone(model):
    class Stuck:
        def copy(self):
            return self

        def mask(self):
            return np.full(8, 2**32 - 1, np.uint32)

        def take(self, token):
            raise ValueError("nothing spells what comes next")

    with Engine(model, **FEW) as engine:
        other = engine.submit([3] * 40, max_new_tokens=60, stop_ids=())
        with pytest.raises(RequestFailedError, match="nothing spells what comes next"):
            engine.submit([3], constraint=Stuck()).completions()
        assert len(other.completions()[0].tokens) == 60
        assert engine.stats().used_pages == 0


AMBIGUOUS = 'start: e\ne: e e e | e e | "a" | '


@pytest.mark.parametrize(
    ("grammar", "seconds", "a_token"), [(AMBIGUOUS, 0.1, 0.0), ("start: /[ab]{200}/", 2.0, 0.01)]
)
def test_a_constraint_has_so_much_of_the_engines_time(
    model, monkeypatch, grammar, seconds, a_token
):
    pytest.importorskip("llguidance")
    monkeypatch.setattr("llama_jax.serve.stream.GRAMMAR_REQUEST_SECONDS", seconds)
    monkeypatch.setattr("llama_jax.serve.stream.GRAMMAR_TOKEN_SECONDS", a_token)
    letters, new = Letters(), 200
    constraint = constraint_for(letters, 256, grammar=grammar, stop_ids=())
    with Engine(model, tokenizer=letters, **FEW) as engine:
        other = engine.submit([3] * 40, max_new_tokens=new, stop_ids=())
        asked = {"n": 2, "max_new_tokens": new, "stop_ids": (), "constraint": constraint}
        bound = engine.submit([3], **asked)
        if grammar == AMBIGUOUS:
            with pytest.raises(UnfollowableError, match="too much time to follow"):
                bound.completions()
        else:
            assert [len(one.tokens) for one in bound.completions()] == [new, new]
        assert len(other.completions()[0].tokens) == new
        assert engine.stats().used_pages == 0


@pytest.mark.parametrize(("rows", "tokens"), [(1, 30), (3, 10)])
def test_completions_of_one_request_share_its_time(rows, tokens):
    bound = Stream([3], rows, lambda _: None)
    for _ in range(rows * tokens):
        bound.spend(0.07, 1)
    with pytest.raises(ValueError, match="make it simpler"):
        bound.spend(0.3, 1)


def logprobs_of(stream):
    done, *_ = stream.completions()
    return done.tokens, [(x.logprob, x.top) for x in done.logprobs]


@pytest.mark.parametrize("few", [FEW, pytest.param(FEW_INT8, marks=pytest.mark.slow)])
@pytest.mark.bits
def test_an_exact_engine_gives_the_same_bits_alone_and_in_company(model, few):
    draw = random.Random(1)
    shared = [draw.randrange(3, 256) for _ in range(130)]
    mine = {"temperature": 1.0, "max_new_tokens": 60, "logprobs": 5, "seed": 4, "stop_ids": ()}
    with Engine(model, **few, exact=True) as engine:
        assert engine.stats().pages == 7
        alone = logprobs_of(engine.submit(shared + [9] * 20, **mine))
        next_one = engine.submit(shared + [9] * 20, **mine)
        assert logprobs_of(next_one) == alone
        assert next_one.cached_tokens == 128
        others = [
            engine.submit([k] * 40, max_new_tokens=n, temperature=0, stop_ids=())
            for k, n in ((3, 300), (4, 30), (5, 250))
        ]
        again = engine.submit(shared + [9] * 20, **mine)
        more = [engine.submit(shared, max_new_tokens=20, temperature=0) for _ in range(3)]
        several = engine.submit(shared + [9] * 20, **mine, n=3)
        next(iter(more[0]))
        more[0].cancel()
        assert logprobs_of(again) == alone
        assert logprobs_of(several) == alone
        for other in [*others, *more]:
            list(other)
        assert engine.stats().preemptions > 0


@pytest.mark.parametrize("few", [FEW, FEW_INT8])
def test_what_is_no_number_ends_its_own_row_and_spoils_no_page(model, few):
    table = model.weights["tok_embeddings"]["weight"].at[77].set(np.nan)
    broken = model.replace(weights=model.weights | {"tok_embeddings": {"weight": table}})
    kept = {"max_new_tokens": 30, "temperature": 0, "forbidden_ids": [77]}
    prompts = [[5] * 70, [6] * 20]
    cache = few.get("cache", KVCache)
    wanted = [c for p in prompts for c in generate(model, [p], **kept, cache=cache)]
    with Engine(broken, **few) as engine:
        for at in (0, 66, 139):  # in a chunk before the last one, and in the last
            bad = [4] * 140
            bad[at] = 77
            streams = [engine.submit(p, **kept) for p in (*prompts, bad)]
            assert [s.completions()[0] for s in streams[:2]] == wanted
            with pytest.raises(NaNLogitsError):
                streams[2].completions()
        fed = engine.submit([5] * 70, max_new_tokens=30, temperature=0, logit_bias={77: 1e9})
        with pytest.raises(NaNLogitsError) as failed:
            fed.completions()
        assert failed.value.results[0].tokens == [77]
        assert [engine.submit(p, **kept).completions()[0] for p in prompts] == wanted
        assert engine.stats().nan_rows == 4
        assert engine.stats().used_pages == 0


def test_a_request_that_is_cancelled_ends_and_its_pages_come_back(engine):
    long = {"max_new_tokens": 300, "temperature": 0, "stop_ids": ()}
    running = engine.submit([3] * 100, **long)
    items = iter(running)
    first = next(items)
    running.cancel()
    running.cancel()
    rest = list(items)
    assert len(first.tokens) + sum(len(x.tokens) for x in rest) < 300
    streams = [engine.submit([3] * 100, **long) for _ in range(6)]  # more than there are seats
    for stream in streams:
        stream.cancel()
    found = [one for stream in streams for one in stream.completions()]
    assert all(len(one.tokens) < 300 and one.finish_reason == "cancelled" for one in found)
    assert engine.submit([3], max_new_tokens=1).completions()[0].tokens
    assert engine.stats().used_pages == 0


def test_a_stream_is_read_in_an_event_loop(engine):
    async def both():
        streams = [engine.submit("ab", n=2, temperature=0, max_new_tokens=9) for _ in range(2)]

        async def texts(stream):
            found = ["", ""]
            async for delta in stream:
                found[delta.row] += delta.text
            return found

        return await asyncio.gather(*map(texts, streams))

    one, other = asyncio.run(both())
    assert one == other
    assert one[0] == engine.submit("ab", temperature=0, max_new_tokens=9).completions()[0].text


@pytest.mark.parametrize("length", [1, 64, 200])
@pytest.mark.bits
def test_prompt_log_probabilities_are_those_of_score(model, engine, length):
    prompt = [1, *range(3, length + 2)]
    (scored,) = score(model, [prompt])
    for kept in ({"max_new_tokens": 0}, {"max_new_tokens": 2, "n": 2}):
        stream = engine.submit(prompt, prompt_logprobs=1, **kept)
        found = stream.completions()
        assert stream.cached_tokens == 0
        for one in found:
            assert one.prompt_logprobs[0] is None
            assert [x.token for x in one.prompt_logprobs[1:]] == prompt[1:]
            logprobs = [x.logprob for x in one.prompt_logprobs[1:]]
            assert logprobs == pytest.approx(scored.logprobs, abs=1e-4)
            for x in one.prompt_logprobs[1:]:
                if x.token in x.top:  # a client asks whether it is the likeliest: one number
                    assert x.logprob == x.top[x.token]


def test_too_many_waiting_requests_are_refused(model):
    with Engine(model, **FEW, max_queued=2) as engine:
        long = {"max_new_tokens": 200, "stop_ids": ()}
        running = [engine.submit([3], **long) for _ in range(2)]
        for stream in running:
            next(iter(stream))
        waiting = [engine.submit([3], **long) for _ in range(2)]
        with pytest.raises(QueueFullError, match="2 requests with 2 tokens wait already") as full:
            engine.submit([3])
        assert full.value.retry_after > 0
        for stream in (*running, *waiting):
            stream.cancel()
        with pytest.raises(ValueError, match="500 tokens and the context ends at"):
            engine.submit([3] * 500)


def test_a_closing_engine_ends_what_it_has(model):
    engine = Engine(model, **FEW)
    streams = [engine.submit([3] * k, max_new_tokens=20, stop_ids=()) for k in (1, 70, 100)]
    engine.close()
    assert [len(s.completions()[0].tokens) for s in streams] == [20] * 3
    with pytest.raises(EngineClosedError):
        engine.submit([3])


def test_a_closing_engine_waits_only_so_long(model):
    engine = Engine(model, **FEW)
    streams = [engine.submit([3], max_new_tokens=400, stop_ids=()) for _ in range(40)]
    next(iter(streams[0]))
    engine.close(0.01)
    with pytest.raises(EngineClosedError):
        streams[-1].completions()


def test_a_step_that_fails_fails_its_rows_alone(model, monkeypatch):
    with Engine(model, **FEW) as engine:
        wanted = engine.submit([3], temperature=0, max_new_tokens=5).completions()
        decode, calls = engine.device.decode, []

        def fails_once(*arguments):
            calls.append(arguments)
            if len(calls) == 3:
                raise MemoryError("no room")
            return decode(*arguments)

        monkeypatch.setattr(engine.device, "decode", fails_once)
        with pytest.raises(RequestFailedError, match="a step of the engine failed: no room"):
            engine.submit([3], temperature=0, max_new_tokens=5).completions()
        assert engine.submit([3], temperature=0, max_new_tokens=5).completions() == wanted
        assert engine.stats().used_pages == 0

        def fails(*arguments):
            raise MemoryError("never any room")

        monkeypatch.setattr(engine.device, "decode", fails)
        streams = [engine.submit([3] * k, max_new_tokens=5) for k in (1, 2, 3)]
        for stream in streams:
            with pytest.raises(RequestFailedError):
                stream.completions()
        with pytest.raises((RequestFailedError, EngineClosedError)):  # if the three had one turn
            engine.submit([3], max_new_tokens=5).completions()
        deadline = time.monotonic() + 30
        while engine.failure is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert "never any room" in str(engine.failure)
        with pytest.raises(EngineClosedError, match="never any room"):
            engine.submit([3])


@pytest.mark.bits
def test_a_mesh_of_tensor_gives_the_same_tokens(model):
    sharded = shard_params(model, make_mesh(tensor=2))
    kept = {"temperature": 0, "max_new_tokens": 12}
    prompts = [[5] * 70, [6, 7, 8]]
    with Engine(sharded, **FEW) as engine:
        streams = [engine.submit(p, **kept) for p in prompts]
        alike([s.completions()[0] for s in streams], generate(model, prompts, **kept))
    with pytest.raises(ValueError, match="a mesh of tensor alone"):
        Engine(shard_params(model, make_mesh(data=2)))


def test_a_start_compiles_at_most_ten_programs(engine):
    deadline = time.monotonic() + 60
    while engine.compiling and time.monotonic() < deadline:
        time.sleep(0.01)
    made = engine.programs
    assert sorted(made.reads) == [(False, False), (False, True), (True, False), (True, True)]
    assert sorted(made.decodes) == [1, 2, 4]
    assert sizes_of(16) == [1, 2, 4, 8, 16]
    assert sizes_of(128) == [1, 8, 16, 32, 64, 128]
    for seats in range(1, 300):
        sizes = sizes_of(seats)
        assert (sizes[0], sizes[-1], len(sizes) <= 6) == (1, seats, True)


@pytest.fixture
def compiled(no_kept_programs):
    """The engine's programs that XLA compiles from here on."""
    from jax._src import monitoring

    for program in (programs.read_chunk, programs.decode_rows):
        program.clear_cache()
    names = []

    def listen(event, _, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration" and fun_name in FIRST:
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)


def test_what_is_compiled_while_weights_are_read_is_what_an_engine_runs(model, compiled):
    shapes = model.replace(weights=jax.eval_shape(lambda: model.weights))
    for _ in programs.prepare(for_few_rows(shapes), **FEW):
        pass
    assert sorted(compiled) == FIRST
    mine = for_few_rows(jax.tree.map(jnp.array, model))
    programs.Programs.of(mine, cache=KVCache, exact=False, **FEW).compile_first()
    assert sorted(compiled) == FIRST


def test_an_engine_waits_for_what_is_being_compiled_for_it(model, compiled):
    shapes = model.replace(weights=jax.eval_shape(lambda: model.weights))
    ahead = threading.Thread(target=lambda: list(programs.prepare(shapes, **FEW)))
    ahead.start()
    programs.Programs.of(model, cache=KVCache, exact=False, **FEW).compile_first()
    ahead.join()
    assert sorted(compiled) == FIRST


def test_a_turn_reads_some_chunks_and_then_takes_all_on(engine, monkeypatch):
    done, device = [], engine.device
    for name in ("read", "decode"):
        run = getattr(device, name)
        monkeypatch.setattr(
            device, name, lambda *a, run=run, name=name, **k: done.append(name) or run(*a, **k)
        )
    monkeypatch.setattr(device, "chunks", 3)
    alone = engine.submit(range(3, 103), SamplingSettings(max_new_tokens=300, temperature=0))
    next(iter(alone))
    done.clear()
    long = engine.submit(range(3, 250), SamplingSettings(max_new_tokens=1), cache_salt="new")
    long.completions()
    alone.cancel()
    assert "".join(name[0] for name in done).strip("d") == "rrrdr"  # 247 tokens are four chunks
