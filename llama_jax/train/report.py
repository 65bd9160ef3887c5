"""What a run says of itself: a line for people, and `metrics.jsonl` for programs."""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

from llama_jax.checkpoint.files.json_file import replace_text
from llama_jax.config import Config
from llama_jax.tokenizer.folder import is_there
from llama_jax.train.curves import record_of
from llama_jax.train.event_files import event_files
from llama_jax.train.peak import Peak
from llama_jax.train.phases import phase
from llama_jax.train.recipe import Recipe
from llama_jax.train.step import Metrics

EVENTS = "tensorboard"
"""Beside the file of metrics: the folder of TensorBoard's files."""
SILENCE = 30.0
"""Seconds after which a step is said, though its number is not due."""


class Evaluated(NamedTuple):
    """What an evaluation found."""

    loss: float
    """Nats a token."""
    tokens: int
    """How many were read."""
    bytes_per_token: float | None
    """UTF-8 bytes of the validation text for each token; None where the files do not say it."""

    @property
    def bits_per_byte(self) -> float | None:
        """The loss that does not depend on the tokenizer."""
        return self.loss / math.log(2) / self.bytes_per_token if self.bytes_per_token else None


class Report:
    """Takes what a run finds, writes all of it to a file, and says some of it."""

    def __init__(
        self,
        recipe: Recipe,
        config: Config,
        file: Path,
        say: Callable[[str], None],
        *,
        first: int,
        devices: int,
        peak: Peak,
        bytes_per_token: float | None,
    ) -> None:
        self._recipe, self._say, self._file = recipe, say, file
        self._first = first + 1
        self._flops = flops_per_token(config, recipe.step.context, frozen=recipe.lora is not None)
        self._devices, self._peak, self._bytes_per_token = devices, peak, bytes_per_token
        self._writes = jax.process_index() == 0
        lowest = _forget_after(file, first) if self._writes else math.inf
        # Alike in all processes, which keep a model together or not at all.
        self._lowest = float(multihost_utils.broadcast_one_to_all(np.float32(lowest)))
        self._clock: float | None = None
        self._said = time.monotonic()
        self._seconds, self._tokens, self._steps = 0.0, 0.0, 0
        self.bad_in_a_row = 0
        events = file.parent / EVENTS
        self._events = event_files(events, first=first) if self._writes else None

    def step(self, index: int, ids: np.ndarray, metrics: Metrics) -> None:
        """Takes a step's rows and metrics, as numbers. The time since the last is its time."""
        now = time.monotonic()
        if self._clock is not None:  # the first step is mostly compiling
            self._seconds += now - self._clock
            self._tokens += float(metrics.tokens)
            self._steps += 1
        self._clock = now
        good = bool(metrics.good)
        self.bad_in_a_row = 0 if good else self.bad_in_a_row + 1
        numbers = {name: float(value) for name, value in metrics._asdict().items()}
        rows = {"rows": ids.tolist()} if self._recipe.run.log_rows else {}
        self._write({"step": index + 1, **numbers, "good": good, **rows})
        if not good:
            self._say(
                f"step {index + 1:,} changed nothing: loss {numbers['loss']:.4g}, gradient "
                f"norm {numbers['gradient_norm']:.4g}, rows {shown_rows(ids)}"
            )
        done = index + 1
        due = done % self._recipe.run.print_every == 0 or done in (self._first, self._recipe.steps)
        if due or now - self._said > SILENCE:
            self._say(self._line(done, numbers))
            self._said = now

    def evaluated(self, step: int, found: Evaluated | None) -> bool:
        """Takes the loss of the validation split; returns whether this is the model to keep."""
        self._clock = None
        if found is None:
            return False
        self._write(
            {"step": step, "validation_loss": found.loss, "bits_per_byte": found.bits_per_byte}
        )
        bits = found.bits_per_byte
        self._say(
            f"step {step:,}: validation loss {found.loss:.4f}"
            + (f", {bits:.4f} bits per byte" if bits else "")
            + f" ({found.tokens:,} tokens)"
        )
        is_lowest, self._lowest = found.loss <= self._lowest, min(found.loss, self._lowest)
        return self._recipe.run.keep_best and is_lowest

    @property
    def keeps_newest(self) -> bool:
        """Whether the newest model is the one to keep: the best is not asked for, or not known."""
        return not self._recipe.run.keep_best or math.isinf(self._lowest)

    def phase(self, what: str) -> contextlib.AbstractContextManager[None]:
        """A context that says what it is, where it takes long."""
        return phase(self._say, what)

    def stopping(self) -> None:
        """Says that a wish to stop was heard."""
        self._say("stopping after this step, to save it; Ctrl-C again ends at once")

    def paused(self) -> None:
        """The time until the next step is no step's: a state is written, or a text drawn."""
        self._clock = None

    def _line(self, done: int, numbers: dict[str, float]) -> str:
        parts = [f"step {done:,}/{self._recipe.steps:,}", f"loss {numbers['loss']:.3f}"]
        if self._bytes_per_token:
            bits = numbers["loss"] / math.log(2) / self._bytes_per_token
            parts.append(f"{bits:.3f} bits/byte")
        parts += [f"lr {numbers['learning_rate']:.2e}", f"norm {numbers['gradient_norm']:.2f}"]
        if self._seconds:
            parts.append(f"{self._tokens / self._seconds:,.0f} tokens/s")
            parts.append(self._mfu())
            left = (self._recipe.steps - done) * self._seconds / self._steps
            parts.append(f"{duration(left)} left" if left else "done")
            self._seconds, self._tokens, self._steps = 0.0, 0.0, 0
        return "  ".join(parts)

    def _mfu(self) -> str:
        """The part of the devices' peak that the steps used since the last line.

        Of all that is computed: of dialogs, questions and padding too. A measured peak is at least
        what steps achieve, and is raised where they achieve more.
        """
        size = self._recipe.step.batch * self._recipe.step.context
        used = self._steps * size * self._flops / self._seconds / self._devices
        if not self._peak.measured:
            return f"MFU {used / self._peak.flops:.0%}"
        self._peak = self._peak._replace(flops=max(used, self._peak.flops))
        return f"MFU {used / self._peak.flops:.0%} of the measured peak"

    def _write(self, record: dict[str, Any]) -> None:
        if not self._writes:
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._events:
            self._events.add(record)

    def close(self) -> None:
        """Returns when all is written."""
        if self._events:
            self._events.close()


