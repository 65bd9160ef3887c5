"""A model of one number a token, over pages, and an engine of ten lines around a scheduler.

What a page holds of a token is the hash of all tokens up to it, so it is right for one text alone.
A line reads its whole past through its table and fails where any of it is another text's.
"""

import dataclasses

from llama_jax.serve.pages import Pages
from llama_jax.serve.scheduler import Line, Scheduler

STOP, VOCAB = 0, 25
NAN = "nan"


def key(before: int, token: int) -> int:
    return hash((before, token))


def drawn(state: int, seed: int) -> int:
    """The token that follows a text; one in 25 ends it."""
    return hash((state, seed, "draw")) % VOCAB


def completion(prompt, seed, most) -> list[int]:
    """What a line writes, whatever the pages and the neighbours are."""
    state, new = 0, []
    for token in prompt:
        state = key(state, token)
    while len(new) < most and (token := drawn(state, seed)) != STOP:
        new.append(token)
        state = key(state, token)
    return new


@dataclasses.dataclass(eq=False)
class Asked:
    """A line, and what its reader got."""

    line: Line
    poison: int | None = None  # its keys are NaN from this position
    host_stop: int | None = None  # the host ends it after so many tokens, as a stop string does
    got: list[int] = dataclasses.field(default_factory=list)
    end: str | None = None

    @property
    def expected(self) -> list[int]:
        most = self.line.max_new_tokens if self.host_stop is None else self.host_stop
        return completion(self.line.prompt, self.line.index, min(most, self.line.max_new_tokens))


@dataclasses.dataclass
class Seat:
    """What the device knows of a line: its tokens that are drawn, and whether it has ended."""

    asked: Asked
    drawn: list[int]
    stopped: bool = False


