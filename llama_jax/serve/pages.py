"""Which pages of the pool are free, which are held, and which hold the beginning of a known text.

A page has room for the keys and values of 64 tokens. A page that is full and certain is known by
the digest of all tokens up to its end, so texts that begin alike hold the same pages. A page that
nobody holds is free, and known until it is taken.

    take(2)           -> [0, 1]     two pages for a text of 100 tokens
    fill(0, digest)                 its first 64 tokens are in page 0
    known([digest])   -> [0]        where another text finds them
    hold([0])                       two texts have page 0 now
    give([0, 1])                    the first text gives its pages back; page 0 is still held
"""

from __future__ import annotations

import hashlib
import secrets
from array import array
from collections import OrderedDict
from collections.abc import Sequence

from llama_jax.validation import check_count

_SECRET = secrets.token_bytes(32)  # so that nobody can make two texts of one digest


class Pages:
    """The pages 0 to `count` - 1 of a pool, each with room for `size` tokens. For one thread."""

    def __init__(self, count: int, size: int = 64) -> None:
        check_count("count", count)
        check_count("size", size)
        self.count, self.size = count, size
        self._free = OrderedDict.fromkeys(range(count))  # the next one to take comes first
        self._holders = [0] * count
        self._page_of: dict[bytes, int] = {}
        self._digest_of: dict[int, bytes] = {}

    @property
    def free(self) -> int:
        """How many pages nobody holds."""
        return len(self._free)

    @property
    def used(self) -> int:
        """How many pages somebody holds."""
        return self.count - len(self._free)

    def holders(self, page: int) -> int:
        """How many hold a page."""
        return self._holders[page]

    def take(self, n: int) -> list[int] | None:
        """`n` free pages, held once and no longer known; None where there are fewer.

        Pages of no known text come first, then the known one that was given back longest ago.
        """
        if n > len(self._free):
            return None
        pages = [self._free.popitem(last=False)[0] for _ in range(n)]
        self.forget(pages)
        for page in pages:
            self._holders[page] = 1
        return pages

    def known(self, digests: Sequence[bytes]) -> list[int]:
        """The pages of a text's beginning, up to the first digest that is unknown. Holds none."""
        pages = []
        for digest in digests:
            if (page := self._page_of.get(digest)) is None:
                break
            pages.append(page)
        return pages

    def hold(self, pages: Sequence[int]) -> None:
        """Holds each page once more. Those that were free keep what they hold."""
        for page in pages:
            self._free.pop(page, None)
            self._holders[page] += 1

    def is_known(self, page: int) -> bool:
        """Whether a page holds a text that later ones may share."""
        return page in self._digest_of

    def give(self, pages: Sequence[int]) -> None:
        """Gives one text's pages back, in their order.

        The end of a text is taken before its beginning, which more texts have in common.
        """
        for page in reversed(pages):
            if not self._holders[page]:
                raise ValueError(f"page {page} is free already; give each page back once")
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free[page] = None
                if not self.is_known(page):
                    self._free.move_to_end(page, last=False)

    def fill(self, page: int, digest: bytes) -> None:
        """Makes a held page known: it is full, its tokens are certain, nobody will write to it.

        Of two pages with one digest the first stays known.
        """
        if digest not in self._page_of and not self.is_known(page):
            self._page_of[digest] = page
            self._digest_of[page] = digest

    def forget(self, pages: Sequence[int]) -> None:
        """Makes pages unknown. Whoever holds one keeps it."""
        for page in pages:
            if (digest := self._digest_of.pop(page, None)) is not None:
                del self._page_of[digest]


def digest_of(parent: bytes, ids: Sequence[int]) -> bytes:
    """The digest of a text that ends with the page `ids`; `parent` is that of the text before it.

    The first page's parent is `digest_of(salt, [])`: texts of unlike salts share nothing. Another
    process has other digests.
    """
    return hashlib.blake2b(parent + array("i", ids).tobytes(), digest_size=32, key=_SECRET).digest()