def flops_per_token(config: Config, context: int, *, frozen: bool = False) -> float:
    """Floating-point operations of a training step for each token (arXiv:2204.02311, appendix B).

    6 for each number of a matrix that multiplies, and 12 * n_layers * n_heads * head_dim * context
    for attention: all of its pairs count, also those above the diagonal. Frozen matrices have no
    gradient and count 4; what adapters add is left out.
    """
    c = config
    queries, keys = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    layer = c.dim * (2 * queries + 2 * keys) + 3 * c.dim * c.hidden_dim
    matrices = c.n_layers * layer + c.dim * c.vocab_size
    return (4.0 if frozen else 6.0) * matrices + 12.0 * c.n_layers * queries * context


def _forget_after(file: Path, step: int) -> float:
    """Removes the lines of later steps, which a run that goes on from `step` takes again.

    Returns the lowest validation loss of those that stay; infinity where there is none.
    """
    if not is_there(file):
        return math.inf
    lines = file.read_bytes().splitlines(keepends=True)
    # A process that was killed may have left half a line at the end.
    whole = [
        (line, record_of(line, file, n)) for n, line in enumerate(lines, 1) if line.endswith(b"\n")
    ]
    kept = [(line, record) for line, record in whole if record["step"] <= step]
    replace_text(file, b"".join(line for line, _ in kept).decode())
    losses = (record.get("validation_loss", math.inf) for _, record in kept)
    return min((loss for loss in losses if isinstance(loss, int | float)), default=math.inf)


def shown_rows(ids: np.ndarray) -> str:
    """The first few of a step's rows, and how many there are."""
    first = ", ".join(map(str, ids[:8].tolist()))
    return f"{first}, ... ({len(ids)} rows)" if len(ids) > 8 else first


def duration(seconds: float) -> str:
    """A length of time in words a person reads at a glance: "3 h 05 min", "12 min", "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 90 else f"{minutes} min"
