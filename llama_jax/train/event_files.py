"""A run's numbers in TensorBoard's files, written by TensorBoard itself where it is installed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "bits_per_byte": "loss/bits per byte",
    "gradient_norm": "step/gradient norm",
    "learning_rate": "step/learning rate",
    "tokens": "step/tokens",
}
"""Our names of the numbers, and TensorBoard's: what stands before the slash is a section."""


class EventFiles:
    """One more event file in a folder; ImportError where TensorBoard is not installed.

    Numbers of steps after `first`, which an earlier file may have, are shown no longer: a run that
    goes on takes these steps again.
    """

    def __init__(self, folder: Path, *, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = Event, Summary
        self._writer = EventFileWriter(str(folder))
        begun = SessionLog(status=SessionLog.START)
        self._writer.add_event(Event(wall_time=time.time(), step=first + 1, session_log=begun))

    def add(self, record: dict[str, Any]) -> None:
        """Takes a record of `metrics.jsonl`."""
        values = [
            self._summary.Value(tag=tag, simple_value=record[name])
            for name, tag in TAGS.items()
            if record.get(name) is not None
        ]
        summary = self._summary(value=values)
        now = time.time()
        self._writer.add_event(self._event(wall_time=now, step=record["step"], summary=summary))

    def close(self) -> None:
        """Returns when all is written."""
        self._writer.close()


def event_files(folder: Path, *, first: int) -> EventFiles | None:
    """The files of a run, or None where TensorBoard is not installed."""
    try:
        return EventFiles(folder, first=first)
    except ImportError:
        return None
