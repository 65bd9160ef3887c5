"""Which form completions have: the options of a JSON schema and a regular expression."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from llama_jax.cli.console import UsageError
from llama_jax.cli.options import sampling_option
from llama_jax.cli.text_input import argument, read_text


@dataclasses.dataclass(frozen=True)
class Form:
    """What completions are to be; texts of any kind where neither is given."""

    json_schema: Annotated[
        Path | None,
        sampling_option(
            metavar="FILE", help="Write JSON that follows the JSON schema in this file"
        ),
    ] = None
    regex: Annotated[
        str | None,
        sampling_option(
            metavar="TEXT", help="Write a text that matches this regular expression as a whole"
        ),
    ] = None

    def read(self) -> dict[str, str]:
        """The keyword of `llama_jax.generate` that says the same, checked; none where none is."""
        if self.json_schema is None and self.regex is None:
            return {}
        if self.json_schema is not None and self.regex is not None:
            raise UsageError("--json-schema and --regex both say what to write; leave one out")
        from llama_jax.generation.grammar import grammar_of

        if self.json_schema is None:
            given = {"regex": argument(self.regex or "", "--regex")}
        else:
            given = {"json_schema": read_text(self.json_schema)}
        try:
            grammar_of(**given)  # type: ignore[arg-type]
        except ImportError as error:
            raise ValueError(str(error)) from None
        except ValueError as error:
            if self.json_schema is None:
                raise UsageError(str(error).replace("regex", "--regex", 1)) from None
            said = str(error).replace("json_schema", "the JSON schema", 1)
            raise ValueError(f"{self.json_schema}: {said}") from None
        return given
