"""TensorBoard's files: what a run hands to TensorBoard, of which a stand-in takes the place."""

import sys
from types import SimpleNamespace

import pytest

from llama_jax.train.event_files import event_files


class Message(SimpleNamespace):
    """A message of a protocol buffer: named fields."""


@pytest.fixture
def written(monkeypatch):
    """What a stand-in for TensorBoard is given, in order."""
    found = []

    class Writer:
        def __init__(self, folder):
            found.append(folder)

        def add_event(self, event):
            found.append(event)

        def close(self):
            found.append("closed")

    class Summary(Message):
        Value = Message

    session = type("SessionLog", (Message,), {"START": 1})
    modules = {
        "compat.proto.event_pb2": Message(Event=Message, SessionLog=session),
        "compat.proto.summary_pb2": Message(Summary=Summary),
        "summary.writer.event_file_writer": Message(EventFileWriter=Writer),
    }
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"tensorboard.{name}", module)
    return found


def test_a_run_that_goes_on_says_from_which_step_and_then_its_numbers(written, tmp_path):
    files = event_files(tmp_path / "tensorboard", first=4)
    files.add({"step": 5, "loss": 2.5, "learning_rate": 1e-3, "good": True, "rows": [1, 2]})
    files.add({"step": 5, "validation_loss": 2.0, "bits_per_byte": None})
    files.close()
    folder, begun, step, validation, closed = written
    assert folder == str(tmp_path / "tensorboard")
    assert (begun.step, begun.session_log.status) == (5, 1), "step 5 of before is taken again"
    numbers = {one.tag: one.simple_value for one in step.summary.value}
    assert (step.step, numbers) == (5, {"loss/training": 2.5, "step/learning rate": 1e-3})
    assert [one.tag for one in validation.summary.value] == ["loss/validation"]
    assert closed == "closed"


def test_without_tensorboard_there_are_no_files(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
    assert event_files(tmp_path / "tensorboard", first=0) is None
    assert not (tmp_path / "tensorboard").exists()
