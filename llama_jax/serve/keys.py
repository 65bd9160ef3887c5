"""Who may ask: keys, and the names under which a server on this machine may be called."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from llama_jax.serve.openai.errors import ApiError

VARIABLE = "LLAMA_JAX_API_KEYS"


def read_keys(file: Path | None) -> tuple[bytes, ...]:
    """The keys in a file, one a line, and those in $LLAMA_JAX_API_KEYS, divided by commas."""
    lines = [] if file is None else _text_of(file).splitlines()
    kept = [line.strip() for line in lines if not line.lstrip().startswith("#")]
    if file is not None and not any(kept):
        raise ValueError(f"{file} has no keys; write one a line, or leave the option out")
    given = [*kept, *(one.strip() for one in os.environ.get(VARIABLE, "").split(","))]
    return tuple(key.encode(errors="surrogateescape") for key in given if key)


def _text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:  # which would print the keys
        raise ValueError(
            f"{file}: byte {error.start + 1} is not UTF-8; save the file as UTF-8"
        ) from None


def check_key(keys: Iterable[bytes], authorization: str) -> None:
    """A 401 unless the header has one of the keys, or there are none to have.

    Every key is compared, each in a time that says nothing of how much of it was right.
    """
    keys = tuple(keys)
    if not keys:
        return
    kind, _, given = authorization.partition(" ")
    offered = given.strip().encode("latin-1")
    found = [hmac.compare_digest(key, offered) for key in keys]
    if kind.lower() != "bearer" or not any(found):
        said = "the request has none of this server's keys; send Authorization: Bearer KEY"
        raise ApiError(401, said, code="invalid_api_key")


def is_local(host: str) -> bool:
    """Whether an address to listen at is of this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def check_host(host: str) -> None:
    """A 403 unless a server that this machine alone can reach is called by a local name.

    A page in a browser may point a name of its own at 127.0.0.1, and read what is answered.
    """
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    if not is_local(name):
        raise ApiError(
            403,
            f"the Host {host!r:.80} is not this machine's; call the server localhost, or let it "
            "listen to others by --host",
            code="wrong_host",
        )
