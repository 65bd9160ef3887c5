"""The speed that is printed leaves compiling out."""

import functools
import threading
import time

import pytest

from llama_jax.cli import speed
from llama_jax.generation.results import Delta

COMPILED = "/jax/core/compile/backend_compile_duration"
KEPT = "/jax/compilation_cache/cache_hits"


class Clock:
    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(speed.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(speed, "compile_times", speed.CompileTimes)
    return Clock(monkeypatch)


@pytest.mark.parametrize(
    ("spans", "seconds"),
    [
        ([], 0),
        ([(101, 102), (103, 105)], 3),
        ([(101, 104), (102, 103)], 3),  # one in the other
        ([(101, 103), (102, 104)], 3),  # two threads
        ([(0, 101), (109, 200)], 2),  # no more than was asked about
    ],
)
def test_no_second_of_compiling_counts_twice(clock, spans, seconds):
    times = speed.CompileTimes()
    for start, end in spans:
        clock.now = float(end)
        times.note("/jax/core/compile/x", duration_secs=float(end - start))
    times.note("/jax/other", duration_secs=5.0)
    assert times.between(100, 110) == seconds


def test_a_cache_that_doubles_costs_no_speed(clock):
    watched = speed.Speed()

    def deltas():
        for step in range(1, 12):
            clock.now += 0.5
            if step in (2, 8):  # the loop, and the loop for a longer cache
                clock.now += 3
                watched.times.note(COMPILED, duration_secs=3.0)
            yield Delta(0, "", [1], None, None)

    for _ in watched.watch(deltas()):
        pass
    assert watched.summary() == (
        "11 tokens; the first after 0.50 s, then 2.0 tokens/s; compiling took 6.00 s more"
    )


def test_the_first_token_has_a_time_while_another_thread_compiles(clock):
    watched = speed.Speed()

    def deltas():
        clock.now += 0.5
        note = functools.partial(watched.times.note, COMPILED, duration_secs=9.0)
        other = threading.Thread(target=note)
        other.start()
        other.join()
        yield Delta(0, "", [1], None, None)

    for _ in watched.watch(deltas()):
        pass
    assert watched.summary() == "1 token; the first after 0.50 s; compiling took 0.50 s more"


def test_jax_tells_when_it_compiles():
    import jax

    times, start = speed.CompileTimes(), time.perf_counter()
    jax.jit(lambda x: x * 3 + 1)(1.0)
    assert times.between(start, time.perf_counter()) > 0


def test_programs_that_were_kept_are_read_and_not_compiled(clock):
    watched = speed.Speed()

    def deltas():
        clock.now += 1
        watched.times.note_kept(KEPT)
        watched.times.note(COMPILED, duration_secs=0.5)
        yield Delta(0, "", [1], None, None)

    for _ in watched.watch(deltas()):
        pass
    said = "1 token; the first after 0.50 s; reading the kept programs took 0.50 s more"
    assert watched.summary() == said
