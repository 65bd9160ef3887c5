"""What asks a run to stop."""

import signal
import threading

import pytest

from llama_jax.train.stops import stop_signals


def test_what_a_signal_says_waits_until_what_is_being_said_is_whole():
    """A handler that wrote at once failed inside a line: "reentrant call inside <_io..."."""
    line, said = threading.Lock(), []

    def heard():
        assert line.acquire(timeout=60)
        said.append(threading.current_thread())
        line.release()

    with stop_signals(heard) as stops:
        assert not stops()
        with line:
            signal.raise_signal(signal.SIGTERM)
            assert stops()
            assert not said
        signal.raise_signal(signal.SIGTERM)  # it is said once
    assert len(said) == 1
    assert said != [threading.main_thread()]


def test_a_second_ctrl_c_ends_the_process():
    with stop_signals(lambda: None) as stops:
        signal.raise_signal(signal.SIGINT)
        assert stops()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_the_handlers_of_before_come_back_and_no_thread_stays():
    before, threads = signal.getsignal(signal.SIGTERM), threading.active_count()
    with stop_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
    assert threading.active_count() == threads
