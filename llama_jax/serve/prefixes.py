"""The pages that a line shares with others, because their texts begin alike."""

from __future__ import annotations

from collections.abc import Iterable

from llama_jax.serve.line import Line
from llama_jax.serve.pages import Pages, digest_of


def beginning(line: Line, pages: Pages, running: Iterable[Line], every: int) -> list[int] | None:
    """The known pages of what a line has to read. It holds none of them yet.

    They end at a multiple of `every` tokens, and before the last token: that one is always read.
    None where a chunk in flight fills the next of them, so that to wait for it is to read less.
    """
    if line.whole:
        return []
    digests = _digests(line, pages.size, (line.to_read - 1) // pages.size)
    found = pages.known(digests)
    if len(found) < len(digests):
        following = digests[len(found)]
        if any(following in _in_flight(other, pages.size) for other in running):
            return None
    return found[: len(found) - len(found) % max(every // pages.size, 1)]


def fill(line: Line, pages: Pages, certain: int) -> None:
    """Makes the pages known that the line's first `certain` tokens fill."""
    while line.filled < certain // pages.size:
        digest = _digests(line, pages.size, line.filled + 1)[-1]
        pages.fill(line.pages[line.filled], digest)
        line.filled += 1


def _in_flight(line: Line, size: int) -> list[bytes]:
    """The digests of the pages that a line's chunks in flight fill."""
    if not any(flight.stop for flight in line.flights):
        return []
    return _digests(line, size, line.sent // size)[line.filled :]


def _digests(line: Line, size: int, pages: int) -> list[bytes]:
    """The digests of a line's first pages. The line keeps them, for its tokens do not change."""
    for start in range(len(line.digests) * size, pages * size, size):
        parent = line.digests[-1] if line.digests else digest_of(line.salt, [])
        line.digests.append(digest_of(parent, line.ids(start, start + size)))
    return line.digests[:pages]
