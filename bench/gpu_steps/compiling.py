"""Programs made at the same time: XLA uses few of a machine's cores for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def made_together(makers: Mapping[str, Callable[[], Made]]) -> dict[str, Future[Made]]:
    """Calls all at the same time and waits for all, so that nothing is timed beside a compiler.

    What fails raises where its result is asked for, and costs no other.
    """
    with ThreadPoolExecutor(max(1, len(makers))) as threads:
        return {name: threads.submit(make) for name, make in makers.items()}
