"""States that cannot be written: the error is all that is said."""

import gc
import sys
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from helpers import files_no_larger_than

from llama_jax.train.saves import Saves, hush_log
from llama_jax.train.state import TrainState


def state(step):
    count, norm = jnp.int32(step), jnp.float32(step)
    weights = {"a": jnp.full((3, 5), norm), "b": jnp.full(7, norm)}
    return TrainState(count, weights, weights, None, norm, count, count)


def save_twice(saves):
    """Saves a state, and another, which waits for it."""
    saves.save(state(2))
    saves.save(state(3))


def test_a_state_whose_files_cannot_grow_is_one_error_and_nothing_is_printed_beside_it(
    tmp_path, monkeypatch, capfd, caplog
):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda said: printed.append(said.exc_value))
    hush_log()
    saves = Saves(tmp_path / "states", keep=2)
    saves.save(state(1))
    saves.wait()
    for size in (250, 400, 600):  # which of the files fails first, and how many more
        named = pytest.raises(OSError, match=r"^a state cannot be written to [^\n]{1,450}$")
        with files_no_larger_than(size), named:
            save_twice(saves)
    saves.close()
    gc.collect()  # what nobody waits for is told then
    assert printed == []
    assert [record.name for record in caplog.records if record.name != "absl"] == []
    assert capfd.readouterr().err == ""
    again = Saves(tmp_path / "states", keep=2)
    found = again.newest(state(0), pytest.fail)
    again.close()
    assert int(found.step) == 1


def test_only_what_a_failed_save_leaves_behind_is_not_printed(monkeypatch):
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda said: printed.append(said.exc_value))
    hush_log()
    other = ValueError("of somebody else")
    for error in (RuntimeError("Event loop is closed"), other):
        sys.unraisablehook(SimpleNamespace(exc_value=error))
    assert printed == [other]
