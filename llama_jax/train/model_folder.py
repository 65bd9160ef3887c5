"""The folder of a run's model, a checkpoint like any other, written again and again."""

from __future__ import annotations

from pathlib import Path

import jax

from llama_jax.checkpoint import save
from llama_jax.checkpoint.saving import save_adapters
from llama_jax.train.model import gathered
from llama_jax.train.saves import in_words
from llama_jax.weights.params import Params


class ModelFolder:
    """The folder of the newest model, or the best."""

    def __init__(self, folder: Path, *, adapters: bool) -> None:
        self._folder, self._adapters = folder, adapters
        self._base_lies_there = False

    def save(self, params: Params) -> None:
        """Writes the model of all processes, in place of the one before.

        Of adapters on weights that stay as they are, a run writes those weights once.
        """
        whole = gathered(params)
        if jax.process_index() != 0:
            return
        with in_words("the model", self._folder):
            if self._base_lies_there:
                save_adapters(whole, self._folder)
            else:
                save(whole, self._folder, overwrite=True)
                self._base_lies_there = self._adapters
