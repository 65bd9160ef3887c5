"""The first run says that it compiles, and that the next start is faster; no other run does."""

import threading
import time

import jax
import pytest

from llama_jax.cli import compiling, own_model
from llama_jax.kept_programs import MISSED, check_entries

COMPILED = compiling.COMPILED


def heard(*events, patience=0.05, wait=0.0):
    said = []
    notice = compiling.Notice(said.append, patience)
    for event in events:
        notice.hear(event)
    time.sleep(wait)
    return said


def test_a_long_compilation_is_said_once():
    assert heard(MISSED, wait=0.3) == [compiling.LINE]
    said = []
    notice = compiling.Notice(said.append, 0.05)
    for _ in range(2):
        notice.hear(MISSED)
        time.sleep(0.3)
    assert said == [compiling.LINE]


@pytest.mark.parametrize("line", [own_model.OWN, compiling.LINE])
def test_what_a_first_run_says_has_a_line_of_80_columns_to_itself(line):
    assert len(line) <= 80


def test_what_is_soon_there_is_not_said():
    assert heard(MISSED, COMPILED, MISSED, COMPILED, patience=0.2, wait=0.4) == []


@pytest.mark.parametrize("ends", [False, True])
def test_who_types_is_not_disturbed_and_hears_afterwards_if_it_goes_on(ends):
    said = []
    notice = compiling.Notice(said.append, 0.05)

    def compile():
        notice.hear(MISSED)
        time.sleep(0.3)
        if ends:
            notice.hear(COMPILED)

    with notice.held():
        other = threading.Thread(target=compile)
        other.start()
        other.join()
        assert said == []
    assert said == ([] if ends else [compiling.LINE])


@pytest.mark.parametrize(("begins", "said"), [("before", [compiling.LINE]), ("amid", [])])
@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_no_notice_comes_into_the_text_on_a_terminal(monkeypatch, terminal, begins, said):
    heard_of, amid = [], []
    notice = compiling.Notice(heard_of.append, 0.05)
    monkeypatch.setattr(compiling, "notice_compiling", lambda: notice)
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)

    def deltas():
        if begins == "before":
            notice.hear(MISSED)
        yield "one"
        if begins == "amid":
            notice.hear(MISSED)
        time.sleep(0.3)
        yield "two"

    for text in compiling.unbroken(deltas()):
        amid.append((text, list(heard_of)))
    if terminal:
        assert amid == [("one", said), ("two", said)]
        assert heard_of == said
    else:  # stderr has it as soon as it takes long
        assert amid == [("one", []), ("two", [compiling.LINE])]
    notice.hear(COMPILED)


def test_only_a_program_that_is_not_kept_is_missed(tmp_path, monkeypatch):
    from jax._src import compilation_cache

    monkeypatch.setattr(compilation_cache, "get_file_cache", compilation_cache.get_file_cache)
    kept = {
        "jax_compilation_cache_dir": str(tmp_path),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in kept}
    found = []
    jax.monitoring.register_event_listener(lambda event, **_: found.append(event))
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: found.append(event)
    )
    try:
        check_entries(str(tmp_path))
        for name, value in kept.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        for missed in (1, 0):
            found.clear()
            jax.jit(lambda x: x * 3 + 1)(jax.numpy.arange(7.0))
            assert found.count(COMPILED) > 0
            assert (found.count(MISSED) > 0) == missed
            if missed:
                assert found.index(MISSED) < found.index(COMPILED)
            jax.clear_caches()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
