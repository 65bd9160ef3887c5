"""What a step is given: a way to tell what it found, and how far it may go."""

from __future__ import annotations

import contextlib
import dataclasses
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@dataclasses.dataclass
class Telling:
    """Host state of one step."""

    tell: Callable[[str, Any], None]
    """Writes one value under a name. It is kept whatever becomes of the step."""
    dry: bool
    """Whether all is of toy size, on a CPU."""
    scratch: Path
    """A folder for programs, checkpoints and traces, which nobody keeps."""
    end: float
    """When the step will be ended, by `time.monotonic`."""
    failed: list[str] = dataclasses.field(default_factory=list)

    @property
    def left(self) -> float:
        """Seconds until the step is ended."""
        return self.end - time.monotonic()

    @contextlib.contextmanager
    def part(self, key: str) -> Iterator[None]:
        """A part that may fail: its error is told under its name, and the step goes on."""
        try:
            yield
        except Exception as error:
            traceback.print_exc()
            lines = f"{type(error).__name__}: {error}".splitlines()
            self.failed.append(key)
            self.tell(f"{key}: error", " ".join(lines[:2])[:400])
