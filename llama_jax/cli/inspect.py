"""`llama-jax inspect`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from llama_jax.cli import options
from llama_jax.cli.adapters import adapter_json, adapter_rows
from llama_jax.cli.console import print_json, print_warnings
from llama_jax.cli.description import model_rows, print_notes, print_rows
from llama_jax.cli.groups import grouped

if TYPE_CHECKING:
    from llama_jax.checkpoint.inspection import Inspection
    from llama_jax.checkpoint.peft.inspection import PeftInspection
    from llama_jax.checkpoint.source import Source
    from llama_jax.model.memory import Memory


@grouped
def inspect(
    checkpoint: Annotated[
        Path | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder with a model, or what else `generate` takes; with --adapter it may be "
            "left out",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int, typer.Option(metavar="N", help="Texts that are to run at once", min=1)
    ] = 1,
    context: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens that each may have, prompt included; default: all of the model's context",
            min=1,
        ),
    ] = None,
    *,
    mesh: options.Mesh,
    adapter: options.Adapter = None,
    dtype: options.Dtype = None,
    as_json: options.AsJson = False,
) -> None:
    """Say what a checkpoint is and what memory it needs.

    Or what a LoRA adapter is. Nothing is loaded, and the devices need not be there. With a
    checkpoint and --adapter, it is also checked that the one fits the other.
    """
    if checkpoint is not None:
        _say_model(checkpoint, adapter, {"batch": batch, "context": context}, mesh, dtype, as_json)
    elif adapter is not None:
        _say_adapter(adapter, as_json)
    else:
        raise typer.BadParameter("name a CHECKPOINT, or an adapter with --adapter")


def _say_model(
    checkpoint: Path,
    adapter: Path | None,
    size: dict[str, Any],
    mesh: options.Mesh,
    dtype: str | None,
    as_json: bool,
) -> None:
    import jax

    from llama_jax.checkpoint.dtypes import parse_dtype
    from llama_jax.checkpoint.inspection import inspect_checkpoint
    from llama_jax.kernels import weight_dtype
    from llama_jax.model.memory import memory

    found = inspect_checkpoint(checkpoint)
    config, added = found.source.config, _adapter_of(found.source, adapter)
    here = "" if dtype else " (what runs here)"
    dtype = parse_dtype(dtype or weight_dtype(jax.default_backend()).name).name
    size["context"] = config.max_seq_len if size["context"] is None else size["context"]
    stored, kind = found.source.tensors, parse_dtype(dtype)
    needed = memory(config, dtype=kind, stored=stored, **size, **mesh.axes)
    tokenizer, notes = _tokenizer(found.source)
    asked = {**size, "dtype": dtype, **mesh.axes}
    if as_json:
        told = _as_json(found, tokenizer, notes, asked, needed)
        print_json(told | ({"adapter": adapter_json(added)} if added else {}), indent=2)
        return
    print_rows({**model_rows(config), **_stored(found, tokenizer), **_needed(asked, needed, here)})
    print_rows(adapter_rows(added) if added else {})
    print_notes(notes)
    print_warnings(found.source.warnings)


def _say_adapter(adapter: Path, as_json: bool) -> None:
    from llama_jax.checkpoint.peft.inspection import inspect_peft

    found = inspect_peft(adapter)
    if as_json:
        print_json(adapter_json(found), indent=2)
    else:
        print_rows(adapter_rows(found))


def _adapter_of(source: Source, adapter: Path | None) -> PeftInspection | None:
    """What an adapter holds, which is known to fit the checkpoint."""
    if adapter is None:
        return None
    from llama_jax.checkpoint.adapters import with_adapter
    from llama_jax.checkpoint.peft.inspection import inspect_peft

    with_adapter(source, adapter)
    return inspect_peft(adapter)


def _stored(found: Inspection, tokenizer: str) -> dict[str, str]:
    source = found.source
    if source.format == "native":
        held = f"{len(source.tensors)} weights"  # how many files each takes is Orbax's affair
    else:
        held = f"{found.files} file{'s' if found.files != 1 else ''} of weights"
    many = len(found.parameters) > 1
    dtypes = [
        f"{dtype} ({n:,} numbers)" if many else dtype for dtype, n in found.parameters.items()
    ]
    said = {"from": found.repository} if found.repository else {}
    return {
        **said,
        "format": f"{source.format}, {held}, {_bytes(found.disk_bytes)} on disk",
        "dtype": ", ".join(sorted(dtypes)),
        "tokenizer": tokenizer,
    }


def _needed(asked: dict[str, Any], needed: Memory, here: str) -> dict[str, str]:
    rows = f"{asked['batch']} row{'s' if asked['batch'] != 1 else ''}"
    if needed.rows != asked["batch"]:
        rows += f" (padded to {needed.rows}, which data x fsdp divides)"
    axes = [f"{axis}={asked[axis]}" for axis in ("data", "fsdp", "tensor") if asked[axis] > 1]
    devices = f"{needed.devices} devices ({', '.join(axes)})" if axes else "one device"
    rows_of = {
        "to run": f"{asked['dtype']}{here}, {rows} of {asked['context']:,} positions, {devices}",
        "weights": _bytes(needed.weights_per_device),
        "cache": _bytes(needed.cache_per_device),
        "together": _bytes(needed.per_device),
    }
    if axes:
        rows_of["weights"] += f" a device, {_bytes(needed.weights)} in all"
        rows_of["cache"] += f" a device, {_bytes(needed.cache)} in all"
        rows_of["together"] += " a device"
    rows_of["together"] += ", and room for activations"
    if asked["dtype"] != "float32":
        rows_of["cache"] += "; on a CPU twice that, where keys and values are float32"
    return rows_of


def _as_json(
    found: Inspection, tokenizer: str, notes: Sequence[str], asked: dict[str, Any], needed: Memory
) -> dict[str, Any]:
    from llama_jax.checkpoint.published import family, parameter_count

    source = found.source
    return {
        "path": str(source.path),
        "format": source.format,
        "repository": found.repository,
        "family": family(source.config),
        "parameters": parameter_count(source.config),
        "config": source.config.to_json(),
        "dtypes": found.parameters,
        "tokenizer": str(source.tokenizer) if source.tokenizer else None,
        "tokenizer_kind": tokenizer if source.tokenizer else None,
        "weights": len(source.tensors),
        "files": found.files,
        "disk_bytes": found.disk_bytes,
        "notes": notes,
        "warnings": list(source.warnings),
        "asked": asked,
        "memory": {
            **dataclasses.asdict(needed),
            "per_device": needed.per_device,
            "cache_dtype": asked["dtype"],
        },
    }


def _tokenizer(source: Source) -> tuple[str, tuple[str, ...]]:
    """The tokenizer's kind and size, and notes; a broken one is said, and is no reason to fail."""
    file = source.tokenizer
    if file is None:
        return "none found; the checkpoint takes token ids", source.notes
    from llama_jax.tokenizer import load_tokenizer

    try:
        tokenizer = load_tokenizer(file)
    except (ValueError, OSError) as error:
        return f"broken: {error}", source.notes
    kind = type(tokenizer).__name__.removesuffix("Tokenizer")
    shown = f"{kind}, {tokenizer.vocab_size:,} tokens, {file.name}"
    return shown, source.notes_with(tokenizer)


def _bytes(count: int) -> str:
    from llama_jax.checkpoint.files.messages import in_units

    return in_units(count)