class Device:
    """Runs rounds at once, in the order of dispatch; the host gets their results when it asks."""

    def __init__(self, pages: Pages, exact: bool) -> None:
        self.pages, self.exact = pages, exact
        self.slots = [[None] * pages.size for _ in range(pages.count)]
        self.seats: dict[int, Seat] = {}

    def past(self, line: Line, length: int) -> int | str:
        """Reads the line's past through its table: the hash of its text, or NaN."""
        size, state = self.pages.size, 0
        for position in range(length):
            found = self.slots[line.pages[position // size]][position % size]
            assert found is not None, f"position {position} was never written"
            if self.exact:
                assert found[1] == ("chunk" if position < len(line.prompt) else "step")
            state = found[0]
        # What is masked is multiplied by zero, and NaN times zero is NaN.
        seen = [slot for page in line.pages for slot in self.slots[page] if slot is not None]
        return NAN if any(value == NAN for value, _ in seen) else state

    def write(self, asked: Asked, position: int, token: int, before, kind: str):
        line, size = asked.line, self.pages.size
        value = NAN if before == NAN or position == asked.poison else key(before, token)
        if position // size < len(line.pages):  # beyond its table a write is dropped
            page = line.pages[position // size]
            assert self.pages.holders(page) == 1, "a shared page is written"
            assert not self.pages.is_known(page), "a known page is written"
            self.slots[page][position % size] = (value, kind)
        return value

    def read(self, asked: Asked, read) -> tuple[list[int], str | None]:
        line = asked.line
        if read.first:
            self.seats[line.seat] = Seat(asked, line.written[: line.count])
        seat = self.seats[line.seat]
        assert seat.asked is asked
        state = self.past(line, read.start)
        for position, token in enumerate(read.tokens, read.start):
            state = self.write(asked, position, token, state, "chunk")
        if state == NAN:
            seat.stopped = True
            return [], "error"
        return self.draw(seat, state) if read.draws else ([], None)

    def decode(self, asked: Asked, tokens: int) -> tuple[list[int], str | None]:
        line = asked.line
        seat = self.seats[line.seat]
        assert seat.asked is asked
        new: list[int] = []
        for _ in range(tokens):
            if seat.stopped or len(seat.drawn) == line.max_new_tokens:
                return new, None
            position = len(line.prompt) + len(seat.drawn) - 1
            assert position // self.pages.size < len(line.pages), "a lookahead page is missing"
            state = self.past(line, position)
            state = self.write(asked, position, seat.drawn[-1], state, "step")
            if state == NAN:
                seat.stopped = True
                return new, "error"
            more, end = self.draw(seat, state)
            new += more
            if end:
                return new, end
        return new, None

    def draw(self, seat: Seat, state: int) -> tuple[list[int], str | None]:
        if (token := drawn(state, seat.asked.line.index)) == STOP:
            seat.stopped = True
            return [], "stop"
        seat.drawn.append(token)
        return [token], "length" if len(seat.drawn) == seat.asked.line.max_new_tokens else None

    def clear(self, pages) -> None:
        for page in pages:
            self.slots[page] = [None] * self.pages.size


class Engine:
    """Dispatches `depth` turns before it takes what the first of them gave."""

    def __init__(self, *, pages, seats, chunk, tokens, depth, exact, size=4) -> None:
        self.pages = Pages(pages, size)
        self.scheduler = Scheduler(
            self.pages,
            seats,
            chunk=chunk,
            width=pages + 2,
            lookahead=tokens * (depth + 1),
            exact=exact,
        )
        self.device = Device(self.pages, exact)
        self.tokens, self.depth, self.exact = tokens, depth, exact
        self.asked: dict[Line, Asked] = {}
        self.flying: list[list] = []  # turns: lists of (asked, tokens, end)
        self.order: list[Line] = []  # of first seats
        self.cleared: list[int] = []

    def add(self, line: Line, **wishes) -> Asked:
        self.scheduler.add(line)
        self.asked[line] = Asked(line, **wishes)
        self.check()
        return self.asked[line]

    def cancel(self, asked: Asked) -> None:
        self.finish(asked, "cancelled")
        self.check()

    def finish(self, asked: Asked, end: str) -> None:
        self.scheduler.ended(asked.line)
        asked.end = asked.end or end

    def turn(self) -> bool:
        """False if there was nothing to dispatch and nothing to take."""
        turn = []
        if (read := self.scheduler.next_read()) is not None:
            asked = self.asked[read.line]
            assert 0 < len(read.tokens) <= self.scheduler.chunk
            assert read.start % (self.scheduler.chunk if self.exact else 2) == 0
            if read.first and not read.line.preempted:
                self.order.append(read.line)
            turn.append((asked, *self.device.read(asked, read)))
        self.check()
        oldest = self.scheduler.running[:1]
        for line in self.scheduler.next_decode():
            turn.append((self.asked[line], *self.device.decode(self.asked[line], self.tokens)))
        assert self.scheduler.running[:1] == oldest, "the oldest line lost its seat"
        self.check()
        did = bool(turn or any(self.flying))
        self.flying.append(turn)
        if len(self.flying) > self.depth:
            self.take(self.flying.pop(0))
        return did

    def take(self, turn) -> None:
        for asked, tokens, end in turn:
            if end == "error":
                pages = self.scheduler.spoiled(asked.line)
                self.device.clear(pages)
                self.cleared += pages
                asked.end = asked.end or "error"
            before = list(asked.line.written)
            new = self.scheduler.wrote(asked.line, tokens)
            assert asked.line.written == before + new
            if asked.end is None:
                self.deliver(asked, new, end)
            self.check()

    def deliver(self, asked: Asked, new, end) -> None:
        asked.got += new
        if asked.host_stop is not None and len(asked.got) >= asked.host_stop:
            asked.got = asked.got[: asked.host_stop]
            end = "stop"
        if end or (asked.line.max_new_tokens == 0 and asked.line.state == "writing"):
            self.finish(asked, end or "length")

    def reset(self) -> None:
        """A program failed: the device forgets all, and the rounds in flight are lost."""
        self.device = Device(self.pages, self.exact)
        self.flying.clear()
        self.scheduler.forget()
        self.check()

    def run(self) -> None:
        """Until all have ended. Each turn but the last few must take some line on."""
        turns = 0
        while self.turn():
            turns += 1
            work = sum(line.limit * (line.preempted + 1) for line in self.asked)
            assert turns <= (self.depth + 1) * (work + 1), "lines starve"

    def check(self) -> None:
        """What is true between any two calls."""
        scheduler, pages = self.scheduler, self.pages
        assert pages.free + pages.used == pages.count
        assert pages.used == sum(pages.holders(page) > 0 for page in range(pages.count))
        seated = scheduler.running + scheduler.leaving
        holders = [0] * pages.count
        texts: dict[int, tuple[bytes, list[int]]] = {}
        for line in seated:
            assert len(set(line.pages)) == len(line.pages) <= scheduler.width
            for place, page in enumerate(line.pages):
                holders[page] += 1
                if pages.holders(page) > 1:
                    assert place < line.filled, "a page is shared that a line may write"
                    text = line.salt, line.ids(0, (place + 1) * pages.size)
                    assert texts.setdefault(page, text) == text, "unlike texts share a page"
        assert holders == [pages.holders(page) for page in range(pages.count)]
        seats = [line.seat for line in seated]
        assert None not in seats
        assert len(set(seats)) == len(seats)
        born = {line: place for place, line in enumerate(self.asked)}
        for lines in (
            scheduler.running,
            list(scheduler.queue),
            scheduler.running + [line for line in scheduler.queue],
        ):
            assert [born[line] for line in lines] == sorted(born[line] for line in lines)
        new = [line for line in scheduler.queue if line.index == 0 and not line.preempted]
        assert scheduler.waiting == len(new)
        assert scheduler.waiting_tokens == sum(len(line.prompt) for line in new)
