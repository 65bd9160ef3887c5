"""What an adapter of peft's holds; of its matrices the shapes alone are read."""

from __future__ import annotations

import dataclasses
import os
import re

from llama_jax.checkpoint.peft import PREFIX, A, B, modules_of, open_folder
from llama_jax.tokenizer.folder import given_path
from llama_jax.tokenizer.foreign import in_short
from llama_jax.weights.lora import scale_of

_LAYER = re.compile(r"\blayers\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class PeftInspection:
    """What lies in a folder in which peft saved an adapter."""

    rank: int
    """That of every matrix that `ranks` does not name."""
    alpha: float
    rslora: bool
    ranks: dict[str, int]
    """The rank of each adapted matrix, by peft's name of it."""
    base: str
    """The name or the path of the model that was adapted; empty where it is not said."""
    dtypes: tuple[str, ...]
    numbers: int
    """In all matrices together."""

    @property
    def scale(self) -> float:
        """What the product of an adapter's two matrices is multiplied by."""
        return scale_of(self.rank, self.alpha, self.rslora)

    @property
    def targets(self) -> tuple[str, ...]:
        """The kinds of matrices: ("q_proj", "v_proj")."""
        return tuple(dict.fromkeys(name.rpartition(".")[2] for name in self.ranks))

    @property
    def layers(self) -> int:
        """How many layers have one."""
        return len({found[1] for name in self.ranks if (found := _LAYER.search(name))})


@in_short()
def inspect_peft(path: str | os.PathLike[str]) -> PeftInspection:
    """What an adapter says of itself and holds. Errors as of `open_peft`, but for the model's."""
    folder = given_path(path)
    said, found = open_folder(folder)
    modules = modules_of(found, folder)
    arrays = [found[PREFIX + module + end] for module in modules for end in (A, B)]
    return PeftInspection(
        rank=said.rank,
        alpha=said.alpha,
        rslora=said.rslora,
        ranks={module: found[PREFIX + module + A].shape[0] for module in modules},
        base=said.base,
        dtypes=tuple(sorted({array.dtype.name for array in arrays})),
        numbers=sum(array.size for array in arrays),
    )
