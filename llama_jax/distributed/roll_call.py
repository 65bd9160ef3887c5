"""The roll call: before JAX starts, every process tells process 0 that it is there.

It is called on the coordinator's own port, which JAX's service takes over afterwards.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Any

from llama_jax.distributed.connection import Line


def gather(port: int, processes: int, seconds: float) -> tuple[dict[int, Line], dict[int, str]]:
    """Process 0's part: a line to every other process, and the host that each is on.

    ValueError, here and in all that came, where one has not come in time.
    """
    lines: dict[int, Line] = {}
    hosts: dict[int, str] = {}
    until = time.monotonic() + seconds
    with _listener(port, processes) as listener:
        while len(lines) < processes - 1:
            if arrived := _arrival(listener, until):
                line, hello = arrived
                number, problem = _checked(hello, processes, lines)
                if problem:
                    _refuse([*lines.values(), line], problem)
                lines[number], hosts[number] = line, str(hello.get("host"))
            if len(lines) < processes - 1 and time.monotonic() > until:
                absent = [i for i in range(1, processes) if i not in lines]
                _refuse(list(lines.values()), _never_came(absent, processes, seconds))
    for line in lines.values():
        line.connection.settimeout(None)
        line.send(complete=True)
    return lines, hosts


def report(
    address: tuple[str, int], process: int, processes: int, seconds: float
) -> tuple[dict[int, Line], dict[int, str]]:
    """Any other process's part: its line to process 0, once everybody is there."""
    until = time.monotonic() + seconds
    line = Line(_connected(address, until, seconds))
    line.send(process=process, processes=processes, host=socket.gethostname())
    # Process 0 may have begun to wait later, and is the one to say who is absent.
    until = time.monotonic() + seconds + 10
    for message in _messages(line, until):
        if message.get("complete"):
            line.connection.settimeout(None)
            return {0: line}, {0: address[0]}
        if "over" in message:
            line.close()
            raise ValueError(message["over"])
    where, ended = f"process 0 at {address[0]}:{address[1]}", not line.open
    line.close()
    if ended:
        raise ValueError(f"{where} ended before all {processes} processes had come")
    raise ValueError(f"{where} does not answer; does another program listen there?")


@contextlib.contextmanager
def _listener(port: int, processes: int) -> Iterator[socket.socket]:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        listener = socket.create_server(
            ("", port), family=family, backlog=processes, dualstack_ipv6=both
        )
    except OSError as error:
        raise ValueError(
            f"port {port} of this machine, the coordinator's, cannot be had: {error}; name another"
        ) from error
    with listener:
        yield listener


def _arrival(listener: socket.socket, until: float) -> tuple[Line, dict[str, Any]] | None:
    """The next process that calls, if one does in time; what else connects is ignored."""
    listener.settimeout(max(0.1, until - time.monotonic()))
    try:
        line = Line(listener.accept()[0])
    except TimeoutError:
        return None
    for hello in _messages(line, time.monotonic() + 2):
        if isinstance(hello.get("process"), int):
            return line, hello
    line.close()
    return None


def _messages(line: Line, until: float) -> Iterator[dict[str, Any]]:
    """What comes on a line until a time, or until something comes that is not ours."""
    with contextlib.suppress(ValueError, RecursionError):
        while line.open and (left := until - time.monotonic()) > 0:
            line.connection.settimeout(left)
            line.receive()
            yield from line.take()


def _checked(hello: dict[str, Any], processes: int, lines: dict[int, Line]) -> tuple[int, str]:
    """The number of a process that calls, and what is wrong with it."""
    number, host = hello["process"], hello.get("host")
    if hello.get("processes") != processes:
        return number, (
            f"process {number} (on {host}) counts {hello.get('processes')} processes and process 0 "
            f"counts {processes}; start all with the same number"
        )
    if not 0 < number < processes or number in lines:
        return number, f"two processes are process {number}; give each a number of its own"
    return number, ""


def _refuse(lines: list[Line], problem: str) -> None:
    for line in lines:
        line.send(over=problem)
        line.close()
    raise ValueError(problem)


def _never_came(absent: list[int], processes: int, seconds: float) -> str:
    shown = ", ".join(map(str, absent[:8])) + (" ..." if len(absent) > 8 else "")
    named = f"process {shown}" if len(absent) == 1 else f"processes {shown}"
    return (
        f"{named} of {processes} never came within {seconds:g} s; see why in its own output, "
        "or wait longer with a start timeout"
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
