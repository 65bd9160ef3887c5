"""Who gets seats and pages, who reads, who writes. It knows no JAX, no text and no clock.

What an engine calls, in one thread:

    check(line)            from any thread: ValueError where the line can never fit
    add(line)              it waits for a seat
    next_read()            -> a chunk to dispatch, of the oldest line that is not read, or None
    next_decode()          -> the lines to take on by a round, or []
    wrote(line, tokens)    once for each line of each dispatched round, in the order of dispatch,
                           when the round is taken; () for a chunk that drew nothing
    ended(line)            it is finished, failed or cancelled; at any time, also twice
    spoiled(line)          its round, about to be told to `wrote`, has NaN or infinite logits
    forget()               the device was reset, and with it all pages and rounds in flight

The rounds run on the device in the order of dispatch. A turn may dispatch before it takes what the
turn before dispatched: pages and seats come back when no round in flight has them, and a page is
known when the round that filled it was taken. Where `next_read` and `next_decode` give nothing,
take a round in flight; if none is, there is no line, or only lines that should have been ended.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from itertools import chain

from llama_jax.serve.line import Flight, Line, Read
from llama_jax.serve.pages import Pages
from llama_jax.serve.prefixes import beginning, fill
from llama_jax.validation import check_count

__all__ = ["Line", "Read", "Scheduler"]


class Scheduler:
    """Lines in order of arrival: the oldest ones have seats, and the youngest give way."""

    def __init__(
        self, pages: Pages, seats: int, *, chunk: int, width: int, lookahead: int, exact: bool
    ) -> None:
        """Lines read `chunk` tokens at once; one line has at most `width` pages.

        A decoding line has pages for `lookahead` tokens more than are known to be written: a
        round's tokens, times one more than the rounds in flight. With `exact` only what chunks
        wrote is known, and a preempted line is decoded again from its prompt.
        """
        for name, value in {"seats": seats, "chunk": chunk, "width": width}.items():
            check_count(name, value)
        check_count("lookahead", lookahead)
        if chunk % pages.size and pages.size % chunk:
            raise ValueError(f"chunk={chunk} must divide {pages.size}, or be a multiple of it")
        self.pages, self.chunk, self.width = pages, chunk, width
        self.lookahead, self.exact = lookahead, exact
        self.queue: deque[Line] = deque()
        """Those without a seat, the oldest first; each is younger than all that have one."""
        self.running: list[Line] = []
        """Those with a seat, the oldest first. Only the last may be unread."""
        self.leaving: list[Line] = []
        """Those that ended or were preempted, with seats and pages that rounds in flight have."""
        self.waiting = 0
        """Requests that never had a seat."""
        self.waiting_tokens = 0
        """Tokens of their prompts."""
        self.preemptions = 0
        self._seats = list(reversed(range(seats)))

    def check(self, line: Line) -> None:
        """ValueError where a line would not fit even alone."""
        line.check_fits(self.width, self.pages)

    def add(self, line: Line) -> None:
        """The line waits behind all others. ValueError as `check`."""
        self.check(line)
        self.queue.append(line)
        self._count_waiting(line, 1)

    def next_read(self) -> Read | None:
        """A chunk of the line that is being read, or of the first in the queue, if it gets in.

        An exact engine's begin at multiples of their size: a prompt is cut alike, whatever is known
        of it. Another's first one begins at the end of the pages that are known.
        """
        line = self.running[-1] if self.running else None
        if line is None or line.state != "reading":
            line = self._admitted()
        if line is None:
            return None
        start, first = line.sent, line.state == "waiting"
        line.sent = min(start + self.chunk, line.to_read)
        last = line.sent == line.to_read
        draws = last and not line.count and line.max_new_tokens > 0
        line.state = "writing" if last else "reading"
        line.flights.append(Flight(line.sent, draws))
        return Read(line, start, line.ids(start, line.sent), first, last, draws)

    def next_decode(self) -> list[Line]:
        """The lines that are read and want tokens, each with pages for its lookahead.

        The oldest get pages first, if need be from the youngest, which goes back to the queue. A
        line that finds too few waits in its seat, and so do younger ones that need any.
        """
        lines, short = [], False
        for line in list(self.running):
            if line.state != "writing" or not line.may_decode:
                continue
            if line.lacks(self.lookahead, self.pages.size) and (short or not self._grown(line)):
                short = True
            else:
                line.flights.append(Flight(None, True))
                lines.append(line)
        return lines

    def wrote(self, line: Line, tokens: Sequence[int]) -> list[int]:
        """A round of the line is taken and gave it `tokens`; returns those that are new.

        Not new are those that an exact engine draws again after a preemption; RuntimeError, and
        the line has ended, where they are others than before. A line that has ended gets nothing.
        """
        flight = line.flights.pop(0)
        try:
            return self._told(line, flight, tokens)
        finally:
            if not line.flights and line in self.leaving:
                self._release(line)

    def ended(self, line: Line) -> None:
        """The line is out. Its pages come back when no round in flight has them."""
        if line.state == "ended":
            return
        if line in self.running:
            self._leave(line)
        else:
            self.queue.remove(line)
            self._count_waiting(line, -1)
        line.state = "ended"

    def spoiled(self, line: Line) -> list[int]:
        """Ends a line whose logits were NaN or infinite; returns the pages that it alone holds.

        Those are known no longer, and must be filled with zeros before another line has them: do
        it before `wrote` is told of the round. Call it for every such round of the line, also when
        the line has ended since, and for chunks that draw nothing as well. A page that others
        hold is left alone: it was known, so the round that filled it was finite.
        """
        pages = [page for page in line.pages if self.pages.holders(page) == 1]
        self.pages.forget(pages)
        self.ended(line)
        return pages

    def forget(self) -> None:
        """What pages hold is lost, and so are all rounds in flight: all lines wait again."""
        for line in reversed(self.running):
            self._preempt(line)
        for line in list(self.leaving):
            line.flights.clear()
            self._release(line)
        self.pages.forget(range(self.pages.count))

    def _admitted(self) -> Line | None:
        """The first line of the queue, if there are a seat and pages for it.

        Each line with a seat must find one more page, or the new one might soon lose its own.
        """
        line = self.queue[0] if self.queue else None
        if line is None or line in self.leaving or not self._seats:
            return None
        line.count = 0 if self.exact else len(line.written)
        every = self.chunk if self.exact else self.pages.size
        shared = beginning(line, self.pages, self.running, every)
        if shared is None:
            return None
        self.pages.hold(shared)
        needed = line.pages_with(self.lookahead, self.pages.size) - len(shared)
        room = self.lookahead + self.pages.size
        kept = sum(one.lacks(room, self.pages.size) for one in self.running)
        if needed + kept > self.pages.free:
            self.pages.give(shared)
            return None
        self.queue.popleft()
        self._count_waiting(line, -1)
        self.running.append(line)
        line.seat = self._seats.pop()
        line.pages = shared + (self.pages.take(needed) or [])
        line.filled = len(shared)
        line.read = line.sent = len(shared) * self.pages.size
        line.cached = line.cached if line.preempted else line.read
        return line

    def _told(self, line: Line, flight: Flight, tokens: Sequence[int]) -> list[int]:
        before = line.written[line.count : line.count + len(tokens)]
        again, new = list(tokens[: len(before)]), list(tokens[len(before) :])
        line.count += len(tokens)
        if line.state == "ended":
            return []
        if again != before:
            self.ended(line)
            raise RuntimeError(f"a preempted line drew {again} where it had drawn {before}")
        line.written += new
        line.read = line.to_read if flight.stop is None else flight.stop
        fill(line, self.pages, min(line.read, len(line.prompt)) if self.exact else line.read)
        return new

    def _grown(self, line: Line) -> bool:
        """Whether a line has pages for its lookahead now; younger lines give way to it.

        The oldest has them once the rounds in flight are taken: alone it fits, as `check` found.
        """
        while (needed := line.lacks(self.lookahead, self.pages.size)) > self.pages.free:
            if needed <= self.pages.free + self._pages_coming() or line is self.running[-1]:
                return False
            self._preempt(self.running[-1])
        line.pages += self.pages.take(needed) or []
        return True

    def _pages_coming(self) -> int:
        """How many pages come back when the rounds in flight are taken."""
        held = Counter(chain.from_iterable(line.pages for line in self.leaving))
        return sum(self.pages.holders(page) == n for page, n in held.items())

    def _preempt(self, line: Line) -> None:
        line.preempted += 1
        self.preemptions += 1
        self._leave(line)
        line.state = "waiting"
        self.queue.appendleft(line)

    def _leave(self, line: Line) -> None:
        self.running.remove(line)
        self.leaving.append(line)
        if not line.flights:
            self._release(line)

    def _release(self, line: Line) -> None:
        self.leaving.remove(line)
        self.pages.give(line.pages)
        if line.seat is not None:
            self._seats.append(line.seat)
        line.pages, line.seat = [], None

    def _count_waiting(self, line: Line, sign: int) -> None:
        if line.index == 0 and not line.preempted:
            self.waiting += sign
            self.waiting_tokens += sign * len(line.prompt)
