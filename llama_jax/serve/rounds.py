"""Turns of the engine: what is dispatched, what is fetched, who is told.

A turn dispatches some chunks of prompts and a step of all rows that have a token, and then fetches
what the turn before dispatched. So the device works while the host makes text of the tokens.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from llama_jax.generation.limits import NO_LIMIT
from llama_jax.generation.results import Delta
from llama_jax.generation.sample import NO_TOKEN
from llama_jax.serve.device import Device, Round
from llama_jax.serve.line import Line
from llama_jax.serve.scheduler import Read, Scheduler
from llama_jax.serve.stats import Counts
from llama_jax.serve.stream import RequestFailedError, Stream, UnfollowableError, notify
from llama_jax.serve.writing import Writing

ROUNDS_IN_FLIGHT = 2
"""The one that is being dispatched, and the one whose tokens are not known yet."""


@dataclasses.dataclass(frozen=True)
class InFlight:
    """A program that was dispatched, and the completions that it takes on."""

    made: Round
    writings: list[Writing]
    read: Read | None = None


class Rounds:
    """The completions in progress, and the turns that take them on. For one thread."""

    def __init__(self, device: Device, scheduler: Scheduler) -> None:
        self._device, self._scheduler = device, scheduler
        self._writings: dict[Line, Writing] = {}
        self._in_flight: list[InFlight] = []
        self.counts = Counts()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self._writings and not self._in_flight

    def add(self, writing: Writing) -> None:
        """Another completion, which waits for a seat."""
        self._writings[writing.line] = writing
        self._scheduler.add(writing.line)

    def end(self, streams: Iterable[Stream], error: BaseException | None = None) -> None:
        """Ends requests, those that wait and those in progress."""
        over = list(streams)
        for writing in [w for w in self._writings.values() if w.stream in over]:
            self._forget(writing)
        for stream in over:
            stream.end(error)
        notify(over)

    def streams(self) -> list[Stream]:
        """The requests that have not ended."""
        return list({id(w.stream): w.stream for w in self._writings.values()}.values())

    def turn(self) -> None:
        """Takes all on by a round."""
        self.take(self.dispatch())

    def dispatch(self) -> list[InFlight]:
        """Dispatches a round of all; returns what the turn before dispatched."""
        before, self._in_flight = self._in_flight, []
        reads = iter(self._scheduler.next_read, None)
        for read in itertools.islice(reads, self._device.chunks):
            self._in_flight.append(self._read(read))
        if lines := self._scheduler.next_decode():
            self._in_flight.append(self._decode([self._writings[line] for line in lines]))
        return before

    def take(self, before: Sequence[InFlight]) -> None:
        """Fetches what was dispatched, and tells whose it is."""
        told: list[Stream] = []
        for one in before:
            made = one.made.fetch()
            for i, writing in enumerate(one.writings):
                if (delta := self._taken(one, made, i, writing)) is not None:
                    writing.stream.put(delta)
                    told.append(writing.stream)
        notify({id(stream): stream for stream in told}.values())

    def fail(self, error: BaseException) -> None:
        """A program failed, and with it all completions that have a seat. The others wait on."""
        failed = RequestFailedError(f"a step of the engine failed: {error}")
        failed.__cause__ = error
        self._in_flight = []
        self._device.reset()
        seated = [w.stream for w in self._writings.values() if w.line.seat is not None]
        self._scheduler.forget()
        self.end({id(stream): stream for stream in seated}.values(), failed)

    def _read(self, read: Read) -> InFlight:
        writing, line = self._writings[read.line], read.line
        if read.first:
            self._device.seat(line.seat or 0, writing.row, line.written[: line.count])
            if line.preempted and not line.count:
                writing.begin_again()
            if not line.preempted:
                self.counts.prompt_tokens += len(line.prompt)
                self.counts.cached_tokens += line.cached
                if line.index == 0:
                    writing.stream.cached_tokens = line.cached
        if read.draws:
            self._bound([writing])
        made = self._device.read(
            read.tokens,
            _following(read),
            read.start,
            line.seat or 0,
            line.pages,
            draws=read.draws,
            echo=line.whole,
        )
        return InFlight(made, [writing], read)

    def _decode(self, writings: list[Writing]) -> InFlight:
        self._bound(writings)
        made = self._device.decode(
            [w.line.seat or 0 for w in writings],
            [w.line.pages for w in writings],
            [w.line.count + 1 if w.line.waits else NO_LIMIT for w in writings],
        )
        return InFlight(made, writings)

    def _bound(self, writings: list[Writing]) -> None:
        """Tells the device which tokens the constraints allow next."""
        masks = [(w.line.seat or 0, w.words) for w in writings if w.words is not None]
        if masks:
            self._device.allow(masks)

    def _taken(self, one: InFlight, made: Round, i: int, writing: Writing) -> Delta | None:
        """What one completion gained by a round; of one that has ended, nothing."""
        line, buffer, tokens = writing.line, made.buffer, []
        failed = not made.finite
        if buffer is not None:
            tokens = buffer.tokens[i, : int(buffer.count[i]) - line.count].tolist()
            failed |= bool((buffer.tokens[i] == NO_TOKEN).any())
        over = line not in self._writings
        if failed:
            self._device.clear(self._scheduler.spoiled(line))
        try:
            new = self._scheduler.wrote(line, tokens)
            if over:
                return None
            if made.echo is not None and one.read is not None:
                writing.take_echo(made.echo, one.read)
                line.whole = not one.read.last  # known pages do, should it be read again
            if buffer is not None:
                delta = writing.take(buffer, i, tokens, new)
            else:
                done = line.max_new_tokens == 0 and one.read is not None and one.read.last
                delta = writing.ended_without_tokens(failed) if done or failed else None
        except RuntimeError as error:  # an exact engine drew another token than before
            self.end([writing.stream], RequestFailedError(str(error)))
            return None
        except ValueError as error:
            self.end([writing.stream], UnfollowableError(str(error)))
            return None
        self.counts.new_tokens += len(new)
        self.counts.nan_rows += failed
        if delta is not None and delta.finish_reason is not None:
            self._forget(writing)
        return delta

    def _forget(self, writing: Writing) -> None:
        self._scheduler.ended(writing.line)
        del self._writings[writing.line]


def _following(read: Read) -> list[int]:
    """The token after each token of a chunk, as far as the prompt goes."""
    return list(read.line.prompt[read.start + 1 : read.start + 1 + len(read.tokens)])
