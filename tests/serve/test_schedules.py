"""Lines get what they would get alone, whatever the scheduler shares, takes away and gives back."""

from hypothesis import given, settings
from hypothesis import strategies as st
from paged_model import Engine

from llama_jax.serve.scheduler import Line

ENGINES = st.fixed_dictionaries(
    {
        "pages": st.integers(4, 14),
        "seats": st.integers(2, 6),
        "chunk": st.sampled_from([2, 4, 8]),
        "tokens": st.integers(1, 3),
        "depth": st.integers(0, 2),
        "exact": st.booleans(),
    }
)
PROMPTS = st.builds(  # they often begin alike
    lambda family, length, end: [(family * position) % 5 + 1 for position in range(length)] + end,
    st.integers(0, 1),
    st.integers(0, 13),
    st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
RARELY = st.sampled_from([False] * 5 + [True])


def rarely(strategy):
    return RARELY.flatmap(lambda now: strategy if now else st.none())


REQUESTS = st.fixed_dictionaries(
    {
        "prompt": PROMPTS,
        "max_new_tokens": st.integers(0, 30),
        "n": st.sampled_from([1, 1, 1, 2, 3]),
        "salt": st.sampled_from([b"", b"", b"", b"salt"]),
        "whole": RARELY,
        "waits": RARELY,
        "poison": rarely(st.integers(0, 20)),
        "host_stop": rarely(st.integers(1, 8)),
    }
)
CANCEL, FOLLOW, RESET, TURN, TURNS = "cancel", "follow", "reset", "turn", "turns"
EVENTS = st.lists(
    st.one_of(
        REQUESTS,
        REQUESTS,
        REQUESTS,
        st.tuples(st.sampled_from([CANCEL, FOLLOW]), st.integers(0, 30)),
        st.sampled_from([TURN, TURN, TURNS, TURNS, RESET]),
    ),
    min_size=6,
    max_size=40,
)


def submit(engine, *, n, poison, host_stop, **fields):
    """A request of n lines, but for one that can never fit."""
    lines = [Line(index=index, **fields) for index in range(n)]
    try:
        for line in lines:
            engine.add(line, poison=poison, host_stop=host_stop)
    except ValueError:
        assert -(-lines[0].limit // engine.pages.size) > engine.pages.count


def follow(engine, asked):
    """A request whose prompt is another's and what it got so far, as a dialog's next turn is."""
    prompt = [*asked.line.prompt, *asked.got, 1, 2]
    submit(engine, prompt=prompt, max_new_tokens=5, n=1, poison=None, host_stop=None)


def play(engine, events):
    for event in events:
        if isinstance(event, dict):
            submit(engine, **event)
        elif event[0] in (CANCEL, FOLLOW):
            if event[1] < len(engine.asked):
                asked = list(engine.asked.values())[event[1]]
                engine.cancel(asked) if event[0] == CANCEL else follow(engine, asked)
        elif event == RESET:
            engine.reset()
        else:
            for _ in range(1 if event == TURN else 8):
                engine.turn()
    engine.run()


@settings(max_examples=300, deadline=None)
@given(ENGINES, EVENTS)
def test_each_line_gets_its_own_completion_and_all_pages_come_back(settings, events):
    engine = Engine(**settings)
    play(engine, events)
    for asked in engine.asked.values():
        assert asked.end is not None
        if asked.poison is None:
            assert asked.end != "error", "another line's NaN came here"
        if asked.end in ("error", "cancelled"):
            assert asked.got == asked.expected[: len(asked.got)]
        else:
            assert asked.got == asked.expected
    assert engine.pages.free == engine.pages.count
    assert not engine.scheduler.running
    assert not engine.scheduler.queue
    assert not engine.scheduler.leaving
    born = list(engine.asked)
    assert engine.order == sorted(engine.order, key=born.index), "not first come, first served"
