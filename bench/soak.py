"""Many short requests, some of whose clients leave: `python -m bench.soak --url URL --pid PID`.

It says whether a server loses, changes or holds up an answer, and what it keeps of each request.
There are 96 different requests, of all kinds; each asks for the same answer whenever it is sent,
and a second answer that differs from the first is counted. A client that leaves closes its
connection or resets it: at once, after a while, or after the first byte of the answer.

Give the server few pages (`--cache-gib`): memory that was never used counts as growth when it is
first used. With `--term` the server's process is sent SIGTERM once so many requests have ended:
whatever it then answers has to be whole. It may refuse what comes later.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import os
import random
import signal
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.load import process
from bench.load.client import read_body, read_head
from bench.load.kinds import KINDS, requests_of, text_of

MEGABYTE = 1e6
SETTLE_SECONDS = 30
"""How long the server may take to be idle after the last request."""


class ChangedError(Exception):
    """A request got another answer than before."""


@dataclasses.dataclass
class Soak:
    """A run. Host state."""

    options: argparse.Namespace
    requests: list[bytes]
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    errors: Counter[str] = dataclasses.field(default_factory=Counter)
    answers: dict[int, str] = dataclasses.field(default_factory=dict)
    memory: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    """How many requests had ended, and the bytes that the server had then."""
    ending: bool = False
    """The server was told to end."""

    async def run(self) -> None:
        """Sends all requests, each client one after the other."""
        self.began = time.monotonic()
        numbers = iter(range(self.options.requests))
        self.note()
        async with asyncio.TaskGroup() as group:
            for _ in range(self.options.clients):
                group.create_task(self._client(numbers))
        self.note()

    async def _client(self, numbers: Iterator[int]) -> None:
        minutes = self.options.minutes
        for number in numbers:
            if minutes and time.monotonic() - self.began > 60 * minutes:
                return
            if self.options.pause:
                await asyncio.sleep(random.expovariate(1 / self.options.pause))
            drawn = random.Random(number * 2**20 + self.options.seed)
            came = await self._ask(drawn.randrange(KINDS), drawn)
            self.counts[came] += 1
            done = self.counts.total()
            if done % self.options.every == 0:
                self.note()
            if done == self.options.term:
                self.ending = True
                os.kill(self.options.pid, signal.SIGTERM)

    async def _ask(self, kind: int, drawn: random.Random) -> str:
        """What came of a request."""
        leaves = drawn.random() < self.options.leaves
        got = bytearray()
        try:
            async with asyncio.timeout(self.options.timeout):
                return await (self._leave if leaves else self._stay)(kind, drawn, got)
        except TimeoutError:
            return self._failed("hung", f"no whole answer within {self.options.timeout:g} s")
        except ChangedError as error:
            return self._failed("changed", str(error))
        except (OSError, ValueError, LookupError, asyncio.IncompleteReadError) as error:
            if self.ending and not got:
                return "not taken"  # the door was closed
            return self._failed("failed", f"{type(error).__name__}: {error}"[:200])

    def _failed(self, what: str, why: str) -> str:
        self.errors[why] += 1
        return what

    async def _stay(self, kind: int, drawn: random.Random, got: bytearray) -> str:
        reader, writer = await sent(self.options.url, "POST /v1/completions", self.requests[kind])
        try:
            status, headers = await read_head(reader)
            got += b"status"
            content = b"".join([piece async for piece in read_body(reader, headers)])
        finally:
            writer.close()
        if status == 503 and self.ending:
            return "not taken"
        if status != 200:
            raise ValueError(f"status {status}: {content[:150]!r}")
        text = text_of(content, headers)
        before = self.answers.setdefault(kind, text)
        if before != text:
            raise ChangedError(f"request {kind}: {before!r} became {text!r}")
        return "answered"

    async def _leave(self, kind: int, drawn: random.Random, got: bytearray) -> str:
        reader, writer = await sent(self.options.url, "POST /v1/completions", self.requests[kind])
        match drawn.randrange(3):
            case 1:
                await asyncio.sleep(drawn.random() * self.options.stays)
            case 2:
                await reader.read(1)
        if drawn.random() < 0.5:  # a reset, and no orderly end
            made = writer.get_extra_info("socket")
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.close()
        return "left"

    def note(self) -> None:
        """Keeps and prints what the server has now."""
        done, seconds = self.counts.total(), time.monotonic() - self.began
        with contextlib.suppress(OSError, LookupError):  # it has ended
            self.memory.append((done, process.memory(self.options.pid)))
            used = f"{process.processor_seconds(self.options.pid):.1f} CPU s"
            held = f"{self.memory[-1][1] / MEGABYTE:.2f} MB"
            print(f"{seconds:7.1f} s", dict(self.counts), held, used, sep="  ", flush=True)


async def sent(
    url: str, what: str, content: bytes = b""
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A request on a connection of its own; `what` is its method and path."""
    at = urlsplit(url)
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    head = f"{what} HTTP/1.1\r\nHost: {at.netloc}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    writer.write(head.encode() + content)
    await writer.drain()
    return reader, writer


