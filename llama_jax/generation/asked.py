"""What a call asks for, checked: a row for each completion, and where they are to be made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from llama_jax.generation.batch import Form, Row, constrained, rows_of
from llama_jax.generation.placement import Placement
from llama_jax.generation.prompts import Prompt, listed, tokenizer_of
from llama_jax.generation.settings import SamplingSettings, for_each
from llama_jax.model.cache import Cache
from llama_jax.tokenizer import Tokenizer, Tools
from llama_jax.weights.params import Params


class Asked(NamedTuple):
    """The rows of a call, and what all of them have in common."""

    rows: list[Row]
    place: Placement
    tokenizer: Tokenizer | None


def rows_asked(
    params: Params,
    prompts: Sequence[Prompt],
    settings: SamplingSettings | Sequence[SamplingSettings] | None,
    changes: dict[str, Any],
    *,
    tokenizer: Tokenizer | None,
    cache: type[Cache],
    form: Form,
    tools: Tools | None = None,
    tools_of_each: Sequence[Tools | None] | None = None,
    n: int = 1,
    truncate: bool = False,
) -> Asked:
    """What the arguments of `generate` ask for.

    `changes` are fields of the settings; `tools` are for all prompts, `tools_of_each` one each.
    """
    tokenizer = tokenizer_of(params, tokenizer)
    place = Placement.of(params, cache)
    several = listed("prompts", prompts)
    each = for_each(settings, changes, len(several))
    told = [tools] * len(several) if tools_of_each is None else tools_of_each
    rows = rows_of(params.config, several, each, n, tokenizer, truncate, told)
    return Asked(constrained(rows, params.config.vocab_size, tokenizer, form), place, tokenizer)
