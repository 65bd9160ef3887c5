"""Completions on stdout: as text while they come, or as JSON once they have ended."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.cli.console import print_json, stderr
from llama_jax.cli.prompts import Asked
from llama_jax.cli.requests import Request

if TYPE_CHECKING:
    from llama_jax.generation.results import Completion, Delta
    from llama_jax.tokenizer import Tokenizer


def print_text(
    requests: Sequence[Request], samples: int, deltas: Iterator[Delta], *, ids: bool, echo: bool
) -> None:
    """Prints the rows one below the other, each as it comes: a later row waits for its turn."""
    rows = [request for request in requests for _ in range(samples)]
    shown = [one.asked.shown if isinstance(one.asked.prompt, str) or ids else "" for one in rows]
    waiting = [text if echo and isinstance(text, str) else "" for text in shown]
    ended = [False] * len(rows)
    counts = [0] * len(rows)
    full, turn = [], 0
    for delta in deltas:
        new = "".join(f" {token}" for token in delta.tokens) if ids else delta.text
        waiting[delta.row] += new
        counts[delta.row] += len(delta.tokens)
        ended[delta.row] = delta.finish_reason is not None
        if delta.finish_reason == "length" and is_full(rows[delta.row], counts[delta.row]):
            full.append(delta.row)
        while turn < len(rows):
            sys.stdout.write(waiting[turn])
            sys.stdout.flush()
            waiting[turn] = ""
            if not ended[turn]:
                break
            turn += 1
            sys.stdout.write("\n\n" if turn < len(rows) else "\n")
    sys.stdout.flush()
    for row in sorted(full):  # not before: a later row's text may stand in the terminal's line
        say_full(rows[row], counts[row])


def is_full(request: Request, tokens: int) -> bool:
    """Whether it was the context's end that ended a text of so many tokens."""
    return tokens < request.settings.max_new_tokens


def say_full(request: Request, tokens: int) -> None:
    """Says on stderr that the context ended a text."""
    stderr.print(
        f"{request.asked.where}: the context of {request.length + tokens:,} tokens is full, so "
        f"the text ends after {tokens:,} of {request.settings.max_new_tokens:,} new tokens",
        style="yellow",
    )


@dataclasses.dataclass(frozen=True)
class JsonRows:
    """Completions as JSON: in the order of the prompts, or each as soon as it has ended."""

    asked: Sequence[Asked]
    requests: Sequence[Request]
    samples: int
    tokenizer: Tokenizer | None
    in_order: bool

    def print(self, finished: Iterator[tuple[int, Completion]]) -> None:
        """Prints a line for each completion, and one for each prompt that is wrong."""
        rows = self._rows(finished)
        for row in in_order(self._places(), rows) if self.in_order else (row for _, row in rows):
            print_json(row)
            sys.stdout.flush()

    def _rows(
        self, finished: Iterator[tuple[int, Completion]]
    ) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
        """Each line by its place, (prompt, sample), as soon as it is known."""
        for index, one in enumerate(self.asked):
            if one.error is not None:
                yield (index, 0), {**self._named(index), "error": one.error}
        for place, done in finished:
            request, sample = self.requests[place // self.samples], place % self.samples
            yield (request.index, sample), self._completion(request, sample, done)

    def _places(self) -> Iterator[tuple[int, int]]:
        for index, one in enumerate(self.asked):
            for sample in range(1 if one.error is not None else self.samples):
                yield index, sample

    def _named(self, index: int) -> dict[str, Any]:
        """What says which prompt a row is of."""
        one = self.asked[index]
        place = {} if self.in_order else {"index": index}
        return {**place, **({} if one.id is None else {"id": one.id}), "prompt": one.shown}

    def _completion(self, request: Request, sample: int, done: Completion) -> dict[str, Any]:
        row = self._named(request.index)
        if self.samples > 1:
            row["sample"] = sample
        row.update({k: v for k, v in dataclasses.asdict(done).items() if v is not None})
        if done.finish_reason == "length" and is_full(request, len(done.tokens)):
            row["context_full"] = True
            say_full(request, len(done.tokens))
        if self.tokenizer is not None:
            _add_texts(row, self.tokenizer)
        return row


def in_order(places: Iterable[Any], found: Iterable[tuple[Any, Any]]) -> Iterator[Any]:
    """What is found, by its place in the order of places: each as soon as those before it are."""
    due, waiting = iter(places), {}
    place = next(due, None)
    for at, value in found:
        waiting[at] = value
        while place in waiting:
            yield waiting.pop(place)
            place = next(due, None)


def _add_texts(row: dict[str, Any], tokenizer: Tokenizer) -> None:
    """Puts the text of each token beside its id."""
    row["token_texts"] = [_text(tokenizer, id) for id in row["tokens"]]
    entries = *row.get("logprobs", ()), *row.get("prompt_logprobs", ()), row.get("stop_logprob")
    for entry in filter(None, entries):
        entry["text"] = _text(tokenizer, entry["token"])
        entry["top_texts"] = {id: _text(tokenizer, id) for id in entry["top"]}


def _text(tokenizer: Tokenizer, id: int) -> str:
    """The characters that a token adds inside a text; U+FFFD for part of one."""
    try:
        return tokenizer.token_bytes(id, at_start=False)[0].decode(errors="replace")
    except ValueError:  # a model may have more rows than the tokenizer has tokens
        return ""
