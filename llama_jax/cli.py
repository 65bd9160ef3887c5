"""`llama-jax convert | generate`: the package from a shell.

Text goes to stdout, everything about it to stderr. Heavy imports wait until a command needs them,
so that `--help` and a mistyped path answer at once.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

if TYPE_CHECKING:
    from llama_jax.checkpoint.convert import Conversion
    from llama_jax.config import Config
    from llama_jax.generate import Delta

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="LLaMA checkpoints in JAX: convert them, generate from them.",
)
stderr = Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback()
def _commands() -> None:
    """Keeps the commands' names even where there is only one."""


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Directory with params.json, consolidated.*.pth")],
    destination: Annotated[Path, typer.Argument(help="Directory to write; must not exist")],
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16; default: as stored")
    ] = None,
    max_seq_len: Annotated[
        int | None, typer.Option(help="Context length, which Meta's files do not say", min=1)
    ] = None,
    rope_factor: Annotated[
        float | None, typer.Option(help="Factor of Llama 3.1's RoPE scaling (3.1: 8, 3.2: 32)")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a checkpoint at the destination")
    ] = False,
) -> None:
    """Convert Meta's checkpoint to a native one, ready for `llama_jax.load`."""
    from llama_jax.checkpoint.convert import convert

    with _plain_errors(), _progress_bar(f"converting {source}") as update:
        done = convert(
            source,
            destination,
            dtype=dtype,
            max_seq_len=max_seq_len,
            rope_factor=rope_factor,
            overwrite=overwrite,
            progress=update,
        )
    _report(done, destination)


