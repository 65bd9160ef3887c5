"""A line: one completion as the scheduler sees it, token ids and pages but no text."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from llama_jax.serve.pages import Pages


@dataclasses.dataclass(frozen=True)
class Flight:
    """What a round that was dispatched and not yet taken does for one line."""

    stop: int | None
    """A chunk's end: so many tokens are in pages then. None for a decoding round."""
    draws: bool
    """Whether it gives the line new tokens."""


@dataclasses.dataclass(eq=False)
class Line:
    """One completion. Its maker gives the first six fields; the scheduler keeps the others."""

    prompt: Sequence[int]
    max_new_tokens: int
    salt: bytes = b""
    """Only lines of one salt share pages: an adapter's, a tenant's, or one request's alone."""
    index: int = 0
    """Its place among the completions of its request. The first is the one counted as waiting."""
    whole: bool = False
    """It reads all of its prompt, whatever is known: for the prompt's log-probabilities. Whoever
    has them may set it back."""
    waits: bool = False
    """No two of its rounds are in flight at once: a constraint must see a token before the next."""

    state: Literal["waiting", "reading", "writing", "ended"] = dataclasses.field(
        default="waiting", init=False
    )
    written: list[int] = dataclasses.field(default_factory=list, init=False)
    """All its new tokens so far, those before a preemption too."""
    count: int = dataclasses.field(default=0, init=False)
    """How many of them its seat knows: fewer than all while an exact engine draws them again."""
    seat: int | None = dataclasses.field(default=None, init=False)
    pages: list[int] = dataclasses.field(default_factory=list, init=False)
    """The page of its tokens 0 to 63, that of 64 to 127, and so on."""
    filled: int = dataclasses.field(default=0, init=False)
    """How many of its pages, from the first, are full and certain. It writes to none of them."""
    read: int = dataclasses.field(default=0, init=False)
    """How many of its tokens are in pages for certain."""
    sent: int = dataclasses.field(default=0, init=False)
    """How many are once the chunks in flight are taken."""
    flights: list[Flight] = dataclasses.field(default_factory=list, init=False)
    cached: int = dataclasses.field(default=0, init=False)
    """How many tokens of the prompt were in known pages when it first got a seat."""
    preempted: int = dataclasses.field(default=0, init=False)
    digests: list[bytes] = dataclasses.field(default_factory=list, init=False)

    @property
    def limit(self) -> int:
        """How many tokens it has at most."""
        return len(self.prompt) + self.max_new_tokens

    @property
    def to_read(self) -> int:
        """How many tokens chunks read: all that its seat knows, but for the newest if drawn."""
        return len(self.prompt) + max(self.count - 1, 0)

    @property
    def may_decode(self) -> bool:
        """Whether another round, once it is read, may give it a token."""
        coming = sum(flight.draws for flight in self.flights)
        return self.count + coming < self.max_new_tokens and not (self.waits and coming)

    def ids(self, start: int, stop: int) -> list[int]:
        """Tokens of the prompt and the new ones after it, by position."""
        past = len(self.prompt)
        new = self.written[max(start - past, 0) : max(stop - past, 0)]
        return [*self.prompt[start:stop], *new]

    def pages_with(self, ahead: int, size: int) -> int:
        """How many pages hold its tokens and so many more, as far as it may have them."""
        return -(-min(self.to_read + ahead, self.limit) // size)

    def lacks(self, ahead: int, size: int) -> int:
        """How many of those it does not have."""
        return max(self.pages_with(ahead, size) - len(self.pages), 0)

    def check_fits(self, width: int, pages: Pages) -> None:
        """ValueError where a table of `width` pages, or all pages there are, would be too few."""
        most, context = -(-self.limit // pages.size), width * pages.size
        told = f"{len(self.prompt)} tokens and max_new_tokens={self.max_new_tokens}"
        if not self.prompt:
            raise ValueError("the prompt has no tokens; give at least one")
        if self.limit > context:
            raise ValueError(
                f"a prompt of {told} make {self.limit}, and the context ends at {context}; "
                "shorten the prompt, or lower max_new_tokens"
            )
        if most > pages.count:
            raise ValueError(
                f"a prompt of {told} need {most} pages of {pages.size} tokens, and the cache has "
                f"{pages.count}; lower max_new_tokens, or give the engine a larger cache"
            )


@dataclasses.dataclass(frozen=True)
class Read:
    """A chunk to read: `tokens` at the positions from `start`, into the line's pages."""

    line: Line
    start: int
    tokens: list[int]
    first: bool
    """The line has just got its seat, whose new tokens so far are `line.written[: line.count]`.
    That is none for a new line, and for one that an exact engine begins again."""
    last: bool
    """The line is read by this chunk. It may be decoded by the next round."""
    draws: bool
    """The chunk's logits decide a new token. Those of a line that was preempted are there."""
