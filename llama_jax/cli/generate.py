"""`llama-jax generate`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_jax import distributed
from llama_jax.cli import options
from llama_jax.cli.compiling import unbroken
from llama_jax.cli.console import FAILED, USAGE, UsageError, status, stderr, typed
from llama_jax.cli.description import say_notes
from llama_jax.cli.devices import Devices
from llama_jax.cli.dialogs import check_dialogs, dialog_notes, is_instruct
from llama_jax.cli.form import Form
from llama_jax.cli.own_model import OWN, OwnOrNamed, named_and_prompts
from llama_jax.cli.processes import over_devices
from llama_jax.cli.prompts import Asked, Reading
from llama_jax.cli.requests import Maker, Request
from llama_jax.cli.sampling import TextSampling
from llama_jax.cli.speed import Speed
from llama_jax.cli.text_output import JsonRows, print_text

if TYPE_CHECKING:
    from llama_jax.checkpoint.source import Source
    from llama_jax.generation.prompts import Prompt
    from llama_jax.generation.results import Completion, Delta
    from llama_jax.generation.settings import SamplingSettings
    from llama_jax.tokenizer import Tokenizer
    from llama_jax.weights.params import Params

_output = functools.partial(typer.Option, rich_help_panel="Output")


@dataclasses.dataclass(frozen=True)
class Output:
    """What is printed."""

    num_samples: Annotated[int, _output(metavar="N", help="Completions of each prompt", min=1)] = 1
    echo: Annotated[
        bool,
        _output("--echo/--no-echo", help="Print each prompt before its completion, if it is text"),
    ] = True
    as_json: Annotated[
        bool,
        _output(
            "--json",
            help="Print one JSON object a completion, in the order of the prompts",
        ),
    ] = False


@over_devices
def generate(
    checkpoint: OwnOrNamed = None,
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT",
            help='Texts to continue; "" starts from nothing. Without any, stdin is one',
        ),
    ] = None,
    *,
    reading: Reading,
    sampling: TextSampling,
    form: Form,
    output: Output,
    weights: options.Weights,
    kv_cache: options.KVCache = options.KVCacheKind.WHOLE,
    no_cache: options.NoCache = False,
    devices: Devices,
) -> None:
    """Continue texts; answer questions with --chat.

    The first argument is a checkpoint if it has no space or is the path of something that exists.
    Otherwise all are prompts, and the model that comes with the package continues them.

    Text is printed as it comes, and everything about it goes to stderr. A prompt or a line of input
    that is wrong is an error on stderr, and costs no other.
    """
    as_json = output.as_json or reading.jsonl
    for name in ("logprobs", "prompt_logprobs"):
        if (value := getattr(sampling, name)) is not None and not as_json:
            raise UsageError(f"{name}={value} is printed as JSON alone; add --json")
    asked_form = form.read()
    named, texts = named_and_prompts(checkpoint, prompts or [])
    asked = [Asked(**one) for one in distributed.from_first(lambda: reading.read(texts))]
    from llama_jax.checkpoint.named import find_checkpoint
    from llama_jax.checkpoint.reading import open_checkpoint
    from llama_jax.tokenizer import shared_tokenizer

    settings, samples, place = sampling.settings(), output.num_samples, find_checkpoint(named)
    source = open_checkpoint(place)
    tokenizer = None if source.tokenizer is None else shared_tokenizer(source.tokenizer)
    _check_tokenizer(source, tokenizer, reading)
    if asked_form and tokenizer is None:
        raise UsageError(f"{source.path} has no tokenizer, and --json-schema and --regex need one")
    say_notes([*source.notes_with(tokenizer), *dialog_notes(asked, source, tokenizer)])
    if samples > 1 and settings.temperature == 0:
        say_notes(["at --temperature 0 all samples of a prompt are the same"])
    maker = Maker(source.config, tokenizer, settings, samples, reading.truncate)
    with typed():
        maker.check()
    requests = list(maker.requests(asked))
    if named is None:
        stderr.print(OWN, style="dim")
    model = _Model(place, devices, weights, kv_cache, requests, samples, asked_form)
    with _prompts_named(requests, samples):
        if as_json:
            rows = JsonRows(asked, requests, samples, tokenizer, in_order=not reading.jsonl)
            rows.print(model.finished())
        elif requests:
            speed = Speed()
            deltas = unbroken(speed.watch(model.stream()))
            print_text(requests, samples, deltas, ids=reading.ids, echo=output.echo)
            stderr.print(speed.summary(), style="dim")
    if failed := [one for one in asked if one.error is not None]:
        raise typer.Exit(USAGE if any(one.typed for one in failed) else FAILED)


@dataclasses.dataclass(frozen=True)
class _Model:
    """What is asked of a model, which is loaded for it."""

    checkpoint: Path
    devices: Devices
    weights: options.Weights
    kv_cache: options.KVCacheKind
    requests: Sequence[Request]
    samples: int
    form: dict[str, Any]

    def stream(self) -> Iterator[Delta]:
        """What each row gains, as it comes, once the model is loaded."""
        import llama_jax

        params, ready = self._load()
        deltas = llama_jax.stream(params, *self._asked, n=self.samples, **self._how)
        return itertools.chain(itertools.islice(deltas, 1), _after(ready, deltas))

    def finished(self) -> Iterator[tuple[int, Completion]]:
        """Each completion once it has ended."""
        from llama_jax.completions import as_finished

        if not self.requests:
            return
        params, ready = self._load()
        ready()
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(status("generating, compiling first"))
            how = {"n": self.samples, "tools": self._tools, **self._how}
            for place, done in as_finished(params, *self._asked, **how):
                waiting.close()
                yield place, done

    @property
    def _asked(self) -> tuple[list[Prompt], list[SamplingSettings]]:
        return [one.prompt for one in self.requests], [one.settings for one in self.requests]

    @property
    def _how(self) -> dict[str, Any]:
        return {"cache": self.kv_cache.cache, **self.form}

    @property
    def _tools(self) -> list[Any]:
        """Those of each prompt; only JSON lines have some."""
        return [one.asked.tools for one in self.requests]

    def _load(self) -> tuple[Params, Callable[[], None]]:
        load = self.devices.load_ahead
        params, ready = load(self.checkpoint, self.weights, self._sizes, self._prepare)
        return self._stored(params), ready

    def _stored(self, params: Params) -> Params:
        """The weights, or their shapes, as so many rows are multiplied fastest."""
        from llama_jax.generation.few_rows import for_few_rows

        return for_few_rows(params) if len(self.requests) * self.samples > 1 else params

    def _prepare(self, shapes: Params) -> Iterator[None]:
        """Compiles for as many rows as there will be."""
        from llama_jax.completions import prepare

        rows = [one for one in self.requests for _ in range(self.samples)]
        return prepare(
            self._stored(shapes),
            [one.prompt for one in rows],
            [one.settings for one in rows],
            tools=[one.asked.tools for one in rows],
            **self._how,
        )

    def _sizes(self, source: Source) -> tuple[int, int]:
        """Rows and positions of the largest cache that the prompts can need."""
        from llama_jax.generation.limits import MAX_ROWS, final_slots, power_of_two

        rows = min(power_of_two(len(self.requests) * self.samples), MAX_ROWS)
        limit = source.config.max_seq_len
        sizes = [
            final_slots(one.length, one.settings.max_new_tokens, limit) for one in self.requests
        ]
        return rows, max(sizes)


@contextlib.contextmanager
def _prompts_named(requests: Sequence[Request], samples: int) -> Iterator[None]:
    """Where logits are no numbers, the error names prompts, and not rows."""
    from llama_jax.generation.results import NaNLogitsError

    try:
        yield
    except NaNLogitsError as error:
        places = dict.fromkeys(requests[row // samples].asked.where for row in error.rows)
        raise NaNLogitsError("", list(places)) from error


def _after(ready: Callable[[], None], deltas: Iterator[Delta]) -> Iterator[Delta]:
    """The deltas, once all is `ready`."""
    ready()
    yield from deltas


def _check_tokenizer(source: Source, tokenizer: Tokenizer | None, reading: Reading) -> None:
    """UsageError where the prompts are of a kind that the checkpoint cannot take."""
    if reading.chat:
        with typed():
            check_dialogs(source, tokenizer, otherwise="leave out --chat")
    elif tokenizer is None and not (reading.ids or reading.jsonl):
        raise UsageError(f"{source.path} has no tokenizer; pass token ids, and --ids")
    elif (
        stderr.is_terminal and not (reading.ids or reading.jsonl) and is_instruct(source, tokenizer)
    ):
        stderr.print(
            f"warning: {source.path} is a chat model, and gets the text as it is; "
            "--chat asks through its chat template",
            style="yellow",
        )
