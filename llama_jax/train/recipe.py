"""How a model is trained, as one typed value. The defaults are LLaMA's (arXiv:2302.13971, 2.2)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, get_args, get_origin, get_type_hints

from llama_jax.validation import check_count, check_flag, check_number

LAYER_MATRICES = ("wq", "wk", "wv", "wo", "w1", "w2", "w3")
"""The matrices of a layer, by their names in `weights/table.py`."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """The optimizer and its schedule."""

    learning_rate: float = 3e-4
    """The largest, reached after the warm-up. LLaMA: 3e-4 up to 13B, 1.5e-4 above."""
    warmup: int = 2000
    """Steps in which the learning rate rises evenly from 0; the first step has 1 / warmup of it."""
    schedule: Literal["cosine", "wsd", "constant"] = "cosine"
    """After the warm-up: half a cosine down to `floor`; or constant and then a straight line down
    (warm-up, stable, decay: arXiv:2404.06395); or constant."""
    decay: float = 0.2
    """The part of all steps in which "wsd" comes down."""
    floor: float = 0.1
    """The last learning rate, as a part of the largest."""
    kind: Literal["adamw", "muon"] = "adamw"
    """Muon (arXiv:2502.16982) takes the layers' matrices; AdamW the embedding, output and norms."""
    beta1: float = 0.9
    beta2: float = 0.95
    epsilon: float = 1e-5
    """AdamW's. Llama 2 states 1e-5 (arXiv:2307.09288, 2.2); LLaMA 1 states none."""
    weight_decay: float = 0.1
    """The decay of matrices, the embedding included. Norms and biases have none."""
    clip: float = 1.0
    """Gradients of a larger norm are scaled down to it; 0 clips none."""

    def __post_init__(self) -> None:
        _check(self)
        for name in ("beta1", "beta2", "floor", "decay"):
            if getattr(self, name) > 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at most 1")


@dataclasses.dataclass(frozen=True)
class Step:
    """What one step computes, and how."""

    batch: int = 64
    """Rows of a step, over all devices and micro-batches."""
    context: int = 2048
    """Tokens of a row."""
    micro_batches: int = 1
    """Into how many parts a batch is cut, to be computed one after the other in less memory."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The dtype of activations and products. Weights and moments are float32 always."""
    remat: Literal["none", "layer", "dots"] = "layer"
    """What the backward pass computes again: nothing; each layer; or each layer without its
    matrix products."""
    documents: Literal["separate", "joined"] = "separate"
    """Whether a token sees the tokens of its own document only, or all before it in its row."""
    z_loss: float = 0.0
    """Times the squared logsumexp of each token's logits, added to its loss."""
    spike: float = 0.0
    """A step whose gradient norm is this many times the running mean is left out; 0: none is."""
    average: float = 0.0
    """The decay of an exponential moving average of the weights; 0 keeps none."""

    def __post_init__(self) -> None:
        _check(self)
        if self.average >= 1:
            raise ValueError(f"average={self.average} must be below 1; 0.999, say")
        if self.batch % self.micro_batches:
            raise ValueError(
                f"micro_batches={self.micro_batches} does not divide batch={self.batch}; "
                "every part has as many rows"
            )


@dataclasses.dataclass(frozen=True)
class Model:
    """The model that training begins with: random weights of a config, or a checkpoint."""

    config: str = ""
    """A published model's name ("llama-3.2-1b"), or a JSON file with a config's fields."""
    checkpoint: str = ""
    """A checkpoint in any format that `load` reads. Give it or `config`."""
    fields: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of the config to change: {"n_layers" = 4}. The vocabulary is the tokenizer's unless
    it is among them."""

    def __post_init__(self) -> None:
        if bool(self.config) == bool(self.checkpoint):
            raise ValueError("[model] takes either config = or checkpoint =")
        if self.checkpoint and self.fields:
            raise ValueError("[model.fields] changes a config; a checkpoint has its own")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters (arXiv:2106.09685), which are trained in place of the checkpoint's weights."""

    rank: int = 8
    """The inner size of each adapter's two matrices, [in, rank] and [rank, out]."""
    alpha: float = 16.0
    """An adapter's product is multiplied by alpha / rank."""
    rslora: bool = False
    """By alpha / sqrt(rank) instead (arXiv:2312.03732), which suits large ranks."""
    targets: tuple[str, ...] = LAYER_MATRICES
    """The matrices of each layer that get an adapter."""

    def __post_init__(self) -> None:
        _check(self)
        if not self.alpha:
            raise ValueError("alpha=0 would train adapters that change nothing")
        for name in self.targets:
            if name not in LAYER_MATRICES:
                known = ", ".join(map(repr, LAYER_MATRICES))
                raise ValueError(f"targets has {name!r}, and can have {known}")
        if not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(f"targets={self.targets!r} must name at least one matrix, each once")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Over how many devices each axis goes."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        _check(self)

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return self.data * self.fsdp * self.tensor


@dataclasses.dataclass(frozen=True)
class Run:
    """What a run writes and says, and how often, in steps; 0 is never."""

    print_every: int = 10
    save_every: int = 500
    keep: int = 2
    """Saved states that are kept, the newest."""
    evaluate_every: int = 500
    evaluate_batches: int = 20
    """Validation batches that are read each time; 0 reads all."""
    keep_best: bool = False
    """The model is that of the lowest validation loss so far, and not the newest."""
    sample_every: int = 500
    prompts: tuple[str, ...] = ("",)
    """What the sampled completions begin with."""
    bad_steps: int = 20
    """A run ends after so many steps in a row that changed nothing."""
    log_rows: bool = False
    """`metrics.jsonl` also has the ids of each step's rows, so that anybody can count them."""
    peak_tflops: float = 0.0
    """The peak of one device, of which the MFU is a part; 0 measures it."""

    def __post_init__(self) -> None:
        _check(self, from_zero=("save_every", "evaluate_every", "evaluate_batches", "sample_every"))
        if self.keep_best and not self.evaluate_every:
            raise ValueError("keep_best=True compares evaluations; raise evaluate_every above 0")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    steps: int
    """Optimizer steps of the whole run."""
    model: Model | None = None
    tokens: str = ""
    """The folder that `llama-jax tokenize` wrote."""
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    step: Step = dataclasses.field(default_factory=Step)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    run: Run = dataclasses.field(default_factory=Run)
    lora: Lora | None = None
    """Where set, the weights stay as they are and adapters are trained."""
    seed: int = 0
    """The seed of the initial weights and of the order of the rows."""

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.optimizer.warmup >= self.steps:
            raise ValueError(
                f"optimizer.warmup={self.optimizer.warmup} must be below steps={self.steps}; "
                "a few percent of the steps will do"
            )

    def replace(self, **changes: Any) -> Recipe:
        """This recipe with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)


def _check(section: Any, from_zero: tuple[str, ...] = ("warmup",)) -> None:
    """Checks each field of a section by its type: counts above 0, finite numbers from 0."""
    types = get_type_hints(type(section))
    for field in dataclasses.fields(section):
        name, value = field.name, getattr(section, field.name)
        if get_origin(types[name]) is Literal:
            if value not in get_args(types[name]):
                known = ", ".join(map(repr, get_args(types[name])))
                raise ValueError(f"{name}={value!r} is unknown; it is one of {known}")
        elif types[name] is bool:
            check_flag(section, name)
        elif types[name] is int and name not in from_zero:
            check_count(name, value)
        elif types[name] is int:
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name}={value!r} must be an integer from 0")
        elif types[name] is float:
            check_number(section, name, at_least=0.0)
