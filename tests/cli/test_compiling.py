"""The first run says that it compiles, and that the next start is faster; no other run does."""

import time

import jax
import pytest

from llama_jax.cli import compiling

LOWERED, COMPILED = compiling._LOWERED, compiling._COMPILED


@pytest.fixture
def kept(tmp_path):
    """Compiled programs are kept, in a folder of the test's."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    yield
    jax.config.update("jax_compilation_cache_dir", before)


def heard(*events, patience=0.05, wait=0.0):
    said = []
    notice = compiling.Notice(said.append, patience)
    for event in events:
        notice.hear(event, 0.1)
    time.sleep(wait)
    return said


def test_a_long_compilation_is_said_once(kept):
    assert heard(LOWERED, wait=0.3) == [compiling.LINE]
    said = []
    notice = compiling.Notice(said.append, 0.05)
    for _ in range(2):
        notice.hear(LOWERED, 0.1)
        time.sleep(0.3)
    assert said == [compiling.LINE]


def test_what_is_soon_there_is_not_said(kept):
    assert heard(LOWERED, COMPILED, LOWERED, COMPILED, patience=0.2, wait=0.4) == []


def test_nothing_is_promised_where_no_program_is_kept(kept):
    jax.config.update("jax_compilation_cache_dir", None)
    assert heard(LOWERED, wait=0.3) == []


def test_jax_tells_of_both_events():
    found = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: found.append(event)
    )
    jax.jit(lambda x: x * 3 + 1)(jax.numpy.arange(7.0))
    assert found.index(LOWERED) < found.index(COMPILED)