@app.command()
def generate(
    checkpoint: Annotated[Path, typer.Argument(help="A native checkpoint or Meta's directory")],
    prompts: Annotated[
        list[str] | None, typer.Argument(help='One or more texts; "" starts from bos alone')
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="One prompt a line; - for stdin")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=0)] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", "-t", help="0 takes the likeliest token", min=0.0)
    ] = 0.8,
    top_p: Annotated[float, typer.Option("--top-p", "-p", min=0.0, max=1.0)] = 0.95,
    seed: Annotated[
        int, typer.Option("--seed", "-s", help="Of the first prompt; +1 each", min=0)
    ] = 0,
    dtype: Annotated[
        str | None, typer.Option(help="Default: float32 on CPU, bfloat16 on a GPU")
    ] = None,
    ids: Annotated[
        bool, typer.Option("--ids", help="Prompts are token ids, and so is what is printed")
    ] = False,
    echo: Annotated[bool, typer.Option(help="Print each prompt before its completion")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a prompt, when all are done")
    ] = False,
) -> None:
    """Generate text from a checkpoint, printed as it comes."""
    with _plain_errors():
        texts = _read_prompts(prompts, file)
        with _status(f"loading {checkpoint}"):
            import llama_jax

            params = llama_jax.load(checkpoint, dtype=dtype)
        deltas = llama_jax.stream(
            params,
            [_parse_ids(text) for text in texts] if ids else texts,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_p=top_p,
            seed=[seed + row for row in range(len(texts))],
        )
        speed = _Speed()
        live = speed.watch(deltas)
        if as_json:
            _print_json(texts, live, ids)
        else:
            _print_text(texts, live, ids, echo)
        stderr.print(speed.summary(), style="dim")


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `llama-jax` and of the scripts in tools/."""
    try:
        app(args=arguments)
    except BrokenPipeError:  # `llama-jax generate ... | head`: whoever read has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _read_prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    found = list(prompts or [])
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        found += [line for line in text.splitlines() if line.strip()]
    if not found:
        raise ValueError('no prompt; pass one ("" starts from bos alone), or --file PROMPTS')
    return found


def _parse_ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError:
        raise ValueError(f"--ids takes token ids such as '1 15043 3186', not {text!r}") from None


def _print_text(texts: list[str], deltas: Iterator[Delta], ids: bool, echo: bool) -> None:
    """Prints the rows one below the other, each as it comes: a later row waits for its turn."""
    waiting = [texts[row] if echo else "" for row in range(len(texts))]
    ended = [False] * len(texts)
    turn = 0
    for delta in deltas:
        new = "".join(f" {token}" for token in delta.tokens) if ids else delta.text
        waiting[delta.row] += new
        ended[delta.row] = delta.finish_reason is not None
        while turn < len(texts):
            sys.stdout.write(waiting[turn])
            sys.stdout.flush()
            waiting[turn] = ""
            if not ended[turn]:
                break
            turn += 1
            sys.stdout.write("\n\n" if turn < len(texts) else "\n")


def _print_json(texts: list[str], deltas: Iterator[Delta], ids: bool) -> None:
    rows: list[dict] = [{"prompt": text, "text": "", "tokens": []} for text in texts]
    for delta in deltas:
        rows[delta.row]["text"] += delta.text
        rows[delta.row]["tokens"] += delta.tokens
        rows[delta.row]["finish_reason"] = delta.finish_reason
    for row in rows:
        print(json.dumps({k: v for k, v in row.items() if not (ids and k == "text")}))


class _Speed:
    """Watches a stream: when the first token came, and how fast the others followed."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = self.last = 0.0
        self.tokens = self.rows = 0

    def watch(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(_status("compiling the model for prompts of this length"))
            for delta in deltas:
                waiting.close()
                self.last = time.perf_counter() - self.started
                self.first = self.first or self.last
                self.tokens += len(delta.tokens)
                self.rows = max(self.rows, delta.row + 1)
                yield delta

    def summary(self) -> str:
        # Each row's first token is the prompt's work, and came when compiling was over.
        followed, seconds = self.tokens - self.rows, self.last - self.first
        text = f"{self.tokens} tokens; the first after {self.first:.2f} s, compiling included"
        if followed > 0 and seconds > 0:
            text += f", the others at {followed / seconds:,.1f} tokens/s"
        return text


def _report(done: Conversion, destination: Path) -> None:
    """What a person wants to check of a conversion."""
    from llama_jax.checkpoint.family import family, parameter_count

    source, written = done.source, done.written
    c = source.config
    tied = ", output tied to the embedding" if c.tie_embeddings else ""
    rows = {
        "model": family(c),
        "parameters": f"{parameter_count(c):,}",
        "layers": f"{c.n_layers}, dim {c.dim}, feed-forward {c.hidden_dim}",
        "heads": f"{c.n_heads} query, {c.n_kv_heads} key-value, of {c.head_dim}",
        "vocabulary": f"{c.vocab_size:,}{tied}",
        "RoPE": _rope(c),
        "context": f"{c.max_seq_len:,} positions",
        "dtype": _dtypes({t.dtype.name for t in source.tensors.values()}, set(written.dtypes)),
        "tokenizer": str(source.tokenizer or "none found; the checkpoint takes token ids"),
        "written": f"{written.bytes / 1e6:,.1f} MB in {written.seconds:.1f} s to {destination}",
    }
    for name, value in rows.items():
        print(f"{name:>12}  {value}")
    for note in source.notes:
        print(f"{'note':>12}  {note}")
    for warning in written.warnings:
        stderr.print(f"warning: {warning}", style="yellow")


def _rope(c: Config) -> str:
    from llama_jax.config import LinearScaling, Llama3Scaling

    theta = f"theta {c.rope_theta:,.0f}"
    match c.rope_scaling:
        case LinearScaling(factor):
            return f"{theta}, linear scaling by {factor:g}"
        case Llama3Scaling(factor=factor, original_max_seq_len=original):
            return f"{theta}, Llama 3 scaling by {factor:g} beyond {original:,} positions"
    return theta


def _dtypes(before: set[str], after: set[str]) -> str:
    read, wrote = (" and ".join(sorted(names)) for names in (before, after))
    return read if read == wrote else f"{wrote}, from {read}"


@contextlib.contextmanager
def _progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, moved by calling it with bytes done and bytes in all."""
    columns = TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=stderr, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _status(message: str) -> contextlib.AbstractContextManager[object]:
    """Says on stderr what a wait is for: a spinner on a terminal, one line elsewhere."""
    if stderr.is_terminal:
        return stderr.status(message + " ...")
    stderr.print(message + " ...")
    return contextlib.nullcontext()


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """A user's mistake ends in one line that says the way out, not in a traceback."""
    try:
        yield
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        stderr.print(f"error: {error}", style="red", markup=False)
        raise typer.Exit(1) from error


if __name__ == "__main__":
    main()
