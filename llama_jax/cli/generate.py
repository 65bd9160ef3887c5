"""`llama-jax generate`."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_jax import distributed
from llama_jax.cli import options
from llama_jax.cli.console import plain_errors, print_json, status, stderr
from llama_jax.cli.devices import Devices, over_devices

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.generation.prompts import Prompt
    from llama_jax.generation.results import Completion, Delta
    from llama_jax.weights.params import Params


@dataclasses.dataclass(frozen=True)
class Sampling(options.Sampling):
    """What can be asked of texts that a program reads, and not of a conversation."""

    presence_penalty: Annotated[float, typer.Option(help="0 is none")] = 0.0
    frequency_penalty: Annotated[float, typer.Option(help="0 is none")] = 0.0
    stop: Annotated[
        list[str] | None, typer.Option(help="A string that ends the text; may be repeated")
    ] = None
    seed: Annotated[
        int,
        typer.Option("--seed", "-s", help="Of the first prompt; +1 each", min=0, max=2**32 - 1),
    ] = 0
    logprobs: Annotated[
        int | None, typer.Option(help="With --json: this many likeliest at each token", min=0)
    ] = None


@over_devices
def generate(
    checkpoint: options.Checkpoint,
    prompts: Annotated[
        list[str] | None, typer.Argument(help='One or more texts; "" starts from bos alone')
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="One prompt a line; - for stdin")
    ] = None,
    *,
    sampling: Sampling,
    dtype: options.Dtype = None,
    cache: options.Cache = True,
    ids: Annotated[
        bool, typer.Option("--ids", help="Prompts are token ids, and so is what is printed")
    ] = False,
    echo: Annotated[bool, typer.Option(help="Print each prompt before its completion")] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object a prompt, when all are done")
    ] = False,
    devices: Devices,
) -> None:
    """Generate text from a checkpoint, printed as it comes."""
    with plain_errors():
        if sampling.logprobs is not None and not as_json:
            raise ValueError(f"--logprobs {sampling.logprobs} is printed as JSON alone; add --json")
        texts = distributed.from_first(lambda: _read_prompts(prompts, file))
        given = [_parse_ids(text) for text in texts] if ids else texts
        import llama_jax

        seeds = [(sampling.seed + row) % 2**32 for row in range(len(texts))]
        asked: Any = {"settings": sampling.settings(), "seed": seeds}

        def prepare(shapes: Params) -> Iterator[None]:
            from llama_jax.generation.generate import prepare

            return prepare(shapes, given, **asked)

        def sizes(source: Source) -> tuple[int, int]:
            _check_tokenizer(checkpoint, source.tokenizer, ids)
            return _cache_sizes(source, given, sampling.max_new_tokens)

        params, ready = devices.load_ahead(checkpoint, dtype, sizes, prepare)
        _check_tokenizer(checkpoint, params.tokenizer, ids)
        if as_json:
            ready()
            with status("generating, compiling first"):
                try:
                    done = llama_jax.generate(params, given, **asked)
                except llama_jax.NaNLogitsError as error:
                    _print_completions(texts, error.results)
                    raise
            _print_completions(texts, done)
        else:
            speed = _Speed()
            deltas = llama_jax.stream(params, given, **asked)
            _print_text(texts, speed.watch(_once(ready, deltas)), ids, echo)
            stderr.print(speed.summary(), style="dim")


def _once(ready: Callable[[], None], deltas: Iterator[Delta]) -> Iterator[Delta]:
    """The first of `deltas`, then, once all is `ready`, the others."""
    for delta in deltas:
        yield delta
        ready()


def _check_tokenizer(checkpoint: Path, tokenizer: Path | None, ids: bool) -> None:
    if tokenizer is None and not ids:
        raise ValueError(f"{checkpoint} has no tokenizer; pass token ids, and --ids")


def _cache_sizes(source: Source, prompts: Sequence[Prompt], room: int) -> tuple[int, int]:
    """Rows and positions of the largest cache that these prompts can need."""
    from llama_jax.generation.limits import MAX_ROWS, final_slots, power_of_two
    from llama_jax.generation.prompts import encode
    from llama_jax.tokenizer import load_tokenizer

    tokenizer = None if source.tokenizer is None else load_tokenizer(source.tokenizer)
    config = source.config
    lengths = [len(encode(config, prompt, i, tokenizer)) for i, prompt in enumerate(prompts)]
    rows = min(power_of_two(len(prompts)), MAX_ROWS)
    return rows, final_slots(max(lengths), room, config.max_seq_len)


def _read_prompts(prompts: list[str] | None, file: Path | None) -> list[str]:
    found = list(prompts or [])
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
        # Not `splitlines`, to which a form feed and U+2028 are ends of a line too.
        found += [line for line in text.split("\n") if line.strip()]
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


def _print_completions(texts: list[str], completions: list[Completion]) -> None:
    for text, done in zip(texts, completions, strict=True):
        row = {"prompt": text, **dataclasses.asdict(done)}
        print_json({k: v for k, v in row.items() if v is not None})


class _Speed:
    """Watches a stream: when the first token came, and how fast they came once all was compiled."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.first = 0.0
        self.tokens = 0
        self._gains: Counter[int] = Counter()  # how often each row has gained something
        self._steady = self._last = 0.0
        self._followed = 0

    def watch(self, deltas: Iterator[Delta]) -> Iterator[Delta]:
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(status("getting the model ready for prompts of this length"))
            for delta in deltas:
                waiting.close()
                self._note(delta, time.perf_counter() - self.started)
                yield delta

    def _note(self, delta: Delta, now: float) -> None:
        """The prefill gives a row's first tokens, and the loop, compiled meanwhile, its second."""
        self.first, self._last = self.first or now, now
        self.tokens += len(delta.tokens)
        self._gains[delta.row] += 1
        if self._gains[delta.row] == 2 and not self._steady:
            self._steady = now
        if self._gains[delta.row] > 2:
            self._followed += len(delta.tokens)

    def summary(self) -> str:
        if not self.tokens:
            return "no tokens"
        text = f"{self.tokens} tokens; the first after {self.first:.2f} s"
        seconds = self._last - self._steady
        if self._followed and seconds > 0:
            text += f", then {self._followed / seconds:,.1f} tokens/s"
        return text
