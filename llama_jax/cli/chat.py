"""`llama-jax chat`."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from llama_jax import distributed
from llama_jax.cli import options
from llama_jax.cli.console import plain_errors, status, stderr
from llama_jax.cli.devices import Devices, over_devices

if TYPE_CHECKING:
    from llama_jax.generation.chat import Conversation

HELP = """/reset           forget the conversation
/system TEXT     begin again under another system message (none without TEXT)
/quit            leave, as Ctrl-D does; Ctrl-C stops an answer"""
USUAL = options.Sampling(max_new_tokens=1024, temperature=0.6, top_p=0.9)


@over_devices
def chat(
    checkpoint: options.Checkpoint,
    system: Annotated[str | None, typer.Option(help="The system message to begin with")] = None,
    *,
    sampling: options.Sampling = USUAL,
    dtype: options.Dtype = None,
    cache: options.Cache = True,
    devices: Devices,
) -> None:
    """Talk with an instruction-tuned model; /help lists what else can be typed."""
    with plain_errors():
        import llama_jax

        params = devices.load(checkpoint, dtype, lambda source: (1, source.config.max_seq_len))
        _talk(llama_jax.Conversation(params, system=system, settings=sampling.settings()))


def _talk(conversation: Conversation) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  arrow keys and history at the prompt
    if not distributed.is_first():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 0 says when to stop
    stderr.print("Type a message, or /help.", style="dim")
    while (line := distributed.from_first(_line)) is not None:
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command == "/help":
            stderr.print(HELP, style="dim")
        elif command == "/reset":
            first = conversation.messages[0] if conversation.messages else {}
            conversation.reset(first["content"] if first.get("role") == "system" else None)
            stderr.print("forgotten", style="dim")
        elif command == "/system":
            conversation.reset(rest.strip() or None)
            stderr.print("a new conversation under that system message", style="dim")
        elif command.startswith("/"):
            stderr.print(f"{command} is no command; /help lists them", style="yellow")
        elif line:
            _answer(conversation, line)


def _line() -> str | None:
    """What the person types next, or None at the end."""
    while True:
        try:
            return input("> ").strip()
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            stderr.print("\nCtrl-D or /quit leaves", style="dim")


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


def _answer(conversation: Conversation, line: str) -> None:
    forgotten = conversation.forgotten
    answer = conversation.ask(line)
    tokens = 0
    try:
        with _interrupts() as interrupts, contextlib.ExitStack() as waiting:
            waiting.enter_context(status("thinking"))
            for delta in answer:
                waiting.close()
                tokens += len(delta.tokens)
                sys.stdout.write(delta.text + " ..." * bool(interrupts))
                sys.stdout.flush()
                if distributed.from_first(lambda: bool(interrupts)):
                    break
    except KeyboardInterrupt:
        distributed.fail("interrupted")
        sys.stdout.write(" ...")
    except ValueError as error:
        stderr.print(f"error: {error}", style="red")
        return
    finally:
        answer.close()
    print()
    note = f"read {conversation.prefilled} tokens, wrote {tokens}"
    if conversation.forgotten > forgotten:
        note += f"; the context is full, so the {conversation.forgotten} oldest turns are forgotten"
    stderr.print(note, style="dim")
