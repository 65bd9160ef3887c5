"""What one rendering of a chat template may cost: turns, processor time, and what it makes."""

from __future__ import annotations

import contextvars
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from jinja2.exceptions import SecurityError

MAX_STEPS = 300_000
"""Turns of loops and calls, together."""
MAX_SECONDS = 2.0
"""Seconds of processor time: waiting does not count, so a busy machine refuses no template."""
MAX_VALUE = 32 * 2**20
"""Bytes of one value, with all that it holds."""
MAX_MADE = 256 * 2**20
"""Bytes of all values that it makes, whatever becomes of them."""
MAX_BITS = 10_000
"""Bits of one integer. Without a bound, a loop could double its length at every turn."""

T = TypeVar("T")
_HOLDERS: tuple[type, ...] = (
    *(list, tuple, dict),
    *(type({}.keys()), type({}.values()), type({}.items())),
)
_EACH, _OBJECT = 8, 64


class Budget:
    """What is left of a rendering's limits. Each method raises SecurityError where nothing is."""

    def __init__(self) -> None:
        self._steps, self._left = MAX_STEPS, MAX_MADE
        self._until, self._began = time.monotonic() + MAX_SECONDS, time.thread_time()
        # By id; the container is kept, so that no other one gets its id.
        self._sizes: dict[int, tuple[Any, int]] = {}

    def step(self, count: int = 1) -> None:
        """Pays for turns of loops, or calls."""
        self._steps -= count
        if self._steps < 0:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} turns of loops and calls")
        self.tick()

    def tick(self) -> None:
        """Looks at the clock: the wall's is cheap, and processor time is never more."""
        if time.monotonic() > self._until:
            used = time.thread_time() - self._began
            if used > MAX_SECONDS:
                raise SecurityError(f"it takes more than {MAX_SECONDS:g} seconds")
            self._until = time.monotonic() + MAX_SECONDS - used

    def turns(self, items: Iterable[T], each: int = 1) -> Iterator[T]:
        """The items, each paid for as it is taken."""
        for item in items:
            self.step(each)
            yield item

    def allow(self, size: int) -> None:
        """Refuses a value before it is made, where its size is known."""
        if size > MAX_VALUE:
            raise SecurityError(f"it makes a value of more than {MAX_VALUE >> 20} MiB")

    def work(self, steps: int) -> None:
        """Refuses one operation that would compare so many characters."""
        if steps > 2**28:
            raise SecurityError("it searches a text for too long a one")

    def made(self, value: T, *, fresh: bool = True) -> T:
        """Pays for a value; `fresh` where the texts in a list were made with it."""
        self.tick()
        if isinstance(value, str):
            cost = sys.getsizeof(value)
            self.allow(cost)
        elif isinstance(value, list | tuple | dict):
            self.size(value)
            cost = sys.getsizeof(value)
            if fresh and not isinstance(value, dict):
                cost += sum(sys.getsizeof(one) for one in value if isinstance(one, str))
        else:
            if isinstance(value, int) and value.bit_length() > MAX_BITS:
                raise SecurityError(f"it makes a number beyond {MAX_BITS:,} bits")
            return value
        self.pay(cost)
        return value

    def pay(self, cost: int) -> None:
        """Pays for bytes."""
        self._left -= cost
        if self._left < 0:
            raise SecurityError(f"it makes more than {MAX_MADE >> 20} MiB of values")

    def size(self, value: Any) -> int:
        """The bytes of a value and of all that it holds, each time that it holds it."""
        if isinstance(value, str):
            return sys.getsizeof(value)
        if not isinstance(value, _HOLDERS):
            return _OBJECT + (value.bit_length() // 3 if isinstance(value, int) else 0)
        known = self._sizes.get(id(value))
        if known is not None:
            return known[1]
        parts: Any = value
        if isinstance(value, dict):
            parts = (one for pair in value.items() for one in pair)
        total = _OBJECT
        for part in parts:
            total += _EACH + self.size(part)
            self.allow(total)
        self._sizes[id(value)] = value, total
        return total


_BUDGET: contextvars.ContextVar[Budget] = contextvars.ContextVar("budget")


def begin() -> contextvars.Token[Budget]:
    """Begins a rendering, in this thread."""
    return _BUDGET.set(Budget())


def end(token: contextvars.Token[Budget]) -> None:
    """Ends the rendering that `begin` began."""
    _BUDGET.reset(token)


def budget() -> Budget:
    """What is left of this thread's rendering."""
    return _BUDGET.get()
