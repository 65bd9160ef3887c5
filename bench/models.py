"""One model on disk in the format of every contestant, the weights the same in all.

Run as `python -m bench.models`, so that the memory this takes ends with its process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from bench.shapes import ITEMSIZE, SHAPES
from bench.workers import environment
from llama_jax.checkpoint.published import parameter_count
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.config import Config

SEED = 0
VERSION = 1
"""Of what the writers write: one more, and what earlier ones wrote is written again."""
_OWN = re.compile(r"(native|hf|gguf|llama2c|origin\.json|partial-.*|\..*\.(partial|former))")


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


def config_of(name: str, checkpoint: Path | None) -> Config:
    """A shape's config, or a checkpoint's, of which no weight is read."""
    return SHAPES[name] if checkpoint is None else open_checkpoint(checkpoint).config


def prepared(
    name: str, checkpoint: Path | None, dtype: str, formats: set[str], work: Path
) -> Model:
    """The model in those formats, written now unless an earlier run left it in `work`."""
    folder = work / f"{name}-{dtype}"
    origin = _origin(name, checkpoint)
    if not _is_made_from(folder, origin):
        _check_own(folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    if missing := sorted(formats - {path.name for path in folder.iterdir()}):
        request = {"name": name, "dtype": dtype, "folder": str(folder), "formats": missing}
        request["checkpoint"] = None if checkpoint is None else str(checkpoint)
        write_apart(request)
        (folder / "origin.json").write_text(json.dumps(origin))
    return Model(name, folder, dtype, _config(folder))


def unwritten_bytes(
    name: str, checkpoint: Path | None, dtype: str, formats: set[str], work: Path
) -> int:
    """About how much more `prepared` will keep in `work`; ValueError where it may not write."""
    folder = work / f"{name}-{dtype}"
    there, freed = set(), 0
    if _is_made_from(folder, _origin(name, checkpoint)):
        there = {path.name for path in folder.iterdir()}
    else:
        _check_own(folder)
        freed = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    each = parameter_count(config_of(name, checkpoint)) * ITEMSIZE[dtype]
    return each * len({"native", *formats} - there) - freed


def check_space(work: Path, needed: int) -> None:
    """ValueError where the folder has no room for so many bytes more."""
    if needed > (free := shutil.disk_usage(work).free):
        raise ValueError(
            f"the models still to be written need about {needed:,} bytes, and {work} has {free:,} "
            "free; make room, pass another --work, or measure fewer --shapes or --contestants"
        )


def _origin(name: str, checkpoint: Path | None) -> dict[str, object]:
    """What a prepared folder was made from: it is written again when this changes."""
    if checkpoint is None:
        return {"version": VERSION, "config": SHAPES[name].to_json(), "seed": SEED}
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    sizes = [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]
    return {"version": VERSION, "files": sizes}


def _is_made_from(folder: Path, origin: dict[str, object]) -> bool:
    mark = folder / "origin.json"
    # One that names no version is of the first.
    return mark.is_file() and {"version": 1, **json.loads(mark.read_text())} == origin


def _check_own(folder: Path) -> None:
    """ValueError if a folder that would be emptied holds what is not ours to remove."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if others := [name for name in names if not _OWN.fullmatch(name)]:
        raise ValueError(
            f"{folder} would be written anew, and holds {', '.join(others[:3])}, which no run of "
            "this wrote; move that away, or pass another --work"
        )


def _config(folder: Path) -> Config:
    from llama_jax.checkpoint import native

    return native.read_config(folder / "native")


def write_apart(request: dict[str, object]) -> None:
    """`write`, in a process of its own; RuntimeError with the last line of its error."""
    command = [sys.executable, "-m", "bench.models", json.dumps(request)]
    env = environment("models", "cpu", len(os.sched_getaffinity(0)))
    # In a session of its own, Ctrl-C ends it through us and without its traceback.
    done = subprocess.run(
        command, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        print(done.stderr, file=sys.stderr, flush=True)
        last = (done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"])[-1]
        what = f"{request['name']} as {' and '.join(request['formats'])}"
        raise RuntimeError(f"{what} could not be written to {request['folder']}: {last}")


def write(name: str, dtype: str, folder: Path, formats: list[str], checkpoint: Path | None) -> None:
    """Writes the formats that are missing; each appears whole or not at all."""
    from bench.gguf_file import write_gguf
    from bench.llama2c_file import write_llama2c
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
