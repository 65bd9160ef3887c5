"""When requests are sent: as soon as a client is free, or as a Poisson process has them arrive."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Iterator
from typing import Protocol

from bench.load.client import Answer
from bench.load.mix import Asked, Mix, arrivals


class Asks(Protocol):
    """What answers requests: a server, or an engine without one."""

    async def ask(self, asked: Asked) -> Answer:
        """What came of a request."""


@dataclasses.dataclass(frozen=True)
class Load:
    """Requests a round, and how they come: so many clients, or so many requests a second."""

    mix: Mix
    requests: int
    clients: int | None = 16
    rate: float | None = None

    def round(self, number: int) -> list[Asked]:
        """Its requests. Those of round -1 warm a server up."""
        first = number * self.requests
        return [self.mix.asked(first + one) for one in range(self.requests)]


async def answers(server: Asks, load: Load, number: int) -> tuple[list[Answer], float]:
    """What came of a round's requests, and the seconds from the first sent to the last end."""
    asked = load.round(number)
    start = time.perf_counter()
    if load.rate:
        found = await _arriving(server, asked, load, number)
    else:
        found = await _closed(server, asked, load.clients or 1)
    return found, time.perf_counter() - start


async def _closed(server: Asks, asked: list[Asked], clients: int) -> list[Answer]:
    """Each client sends its next request once it has the whole answer to the one before."""
    left, found = iter(asked), []

    async def client(left: Iterator[Asked]) -> None:
        for one in left:
            found.append(await server.ask(one))

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(client(left))
    return found


async def _arriving(server: Asks, asked: list[Asked], load: Load, number: int) -> list[Answer]:
    """Sends each at its time, however many are unanswered; a late one delays no other."""
    pause = arrivals(load.rate or 1.0, load.mix.seed + number + 1)
    due, tasks = time.perf_counter(), []
    async with asyncio.TaskGroup() as group:
        for one in asked:
            if tasks:
                due += pause()
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(group.create_task(server.ask(one)))
    return [task.result() for task in tasks]
