"""`llama-jax chat`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llama_jax import distributed
from llama_jax.cli import options
from llama_jax.cli.chat_commands import Session, command_in, run_command
from llama_jax.cli.chat_input import Reader, reader
from llama_jax.cli.compiling import notice_compiling, unbroken
from llama_jax.cli.console import FAILED, print_error, said, status, stderr
from llama_jax.cli.description import say_notes
from llama_jax.cli.devices import Devices
from llama_jax.cli.dialogs import check_dialogs, format_notes
from llama_jax.cli.errors import in_options, leave_at_once
from llama_jax.cli.own_model import ChatModel
from llama_jax.cli.processes import over_devices
from llama_jax.cli.sampling import Sampling
from llama_jax.cli.speed import counted
from llama_jax.cli.text_input import argument

if TYPE_CHECKING:
    from llama_jax.generation.chat import Conversation
    from llama_jax.generation.settings import SamplingSettings
    from llama_jax.weights.params import Params

USUAL = Sampling(max_new_tokens=1024, temperature=0.6, top_p=0.9)


@over_devices
def chat(
    checkpoint: ChatModel = None,
    system: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="The system message: how the model is to answer"),
    ] = None,
    *,
    sampling: Sampling = USUAL,
    weights: options.Weights,
    kv_cache: options.KVCache = options.KVCacheKind.WHOLE,
    no_cache: options.NoCache = False,
    devices: Devices,
) -> None:
    """Talk with a chat model, one that was trained on dialogs.

    /help lists what else can be typed. From a pipe, each line is a message, and stdout is the
    answers alone.
    """
    settings = sampling.settings()
    system = None if system is None else argument(system, "--system")
    import llama_jax
    from llama_jax.checkpoint.named import find_checkpoint
    from llama_jax.checkpoint.reading import open_checkpoint
    from llama_jax.tokenizer import shared_tokenizer

    place = find_checkpoint(checkpoint)
    source = open_checkpoint(place)
    tokenizer = None if source.tokenizer is None else shared_tokenizer(source.tokenizer)
    check_dialogs(source, tokenizer, otherwise="use `llama-jax generate`")
    say_notes([*source.notes_with(tokenizer), *format_notes(source, tokenizer)])
    ahead = _Ahead(settings, kv_cache)
    sizes = lambda source: (1, source.config.max_seq_len)  # noqa: E731
    typed = reader()
    prepare = ahead.prepare if typed.is_terminal else None  # a pipe's first question is there
    params, ready = devices.load_ahead(place, weights, sizes, prepare)
    kind = kv_cache.cache
    talk = llama_jax.Conversation(params, system=system, settings=settings, cache=kind)
    _talk(talk, typed, ready)
    if ahead.is_compiling:
        leave_at_once(0)


class _Ahead:
    """What compiles a conversation's programs in a thread, while somebody types."""

    def __init__(self, settings: SamplingSettings, kv_cache: options.KVCacheKind) -> None:
        self._settings, self._cache = settings, kv_cache.cache
        self.is_compiling = False

    def prepare(self, shapes: Params) -> Iterator[None]:
        """The steps of the thread; at the first yield the model may be talked with."""
        from llama_jax.generation.turn import prepare_turns

        self.is_compiling = True
        try:
            yield
            yield from prepare_turns(shapes, self._settings, cache=self._cache)
        finally:
            self.is_compiling = False


def _talk(conversation: Conversation, typed: Reader, ready: Callable[[], None]) -> None:
    """Answers what is typed; the programs of the first answer are there once `ready` returns."""
    if not distributed.is_first():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 0 says when to stop
    session, notice = Session(conversation), notice_compiling()
    if typed.is_terminal:
        stderr.print("Type a message, or /help.", style="dim")
    while True:
        with notice.held():
            text = distributed.from_first(typed.message)
        if text is None:
            break
        try:
            name, rest = command_in(text)
            question = text if name is None else run_command(session, name, rest)
        except (ValueError, OSError) as error:
            _fail(session, said(error))
            continue
        if session.over:
            break
        if question and question.strip():
            _answer(session, session.with_files(question), ready)
    if (session.failed or typed.failed) and not typed.is_terminal:
        raise typer.Exit(FAILED)


def _fail(session: Session, message: str) -> None:
    session.failed = True
    print_error(message)


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Counts Ctrl-C, and raises it only the second time: between tokens is time enough.

    Raised inside a step of JAX's it may come out as a ValueError.
    """
    counted: list[int] = []
    if not distributed.is_first():
        yield counted
        return

    def count(number: int, _: object) -> None:
        if counted:
            raise KeyboardInterrupt
        counted.append(number)

    before = signal.signal(signal.SIGINT, count)
    try:
        yield counted
    finally:
        signal.signal(signal.SIGINT, before)


def _answer(session: Session, question: str, ready: Callable[[], None]) -> None:
    conversation = session.conversation
    forgotten = conversation.forgotten
    answer = conversation.ask(question)
    tokens, reason = 0, None
    try:
        with _interrupts() as interrupts, contextlib.ExitStack() as waiting:
            waiting.enter_context(status("thinking"))
            ready()
            for delta in unbroken(answer):
                waiting.close()
                tokens, reason = tokens + len(delta.tokens), delta.finish_reason
                stops = distributed.from_first(lambda: bool(interrupts))  # asked once
                sys.stdout.write(delta.text + " ..." * stops)
                sys.stdout.flush()
                if stops:
                    break
    except KeyboardInterrupt:
        distributed.fail("interrupted")
        sys.stdout.write(" ...")
    except ValueError as error:
        _fail(session, in_options(str(error), {"dtype": "--dtype"}, {}))
        return
    finally:
        answer.close()
    print(flush=True)
    note = f"read {counted(conversation.prefilled)}, wrote {tokens}"
    if conversation.forgotten > forgotten:
        note += f"; the context is full, so the {conversation.forgotten} oldest turns are forgotten"
    if reason == "length":
        room = conversation.settings.max_new_tokens
        ended = f"--max-new-tokens {room}" if tokens >= room else "the end of the context"
        note += f"; {ended} ended the answer"
    stderr.print(note, style="dim")
