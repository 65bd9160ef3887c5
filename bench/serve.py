"""A server that speaks OpenAI's protocol, or two in turns, under load: `python -m bench.serve`.

`python -m bench.serve --url http://127.0.0.1:8000 --text FILE --tokenizer FILE`: the prompts are
cut from the text, and the same seed asks the same again. With `--against URL` each round asks both
servers the same, one after the other, and every number gets a ratio; with `--against-engine` the
second is an engine in this process, without HTTP. `bench/load/measured.py` says what each number
means. No JAX is needed but for such an engine.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

from bench.load import process
from bench.load.client import Answer, Server
from bench.load.direct import Direct
from bench.load.drive import Load, answers
from bench.load.measured import errors, summary
from bench.load.mix import NEW, Mix
from bench.load.options import parser
from bench.load.report import table
from bench.record import command, keep, source


@dataclasses.dataclass
class _Taken:
    """What was measured of one server so far."""

    server: Server | Direct
    pid: int | None
    answers: list[Answer] = dataclasses.field(default_factory=list)
    rounds: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    memory: list[int] = dataclasses.field(default_factory=list)
    processor: float = 0.0

    def told(self) -> dict[str, Any]:
        """For the JSON file and the table."""
        seconds = sum(one["seconds"] for one in self.rounds)
        found: dict[str, Any] = {
            "model": self.server.model,
            "body": self.server.body,
            "all": summary(self.answers, seconds),
            "rounds": self.rounds,
            "errors": errors(self.answers),
        }
        if self.pid:
            new = found["all"]["new_tokens"]
            per_token = self.processor / max(new, 1)
            used = {"before": self.memory[0], "after": self.memory[-1], "per_token": per_token}
            found["process"] = {"pid": self.pid, "memory": self.memory, **used}
        return found


def main(arguments: list[str] | None = None) -> None:
    """Measures as the options say, prints a table and keeps the JSON."""
    given = sys.argv[1:] if arguments is None else arguments
    options = parser(__doc__.splitlines()[0]).parse_args(given)
    try:
        result = asyncio.run(_run(options, given))
    except (OSError, ValueError, LookupError) as error:
        sys.exit(f"error: {error}")
    print(table(result))
    if all(not one["all"]["tokens_per_second"] for one in result["servers"].values()):
        sys.exit("error: no request was answered")


async def _run(options: argparse.Namespace, given: list[str]) -> dict[str, Any]:
    load = _load(options)
    urls = [options.url, *([options.against] if options.against else [])]
    if len(set(urls)) < len(urls):
        raise ValueError(f"--against {options.against} is --url; name another server")
    of = zip(urls, (options.body, options.against_body), strict=False)
    taken = [
        _Taken(await _server(url, body, options), pid)
        for (url, body), pid in zip(of, (options.pid, options.against_pid), strict=False)
    ]
    if options.against_engine:
        taken.append(_Taken(Direct.load(options.against_engine), None))
    result = {
        "command": command(given, "bench.serve"),
        "date": datetime.date.today().isoformat(),
        "source": source(),
        "load": os.getloadavg(),
    }
    if options.warm_up:
        for one in taken:
            await answers(one.server, load, -1)
    for number in range(options.rounds):
        for one in taken if number % 2 == 0 else reversed(taken):
            await _measure(one, load, number)
        told = {one.server.url: one.told() for one in taken}
        result |= {"servers": told, "load_at_end": os.getloadavg()}
        if options.output:
            keep(options.output, result)
    return result


async def _measure(one: _Taken, load: Load, number: int) -> None:
    """One round of one server."""
    if one.pid and not one.memory:
        one.memory.append(process.memory(one.pid))
    before = process.processor_seconds(one.pid) if one.pid else 0.0
    own = time.process_time()
    found, seconds = await answers(one.server, load, number)
    own = time.process_time() - own
    one.answers += found
    one.rounds.append({**summary(found, seconds), "client_processor_seconds": own})
    if one.pid:
        one.processor += process.processor_seconds(one.pid) - before
        one.memory.append(process.memory(one.pid))


async def _server(url: str, body: dict[str, Any], options: argparse.Namespace) -> Server:
    server = Server(url, options.model, body, options.timeout)
    if server.model is None:
        server = dataclasses.replace(server, model=await server.first_model())
    return server


def _load(options: argparse.Namespace) -> Load:
    if options.rate is not None and not options.rate > 0:
        raise ValueError(f"--rate {options.rate:g} must be above 0")
    for name in ("requests", "rounds", "clients"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name} {getattr(options, name)} must be at least 1")
    if options.against_engine and (options.against or not options.tokenizer):
        raise ValueError("--against-engine takes the place of --against, and needs --tokenizer")
    text = options.text.read_text()
    pair = {name: tuple(getattr(options, name) or ()) or None for name in ("prompt", "new")}
    mix = Mix(
        _ids(options.tokenizer, text) if options.tokenizer else text,
        options.mix,
        pair["prompt"],
        pair["new"] or NEW,
        options.seed,
    )
    return Load(mix, options.requests, options.clients, options.rate)


def _ids(tokenizer: Path, text: str) -> list[int]:
    from llama_jax.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer).encode(text, bos=False, eos=False)


if __name__ == "__main__":
    main()
