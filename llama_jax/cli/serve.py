"""`llama-jax serve`."""

from __future__ import annotations

import gc
import importlib.util
import logging
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_jax.cli import options
from llama_jax.cli.console import in_utf8, stderr
from llama_jax.cli.description import say_notes
from llama_jax.cli.devices import Devices
from llama_jax.cli.dialogs import can_chat
from llama_jax.cli.errors import INTERRUPTED, leave_at_once
from llama_jax.cli.groups import grouped
from llama_jax.cli.own_model import OWN, OwnOrNamed
from llama_jax.cli.serve_options import Network, OneReplica, Requests

if TYPE_CHECKING:
    from llama_jax.serve.engine import Engine

YOUNG_OBJECTS = 10_000
"""New objects for which the collector of a server waits: it then looks for about a millisecond."""
_NEEDED = ("starlette", "uvicorn", "msgspec")


@grouped
def serve(
    checkpoint: OwnOrNamed = None,
    *,
    network: Network,
    requests: Requests,
    weights: options.Weights,
    kv_cache: options.KVCache = options.KVCacheKind.WHOLE,
    no_cache: options.NoCache = False,
    replica: OneReplica,
) -> None:
    """Answer OpenAI's clients over HTTP, and show a chat page.

    /v1/completions, /v1/chat/completions and /v1/models are as OpenAI's clients expect them; / is
    the page, /metrics is for Prometheus, and /openapi.json describes the rest. Many requests are
    worked on together. SIGTERM ends the server once it has answered what it accepted.
    """
    _check_installed()
    from llama_jax.serve.keys import read_keys
    from llama_jax.serve.listening import listen

    keys = read_keys(network.api_key_file)
    with listen(network.host, network.port) as listening:  # before the weights: it may be taken
        serving = checkpoint, listening, keys, network, requests
        _serve(*serving, weights=weights, kv_cache=kv_cache, replica=replica)


def _serve(
    checkpoint: str | None,
    listening: socket.socket,
    keys: tuple[bytes, ...],
    network: Network,
    requests: Requests,
    *,
    weights: options.Weights,
    kv_cache: options.KVCacheKind,
    replica: OneReplica,
) -> None:
    """Loads the model, and answers until a signal ends it."""
    from llama_jax.checkpoint.named import find_checkpoint
    from llama_jax.checkpoint.reading import open_checkpoint
    from llama_jax.generation.few_rows import for_few_rows
    from llama_jax.serve.engine import Engine
    from llama_jax.serve.programs import prepare
    from llama_jax.tokenizer import shared_tokenizer

    place = find_checkpoint(checkpoint)
    source = open_checkpoint(place)
    if (tokenizer_file := source.tokenizer) is None:
        raise ValueError(f"{place} has no tokenizer, and a server answers in text; put it there")
    if checkpoint is None:
        stderr.print(OWN, style="dim")
    devices = Devices(tensor=replica.tensor, cpu_devices=replica.cpu_devices)
    devices.set_up()
    sizes = lambda source: (requests.rows or 1, source.config.max_seq_len)  # noqa: E731
    gib = requests.cache_gib
    programs: dict[str, Any] = {
        "rows": requests.rows,
        "cache_bytes": None if gib is None else int(gib * 2**30),
        "cache": kv_cache.cache,
        "exact": requests.exact,
    }
    ahead = lambda shapes: prepare(for_few_rows(shapes), **programs)  # noqa: E731

    def meanwhile() -> None:
        """What Python does alone, while XLA takes in programs that are kept."""
        say_notes(source.notes_with(shared_tokenizer(tokenizer_file)))
        import llama_jax.serve.server  # noqa: F401  with uvicorn and the rest of HTTP

    params, _ = devices.load_ahead(place, weights, sizes, ahead, meanwhile)
    tokenizer = shared_tokenizer(tokenizer_file)
    with Engine(
        for_few_rows(params),
        **programs,
        tokenizer=tokenizer,
        share_prefixes=requests.prefix_cache,
        max_queued=requests.max_queued,
    ) as engine:
        name = in_utf8(network.name or name_of(checkpoint, place))
        _answer(engine, name, can_chat(source, tokenizer), network, keys, listening)


def _answer(
    engine: Engine,
    name: str,
    chats: bool,
    network: Network,
    keys: tuple[bytes, ...],
    listening: socket.socket,
) -> None:
    from llama_jax.serve.http import application
    from llama_jax.serve.keys import is_local
    from llama_jax.serve.listening import url_of
    from llama_jax.serve.openai.served import Served
    from llama_jax.serve.server import Server, serve

    local, url = is_local(network.host), url_of(listening)
    if not (local or keys):
        stderr.print(
            "warning: whoever reaches this machine can ask; --api-key-file asks for a key",
            style="yellow",
        )
    served = Served(engine, name, int(time.time()), chats)
    app, outer = application(served, keys=keys, local=local, origins=network.cors_origin or ())
    _log_to_stderr()
    stderr.print(f"compiling; {url}/ready says when {name} can be asked", style="dim")

    def ready() -> None:
        keep_what_is_there()
        print(f"{name} answers at {url}", flush=True)

    server = Server(app, outer, ready)
    serve(server, listening)
    if engine.failure is not None:
        raise ValueError(f"the engine failed: {engine.failure}")
    code = INTERRUPTED if server.interrupted else 0
    if code or engine.compiling:  # for a minute more, say, and nobody asks any more
        leave_at_once(code)


def keep_what_is_there() -> None:
    """Spares Python's collector the objects of a start, about half a million.

    It looks at all objects once a quarter as many new ones wait. Until then what requests leave in
    cycles would stay, and the look itself would hold up every stream. A command's collector waits
    for half a million new objects; a server's does not, because it must not grow.
    """
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)
    gc.collect()


def _check_installed() -> None:
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(
            f"a server needs {', '.join(missing)}; install what it needs by "
            "`pip install 'llama_jax[serve]'`"
        )


def name_of(checkpoint: str | None, place: Path) -> str:
    """What requests call the model: its name where it was named, or its folder's."""
    if checkpoint is None:
        return "stories"
    from llama_jax.checkpoint.named import NAMES

    given = checkpoint.removeprefix("hf:")
    if given != checkpoint or (given in NAMES and not Path(given).exists()):
        return given
    file = place.resolve()
    return file.stem if file.is_file() else file.name  # a folder's may have points: llama-3.2-1b


def _log_to_stderr() -> None:
    """A line a request, and what went wrong; never what was asked or answered."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("llama_jax.serve")
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.INFO)
