"""The roll call: before JAX starts, every process tells process 0 that it is there.

It is called on the coordinator's own port, which JAX's service takes over afterwards. Process 0
sends whoever connects a word of its own, and a process answers with its number and a proof: the
word signed with the job's secret, which the environment holds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hmac
import os
import socket
import time
from typing import Any, NoReturn

from llama_jax.distributed.arrivals import hellos, listener
from llama_jax.distributed.connection import MAX_MESSAGE, Line, words

SECRET = "LLAMA_JAX_JOB_SECRET"
"""The environment variable whose value all processes of a job share. By default it is empty."""
MAX_PROCESSES = 1 << 20


@dataclasses.dataclass(frozen=True)
class Hello:
    """What a process says of itself."""

    process: int
    processes: int
    host: str
    proven: bool


def gather(port: int, processes: int, seconds: float) -> tuple[dict[int, Line], dict[int, str]]:
    """Process 0's part: a line to every other process, and the host that each is on.

    What else connects is ignored. ValueError, here and in all that came, where one has not come in
    time.
    """
    lines: dict[int, Line] = {}
    hosts: dict[int, str] = {}
    until, unproven = time.monotonic() + seconds, 0
    with listener(port) as heard, contextlib.closing(hellos(heard, until)) as arrived:
        while len(lines) < processes - 1:
            if (came := next(arrived, None)) is None:
                _refuse(list(lines.values()), _never_came(lines, processes, seconds, unproven))
            line, word, message = came
            if (hello := read_hello(message, word)) is None:
                line.close()
            elif not hello.proven:
                unproven += 1
                line.send(over=f"process 0 has another {SECRET}; give all processes the same")
                line.close()
            elif problem := _problem(hello, processes, lines):
                _refuse([*lines.values(), line], problem)
            else:
                lines[hello.process], hosts[hello.process] = line, hello.host
    for line in lines.values():
        line.limit = MAX_MESSAGE
        line.connection.settimeout(None)
        line.send(complete=True)
    return lines, hosts


def report(
    address: tuple[str, int], process: int, processes: int, seconds: float
) -> tuple[dict[int, Line], dict[int, str]]:
    """Any other process's part: its line to process 0, once everybody is there."""
    line = Line(_connected(address, time.monotonic() + seconds, seconds))
    # Process 0 may have begun to wait later, and is the one to say who is absent.
    until = time.monotonic() + seconds + 10
    while line.open and (left := until - time.monotonic()) > 0:
        line.connection.settimeout(left)
        line.receive()
        for message in line.take():
            if "word" in message:
                line.send(**hello_to(process, processes, message["word"]))
            elif message.get("complete"):
                line.connection.settimeout(None)
                return {0: line}, {0: address[0]}
            elif "over" in message:
                line.close()
                raise ValueError(words(message["over"]))
    where, ended = f"process 0 at {address[0]}:{address[1]}", not line.open
    line.close()
    if ended:
        raise ValueError(f"{where} ended before all {processes} processes had come")
    raise ValueError(f"{where} does not answer; does another program listen there?")


def hello_to(process: int, processes: int, word: object) -> dict[str, Any]:
    """What a process says of itself, with a proof that it has the job's secret."""
    host = socket.gethostname()
    proof = _proof(word, process, processes, host)
    return {"process": process, "processes": processes, "host": host, "proof": proof}


def _proof(word: object, process: int, processes: int, host: str) -> str:
    secret = os.fsencode(os.environ.get(SECRET, ""))
    return hmac.digest(secret, _bytes(f"{word} {process} {processes} {host}"), "sha256").hex()


def _bytes(text: str) -> bytes:
    """A text that a stranger may have sent: JSON can hold half a letter, which UTF-8 cannot."""
    return text.encode(errors="surrogatepass")


def read_hello(message: dict[str, Any], word: str) -> Hello | None:
    """What a process says; None where no process of ours says it."""
    names = ("process", "processes", "host", "proof")
    process, processes, host, proof = (message.get(name) for name in names)
    if type(process) is not int or type(processes) is not int:
        return None
    if not 0 < process < processes <= MAX_PROCESSES:
        return None
    if not isinstance(host, str) or not isinstance(proof, str):
        return None
    proven = hmac.compare_digest(_bytes(proof), _bytes(_proof(word, process, processes, host)))
    return Hello(process, processes, words(host), proven)


def _problem(hello: Hello, processes: int, lines: dict[int, Line]) -> str:
    """What is wrong with a process that has proven to be of this job."""
    number = hello.process
    if hello.processes != processes:
        return (
            f"process {number} (on {hello.host}) counts {hello.processes} processes and process 0 "
            f"counts {processes}; start all with the same number"
        )
    if number in lines:
        return f"two processes are process {number}; give each a number of its own"
    return ""


def _refuse(lines: list[Line], problem: str) -> NoReturn:
    for line in lines:
        line.send(over=problem)
        line.close()
    raise ValueError(problem)


def _never_came(lines: dict[int, Line], processes: int, seconds: float, unproven: int) -> str:
    absent = [i for i in range(1, processes) if i not in lines]
    shown = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
    named = f"process {shown}" if len(absent) == 1 else f"processes {shown}"
    others = f"; {unproven} that called had another {SECRET}" if unproven else ""
    return (
        f"{named} of {processes} never came within {seconds:g} s{others}; see why in its own "
        "output, or wait longer with a start timeout"
    )


def _connected(address: tuple[str, int], until: float, seconds: float) -> socket.socket:
    while True:
        try:
            return socket.create_connection(address, timeout=max(0.1, until - time.monotonic()))
        except OSError as error:
            if time.monotonic() > until:
                raise ValueError(
                    f"process 0 never came: {address[0]}:{address[1]} did not answer within "
                    f"{seconds:g} s ({error}); start it, or name the address where it is"
                ) from error
            time.sleep(0.2)
