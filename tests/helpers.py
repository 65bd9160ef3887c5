"""What tests of several rooms share."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import jax
import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

from llama_jax import compilation
from llama_jax.checkpoint.names import names_table
from llama_jax.checkpoint.source import StoredTensor
from llama_jax.cli import app
from llama_jax.config import Config

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
GOLDEN_META = GOLDEN / "meta"
SHARED = ROOT.parent / "shared" / "data"
BF16 = np.dtype(ml_dtypes.bfloat16)
EMBEDDING = ("tok_embeddings", "weight")


class Letters:
    """A tokenizer whose ids are bytes, with bos 1 and stop 2."""

    bos_id, eos_id, stop_ids, vocab_size = 1, 2, (2,), 256
    special = MappingProxyType({"<s>": 1, "</s>": 2})

    def encode(self, text, *, bos, eos):
        return [1] * bos + list(text.encode()) + [2] * eos

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")

    def token_bytes(self, id, *, at_start):
        return (b"", at_start) if id in (1, 2) else (bytes([id]), False)


def run(*arguments, **options):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)


def unkept_environment(**variables):
    """The suite's environment without what it says of kept programs, and with these variables."""
    ours = (compilation.VARIABLE, "JAX_COMPILATION_", "JAX_PERSISTENT_")
    return {k: v for k, v in os.environ.items() if not k.startswith(ours)} | variables


def edit_manifest(folder, change):
    """Changes the text of a checkpoint.json, and takes out its checksums as a person does."""
    file = folder / "checkpoint.json"
    info = json.loads(change(file.read_text()))
    file.write_text(json.dumps({k: v for k, v in info.items() if "sha256" not in k}))


def in_a_process(function, config, *arguments):
    """What a test module's `function(config, *arguments)` returns in a process of its own."""
    file = Path(inspect.getfile(function))
    code = (
        "import importlib, json, sys\n"
        "from llama_jax.config import Config\n"
        "file, name, config, *arguments = sys.argv[1:]\n"
        "function = getattr(importlib.import_module(file), name)\n"
        "print(json.dumps(function(Config.from_json(json.loads(config)), *arguments)))"
    )
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests", file.parent)))
    given = [file.stem, function.__name__, json.dumps(config.to_json()), *map(str, arguments)]
    done = subprocess.run(
        [sys.executable, "-c", code, *given],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def config_of(**sizes):
    sizes = {"dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 96, "vocab_size": 130} | sizes
    sizes = {"n_kv_heads": 2, "head_dim": sizes["dim"] // sizes["n_heads"]} | sizes
    rest = {"norm_eps": 1e-5, "rope_theta": 1e4, "rope_scaling": None, "max_seq_len": 64}
    flags = dict.fromkeys(("tie_embeddings", "attention_bias", "mlp_bias"), False)
    return Config(**flags | rest | sizes)


def two_shards(folder, config):
    """Random bfloat16 weights in two memory-mapped files, cut as Meta's Llama 3 files are."""
    plan, ends = {}, [0, 0]
    for weight in names_table(config):
        turned = len(weight.shape) == 2 and weight.path != EMBEDDING
        shape = list(reversed(weight.shape)) if turned else list(weight.shape)
        axis = 1 if weight.path[-1] in ("wo", "w2") else 0
        files = (0,) if len(shape) == 1 else (0, 1)
        shape[axis] //= len(files)
        plan[weight.path] = [(k, ends[k], tuple(shape)) for k in files], axis, turned
        for k in files:
            ends[k] += int(np.prod(shape))
    noise = np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32).astype(BF16)
    for k, end in enumerate(ends):
        with (folder / f"{k}.bin").open("wb") as file:
            for start in range(0, end, noise.size):
                file.write(noise[: min(noise.size, end - start)].tobytes())
    maps = [np.memmap(folder / f"{k}.bin", np.uint16, "r").view(BF16) for k in (0, 1)]
    return {
        path: StoredTensor(
            tuple(maps[k][at : at + int(np.prod(shape))].reshape(shape) for k, at, shape in pieces),
            axis,
            turned,
        )
        for path, (pieces, axis, turned) in plan.items()
    }


def check_same(one, other):
    """Whether two models have equal parts, and the values the same kind and constants."""
    assert jax.tree.structure(one.weights) == jax.tree.structure(other.weights)
    for a, b in zip(jax.tree.leaves(one.weights), jax.tree.leaves(other.weights), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@contextlib.contextmanager
def files_no_larger_than(size):
    """A disk that is full, as far as a process can have one."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