async def idle(url: str) -> str:
    """What the server still holds some seconds after the last request; "" of an idle one."""
    names, held = ("requests_running", "requests_waiting", "cache_usage_ratio"), ["no metrics"]
    until = time.monotonic() + SETTLE_SECONDS
    while held and time.monotonic() < until:
        reader, writer = await sent(url, "GET /metrics")
        _, headers = await read_head(reader)
        content = b"".join([piece async for piece in read_body(reader, headers)])
        writer.close()
        wanted = tuple(f"llama_jax_{name} " for name in names)
        lines = [line for line in content.decode().splitlines() if line.startswith(wanted)]
        held = [line for line in lines if not line.endswith(" 0")] or ["?"] * (3 - len(lines))
        await asyncio.sleep(0.2)
    return ", ".join(held)


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = argparse.ArgumentParser(prog="bench.soak", description=__doc__.splitlines()[0])
    add = found.add_argument
    add("--url", required=True, help="the server's, without /v1")
    add("--pid", type=int, required=True, help="its process, whose memory is watched")
    add("--requests", type=int, default=10_000, help="how many (10,000)")
    add("--minutes", type=float, help="no more are sent after so many")
    add("--clients", type=int, default=16, help="each sends one request after the other (16)")
    add("--pause", type=float, default=0.0, help="mean seconds between a client's requests (0)")
    add("--leaves", type=float, default=0.0, help="the part of requests whose client leaves (0)")
    add("--stays", type=float, default=0.1, help="the most seconds until it does (0.1)")
    add("--timeout", type=float, default=60.0, help="an answer that takes longer has hung (60)")
    add("--growth", type=float, default=5.0, help="MB that it may gain after the first note (5)")
    add("--every", type=int, default=1000, help="requests between two notes (1,000)")
    add("--term", type=int, help="SIGTERM to the process after so many requests")
    add("--seed", type=int, default=0, help="of all that is drawn (0)")
    return found


def main(arguments: list[str] | None = None) -> None:
    """Runs; exits with 1 where something was lost, changed, held up or kept."""
    options = parser().parse_args(arguments)
    soak = Soak(options, requests_of(options.seed))
    asyncio.run(soak.run())
    wrong = [f"{count} times: {why}" for why, count in soak.errors.most_common(20)]
    if not options.term:
        if held := asyncio.run(idle(options.url)):
            wrong.append(f"the server still has {held}")
        grown = (soak.memory[-1][1] - soak.memory[min(1, len(soak.memory) - 1)][1]) / MEGABYTE
        print(f"memory grew by {grown:.2f} MB after request {soak.memory[1][0]:,}")
        if grown > options.growth:
            wrong.append(f"that is more than {options.growth:g} MB")
    print("\n".join(wrong) or f"all well: {dict(soak.counts)}")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
