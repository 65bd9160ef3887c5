"""One model on disk in the format of every contestant, the weights the same in all.

Run as `python -m benchmarks.models`, so that the memory this takes ends with its process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.shapes import SHAPES
from benchmarks.workers import environment
from llama_jax.config import Config

SEED = 0


@dataclasses.dataclass(frozen=True)
class Model:
    """Where a model lies: `native` and `hf` are folders in it, `gguf` and `llama2c` files."""

    name: str
    folder: Path
    dtype: str
    config: Config

    def path(self, format: str) -> Path:
        """The folder or file of one format."""
        return self.folder / format


def prepared(
    name: str, checkpoint: Path | None, dtype: str, formats: set[str], work: Path
) -> Model:
    """The model in those formats, written now unless an earlier run left it in `work`."""
    if checkpoint is None and name not in SHAPES:
        raise ValueError(f"shape {name!r} is unknown; use one of {', '.join(SHAPES)}")
    folder = work / f"{name}-{dtype}"
    origin = _origin(name, checkpoint)
    mark = folder / "origin.json"
    if not mark.is_file() or json.loads(mark.read_text()) != origin:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if missing := sorted(formats - {path.name for path in folder.iterdir()}):
        request = {"name": name, "dtype": dtype, "folder": str(folder), "formats": missing}
        request["checkpoint"] = None if checkpoint is None else str(checkpoint)
        command = [sys.executable, "-m", "benchmarks.models", json.dumps(request)]
        env = environment("models", "cpu", len(os.sched_getaffinity(0)))
        # In a session of its own, Ctrl-C ends it through us and without its traceback.
        if subprocess.run(command, env=env, start_new_session=True).returncode:
            raise RuntimeError(f"{name} could not be written to {folder}: its errors stand above")
        mark.write_text(json.dumps(origin))
    return Model(name, folder, dtype, _config(folder))


def _origin(name: str, checkpoint: Path | None) -> dict[str, object]:
    """What a prepared folder was made from: it is written again when this changes."""
    if checkpoint is None:
        return {"config": SHAPES[name].to_json(), "seed": SEED}
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is no directory; pass a checkpoint's")
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    return {"files": [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]}


def _config(folder: Path) -> Config:
    from llama_jax.checkpoint import native

    return native.read_config(folder / "native")


def write(name: str, dtype: str, folder: Path, formats: list[str], checkpoint: Path | None) -> None:
    """Writes the formats that are missing; each appears whole or not at all."""
    from benchmarks.gguf_file import write_gguf
    from benchmarks.llama2c_file import write_llama2c
    from llama_jax.checkpoint.export import export

    native = folder / "native"
    if not native.is_dir():
        _write_native(SHAPES.get(name), dtype, native, checkpoint)
    if "hf" in formats:
        export(native, folder / "hf", format="hf")
    for format, writer in (("gguf", write_gguf), ("llama2c", write_llama2c)):
        if format in formats:
            partial = folder / f"partial-{format}"
            writer(native, partial)
            partial.rename(folder / format)


def _write_native(config: Config | None, dtype: str, native: Path, checkpoint: Path | None) -> None:
    import jax

    import llama_jax

    if checkpoint is not None:
        from llama_jax.checkpoint import convert

        convert(checkpoint, native, dtype=dtype)
        return
    random = jax.jit(llama_jax.init_params, static_argnums=(1, 2))
    llama_jax.save(random(jax.random.key(SEED), config, dtype), native)


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    given = request["checkpoint"]
    write(
        request["name"],
        request["dtype"],
        Path(request["folder"]),
        request["formats"],
        None if given is None else Path(given),
    )
