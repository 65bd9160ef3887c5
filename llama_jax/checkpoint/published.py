"""Which published model a config is, for people to read."""

from __future__ import annotations

import math

from llama_jax.config import Config, published
from llama_jax.weights.table import weight_table


def family(config: Config) -> str:
    """The model as people call it, "Llama 3.1 70B or Llama 3.3 70B"; another one by its size."""
    if names := list(matching(config)):
        return " or ".join(map(_title, names))
    return f"a LLaMA of {parameter_count(config):,} parameters, none of Meta's"


def matching(config: Config) -> dict[str, Config]:
    """The published configs that are this one, but for `max_seq_len`, which no weight shows."""
    known = published().items()
    return {name: c for name, c in known if c.replace(max_seq_len=config.max_seq_len) == config}


def parameter_count(config: Config) -> int:
    """How many numbers the model's weights hold; tied embeddings count once."""
    return sum(math.prod(row.shape) for row in weight_table(config).values())


def _title(name: str) -> str:
    """ "llama-3.1-8b" as Meta writes it; only the first generation is spelled LLaMA."""
    *family_and_version, size = name.split("-")
    words = " ".join(word.capitalize() for word in family_and_version)
    if not words:
        return f"the {name} model of configs/models"
    return f"{'LLaMA' if words == 'Llama' else words} {size.upper()}"
