"""`python -m tests.fuzz.program_caches --caches N`: damaged folders of kept programs.

Each is used by two processes, children of one that has imported JAX: the first must have the right
results, and the second must find every program: those that JAX keeps by their text, and those that
`untraced.py` keeps beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["JAX_PLATFORMS"] = "cpu"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from fuzz.jobs import forked  # noqa: E402

from llama_jax import untraced  # noqa: E402
from llama_jax.compilation import VARIABLE, keep_programs  # noqa: E402

MISS = "/jax/compilation_cache/cache_misses"


def use(folder: Path) -> dict[str, Any]:
    """What a process that keeps its programs in `folder` computes, and how many it compiles."""
    heard, told = os.pipe()
    log = folder.with_suffix(".log")
    pid = forked(log, lambda: os.write(told, json.dumps(_computed(folder)).encode()))
    os.close(told)
    with os.fdopen(heard) as answer:
        said = answer.read()
    _, status = os.waitpid(pid, 0)
    words = log.read_text()
    log.unlink()
    if status or words:
        return {"status": status, "words": words[-400:]}
    return json.loads(said)


def _computed(folder: Path) -> dict[str, Any]:
    os.environ[VARIABLE] = str(folder)
    misses = []
    jax.monitoring.register_event_listener(
        lambda event, **_: misses.append(event) if event == MISS else None
    )
    keep_programs()
    untraced.find_untraced()
    x = jnp.linspace(-2.0, 2.0, 256).reshape(16, 16)
    programs = (
        lambda x: jax.nn.log_softmax(x @ x.T),
        lambda x: jnp.sort(x, axis=1),
        lambda x: jax.lax.fori_loop(0, 5, lambda i, y: jnp.tanh(y @ x), x),
    )
    found = [jax.jit(program)(x) for program in programs]
    found += [untraced.compiled(jax.jit(program), x)(x) for program in (_turned, _scaled)]
    return {"values": [value.tobytes().hex() for value in found], "misses": len(misses)}


def _turned(x: jax.Array) -> jax.Array:
    return jnp.cumsum(x.T, axis=0)


def _scaled(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def damage(folder: Path, rng: random.Random) -> list[str]:
    """Changes some files of a folder of programs, each in one way; says which and how."""
    files = sorted(file for file in folder.iterdir() if file.is_file())
    entries = [file for file in files if file.name.endswith("-cache")]
    done = []
    for file in rng.sample(entries, rng.randint(1, len(entries))):
        content = bytearray(file.read_bytes())
        way = rng.choice(["bit", "bit", "bits", "cut", "longer", "other", "empty", "no time"])
        if way.startswith("bit"):
            for _ in range(1 if way == "bit" else 50):
                at = rng.randrange(8 * len(content))
                content[at // 8] ^= 1 << at % 8
        elif way == "cut":
            del content[rng.randrange(len(content)) :]
        elif way == "longer":
            content += rng.randbytes(rng.randint(1, 99))
        elif way == "other":
            content[:] = rng.choice(entries).read_bytes()
        elif way == "empty":
            content.clear()
        else:
            file.with_name(file.name.replace("-cache", "-atime")).unlink()
        file.write_bytes(content)
        done.append(f"{file.name[:12]}: {way}")
    return done


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.program_caches", description=__doc__)
    said.add_argument("--caches", type=int, default=20)
    said.add_argument("--first", type=int, default=0, help="the first damage's number")
    given = said.parse_args()
    from jax._src import compilation_cache

    packed = "zstandard" if getattr(compilation_cache, "zstandard", None) else "zlib"
    wrong = compiled = programs = untraced_ones = 0
    with tempfile.TemporaryDirectory() as root:
        sound = Path(root) / "sound"
        sound.mkdir(mode=0o700)
        first = use(sound)
        assert first.get("misses"), first
        assert use(sound) == {**first, "misses": 0}
        for number in range(given.first, given.first + given.caches):
            folder = Path(root) / str(number)
            shutil.copytree(sound, folder)
            how = damage(folder, random.Random(number))
            next_run, after = use(folder), use(folder)
            programs += len(how)
            untraced_ones += sum(one.startswith("untraced-") for one in how)
            compiled += next_run.get("misses", 0)
            fine = next_run.get("values") == first["values"] and after == {**first, "misses": 0}
            if not fine:
                wrong += 1
                shown = [{**one, "values": "..."} for one in (next_run, after)]
                print(f"{number} ({', '.join(how)}): {shown}")
            shutil.rmtree(folder)
    print(
        f"{packed}: {given.caches - wrong} of {given.caches} damaged caches gave right results, "
        f"and every program in the run after; {programs} programs were damaged, {untraced_ones} of "
        f"them untraced, and {compiled} compiled anew"
    )
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
