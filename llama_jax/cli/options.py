"""Options that several commands share, alone and in groups."""

from __future__ import annotations

import dataclasses
import enum
import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from llama_jax.model.cache import Cache as ModelCache

Checkpoint = Annotated[
    Path,
    typer.Argument(
        metavar="CHECKPOINT",
        help="A folder with a model: Meta's download, Hugging Face's, or one that `convert` wrote; "
        "a GGUF file; hf:ORG/NAME of the Hub; or a name: stories, smollm2",
    ),
]
Destination = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Folder to write: a new or an empty one")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE",
        help="Number format to run in: float32, bfloat16 or float16; default: float32 on a CPU, "
        "bfloat16 on a GPU",
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="A LoRA adapter of this model, in the folder that Hugging Face's peft saved it in",
    ),
]
StoredDtype = Annotated[
    str | None,
    typer.Option(
        metavar="DTYPE", help="Number format: float32, bfloat16 or float16; default: as stored"
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        metavar="KIND",
        help="Round the matrices, all but the embedding, to int8 or fp8 (a quarter of float32's "
        "memory) or int4 (a sixth); int8_channel is the int8 that a GPU multiplies fastest; "
        "int8_dynamic rounds the activations too; none dequantizes a file that is quantized",
    ),
]


@dataclasses.dataclass(frozen=True)
class Weights:
    """How a command that runs a model loads its weights."""

    dtype: Dtype = None
    quantize: Quantize = None
    adapter: Adapter = None

    @property
    def how(self) -> dict[str, Any]:
        """The same, as `llama_jax.load` takes it."""
        return {"dtype": self.dtype, "quantize": self.quantize, "adapter": self.adapter}


class KVCacheKind(enum.StrEnum):
    """How keys and values are kept."""

    WHOLE = "whole"
    INT8 = "int8"

    @property
    def cache(self) -> type[ModelCache]:
        """The kind of cache, as `generate` takes it."""
        import llama_jax

        return llama_jax.Int8KVCache if self is KVCacheKind.INT8 else llama_jax.KVCache


KVCache = Annotated[
    KVCacheKind,
    typer.Option(
        "--kv-cache",
        "--cache",
        help="Keep the keys and values whole, or as int8: a quarter of float32's memory",
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help=r"What stands between a .txt file's documents; \n, \t, \\ and \u00e9 are escapes; "
        "default: a file is one",
    ),
]
TextKey = Annotated[
    str,
    typer.Option(metavar="NAME", help="What .jsonl objects and .parquet columns call the text"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object")]


def _off(asked: bool) -> bool:
    if asked:
        os.environ["LLAMA_JAX_CACHE"] = "off"
    return asked


NoCache = Annotated[
    bool,
    typer.Option(
        "--no-cache",
        callback=_off,
        help="Keep no compiled programs: those of other runs lie in $LLAMA_JAX_CACHE or in your "
        "cache folder",
    ),
]


_devices = functools.partial(typer.Option, metavar="N", rich_help_panel="Several devices", min=1)


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How many devices a model is to lie on, along each axis of the mesh."""

    tensor: Annotated[
        int,
        _devices(
            help="Split each weight matrix over N devices (tensor parallelism): for a model too "
            "large or too slow for one device"
        ),
    ] = 1
    data: Annotated[
        int,
        _devices(
            help="Split the prompts over N devices, each with a whole copy of the model (data "
            "parallelism)"
        ),
    ] = 1
    fsdp: Annotated[
        int,
        _devices(
            help="Split the prompts over N devices, and store only 1/N of every weight on each; a "
            "layer's weights are put together when they are needed (fully sharded data "
            "parallelism). The model takes data x fsdp x tensor devices"
        ),
    ] = 1

    @property
    def axes(self) -> dict[str, Any]:
        """The same by name, as `make_mesh` takes them."""
        return {"data": self.data, "fsdp": self.fsdp, "tensor": self.tensor}


sampling_option = functools.partial(typer.Option, rich_help_panel="Sampling")
