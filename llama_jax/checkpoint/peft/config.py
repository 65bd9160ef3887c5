"""adapter_config.json: what is read of it, what does not matter, and what is refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llama_jax.checkpoint.files.json_file import Fields, read_object, shown
from llama_jax.checkpoint.peft.patterns import Patterns, Value
from llama_jax.weights.lora import scale_of

CONFIG = "adapter_config.json"
_READ = {"peft_type", "r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"}
_CHECKED = {"task_type", "bias", "init_lora_weights", "base_model_name_or_path"}
# Which modules have adapters, the tensors' names say; the rest is of training alone.
_WITHOUT_EFFECT = {
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "velora_config",
}
_BEGINNINGS = (None, True, False, "gaussian", "eva", "orthogonal")
"""Ways to begin that leave the base as it is."""
_MERGE = "merge it with peft instead: merge_and_unload(), then save_pretrained"


@dataclasses.dataclass(frozen=True)
class PeftConfig:
    """What adapter_config.json says, checked."""

    rank: int
    alpha: float
    rslora: bool
    rank_pattern: Patterns[int]
    alpha_pattern: Patterns[float]
    base: str
    """The name or the path of the model that was adapted; empty where it is not said."""

    def rank_of(self, module: str) -> int:
        """The rank of a module's adapter."""
        return self.rank_pattern.get(module, self.rank)

    def scale_of(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied by."""
        alpha = self.alpha_pattern.get(module, self.alpha)
        return scale_of(self.rank_of(module), alpha, self.rslora)


def read_peft_config(file: Path) -> PeftConfig:
    """Reads adapter_config.json; every error is a ValueError that names it."""
    fields = Fields(given := read_object(file))
    try:
        _check(given)
        return PeftConfig(
            rank=fields.count("r"),
            alpha=fields.number("lora_alpha"),
            rslora=fields.flag("use_rslora", default=False),
            rank_pattern=_patterns(given, "rank_pattern", Fields.count),
            alpha_pattern=_patterns(given, "alpha_pattern", Fields.number),
            base=str(given.get("base_model_name_or_path") or ""),
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _check(given: dict[str, Any]) -> None:
    """ValueError where the adapter is more than two matrices beside a weight."""
    if (kind := given.get("peft_type")) != "LORA":
        raise ValueError(f"the adapter is of the kind {shown(kind)}; only LORA is read")
    if (task := given.get("task_type")) not in (None, "CAUSAL_LM"):
        raise ValueError(f"task_type={shown(task)} is no language model's; only CAUSAL_LM is read")
    if (bias := given.get("bias", "none")) != "none":
        raise ValueError(f"bias={shown(bias)} trains biases, which are not read; {_MERGE}")
    begun = given.get("init_lora_weights")
    if begun not in _BEGINNINGS:
        raise ValueError(
            f"init_lora_weights={shown(begun)} changed the base's weights too; save the adapter "
            "with peft's path_initial_model_for_weight_conversion, or merge it with peft"
        )
    for name, value in given.items():
        if name not in _READ | _CHECKED | _WITHOUT_EFFECT and value:
            raise ValueError(f"{name}={shown(value)} is not supported; {_MERGE}")


def _patterns(
    given: dict[str, Any], name: str, read: Callable[[Fields, str], Value]
) -> Patterns[Value]:
    """A table of modules, each value read by its key."""
    table = given.get(name) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{name}={shown(table)} must be an object")
    fields = Fields(table)
    return Patterns(name, {key: read(fields, key) for key in table})
