"""A conversation is one thread's at a time."""

import copy
import threading

import pytest

from llama_jax.generation.one_thread import OneThread


def in_thread(call):
    """What a call in another thread returned, or raised."""
    found = []

    def run():
        try:
            found.append(call())
        except BaseException as error:
            found.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def test_another_thread_is_refused_until_the_answer_ends():
    turns = OneThread()
    answer = turns.alone(iter_of("abc"))
    assert next(answer) == "a"
    refused = in_thread(lambda: list(turns.alone(iter_of("xyz"))))
    assert isinstance(refused, ValueError)
    assert "another thread's answer" in str(refused)
    assert list(answer) == ["b", "c"], "the first is not disturbed"
    assert in_thread(lambda: list(turns.alone(iter_of("xyz")))) == ["x", "y", "z"]


def test_an_answer_that_is_closed_or_fails_lets_others_in():
    turns, closed = OneThread(), []
    answer = turns.alone(iter_of("abc", closed))
    next(answer)
    answer.close()
    assert closed == [True]
    with pytest.raises(ZeroDivisionError):
        list(turns.alone(1 / 0 for _ in "a"))
    assert in_thread(lambda: list(turns.alone(iter_of("x")))) == ["x"]


def test_the_same_thread_may_begin_anew_and_an_answer_may_change_threads():
    turns = OneThread()
    first, second = (turns.alone(iter_of("abc")) for _ in range(2))
    assert (next(first), next(second), next(first)) == ("a", "a", "b")
    third = turns.alone(iter_of("abc"))
    assert next(third) == "a"
    assert in_thread(lambda: next(third)) == "b"
    copy.deepcopy(turns)


def test_a_step_inside_a_step_of_another_thread_is_refused():
    turns = OneThread()

    def within():
        yield in_thread(lambda: list(turns.alone(iter_of("x"))))

    (refused,) = turns.alone(within())
    assert "give each thread a Conversation of its own" in str(refused)


def iter_of(items, closed=None):
    try:
        yield from items
    finally:
        if closed is not None:
            closed.append(True)
