"""What was asked for, checked one by one before any weight is read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from llama_jax.cli.console import print_error, stderr
from llama_jax.cli.errors import in_options
from llama_jax.cli.prompts import Asked

if TYPE_CHECKING:
    from llama_jax.config import Config
    from llama_jax.generation.settings import SamplingSettings
    from llama_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt that the model can take, with its settings."""

    index: int
    """Its place among all that was asked for."""
    asked: Asked
    prompt: Any
    length: int
    """In tokens."""
    settings: SamplingSettings


@dataclasses.dataclass(frozen=True)
class Maker:
    """Makes requests of what was asked for; what is wrong with one costs that one."""

    config: Config
    tokenizer: Tokenizer | None
    settings: SamplingSettings
    num_samples: int
    truncate: bool

    def check(self) -> None:
        """ValueError where the command's own settings have an id that the model does not know."""
        from llama_jax.generation.stops import check_settings

        try:
            check_settings(self.config, self.settings, self.tokenizer)
        except ValueError as error:
            raise ValueError(self._in_options(str(error))) from None

    def requests(self, asked: Sequence[Asked]) -> Iterator[Request]:
        """Those that can be; the others have their error, which is printed."""
        for index, one in enumerate(asked):
            if one.error is None:
                try:
                    yield self._request(index, one)
                except ValueError as error:
                    one.error = _placed(self._in_options(str(error), one.settings), one.where)
            if one.error is not None:
                print_error(one.error)

    def _request(self, index: int, asked: Asked) -> Request:
        from llama_jax.generation.batch import rows_of
        from llama_jax.generation.prompts import is_dialog

        settings = self._settings(index, asked.settings)
        if self.tokenizer is None and (isinstance(asked.prompt, str) or is_dialog(asked.prompt)):
            raise ValueError("prompt 0 is text, and the checkpoint has no tokenizer; give its ids")
        rows = (self.config, [asked.prompt], [settings], 1, self.tokenizer)
        try:
            (row,) = rows_of(*rows, truncate=False, tools=[asked.tools])
        except ValueError:
            if not self.truncate:
                raise
            (row,) = rows_of(*rows, truncate=True, tools=[asked.tools])
            said = f"{asked.where} is cut to its last {len(row.prompt):,} tokens"
            stderr.print(said, style="dim")
        prompt = asked.prompt if is_dialog(asked.prompt) else row.prompt
        return Request(index, asked, prompt, len(row.prompt), settings)

    def _in_options(self, message: str, own: Collection[str] = ()) -> str:
        """A message about the command's settings in its options; a line's own keep their names."""
        names = {name: "--" + name.replace("_", "-") for name in ("truncate", *vars(self.settings))}
        names = {**names, "stop_ids": "--stop-id", **{name: f'"{name}"' for name in own}}
        return in_options(message, names, vars(self.settings))

    def _settings(self, index: int, own: dict[str, Any]) -> SamplingSettings:
        """The command's settings, with what the line sets for itself."""
        seed = self.settings.seed
        if seed is not None:
            seed = (seed + index * self.num_samples) % 2**32
        if isinstance(biases := own.get("logit_bias"), dict):  # JSON's keys are texts
            try:
                own = {**own, "logit_bias": {int(id): bias for id, bias in biases.items()}}
            except ValueError:
                raise ValueError(f"logit_bias={biases!r:.60} must be by token id") from None
        return self.settings.replace(**{"seed": seed, **own})


def _placed(message: str, where: str) -> str:
    """A message about a list of one prompt, as one about the place that the prompt came from."""
    rest = message.removeprefix("prompt 0")
    return f"{where}: {message}" if rest == message else f"{where}{rest}"
