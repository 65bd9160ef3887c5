"""What a process of test_distributed.py does: `distributed_program.py JSON PROCESS PORT`."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import jax

ASKED = {**json.loads(sys.argv[1]), "process": int(sys.argv[2]), "port": sys.argv[3]}
jax.config.update("jax_num_cpu_devices", ASKED["devices"])

import llama_jax  # noqa: E402  the number of devices comes first
from llama_jax import distributed  # noqa: E402
from llama_jax.checkpoint import convert  # noqa: E402

PROMPTS = [[1, 2, 3], [4, 5, 6, 7, 8], [9]]


def main():
    process, mode = ASKED["process"], ASKED.get("mode", "work")
    if ASKED["processes"] > 1:
        distributed.initialize(
            f"127.0.0.1:{ASKED['port']}", ASKED["processes"], process, start_timeout=60
        )
    if mode != "work":
        end_badly(process, mode)
    native = Path(ASKED["folder"]) / "native"
    written = convert(ASKED["model"], native, dtype="float32").written
    before = bytes_read()
    params = llama_jax.load(native, mesh=llama_jax.make_mesh(**ASKED["mesh"]), dtype="float32")
    found = {
        "read": bytes_read() - before,
        "written": [str(written.path), written.tensors, written.bytes, written.dtypes],
        "there": sorted(file.name for file in native.iterdir()),
    }
    if ASKED.get("generate", True):
        found |= results(params)
    print(json.dumps(found))


def results(params):
    settings = {"max_new_tokens": 6, "temperature": 1.0, "seed": [1, 2, 3]}
    done = llama_jax.generate(params, PROMPTS, **settings)
    deltas = llama_jax.stream(params, PROMPTS, **settings)
    return {
        "tokens": [one.tokens for one in done],
        "streamed": sorted((d.row, token) for d in deltas for token in d.tokens),
        "nll": [one.nll for one in llama_jax.score(params, PROMPTS[:2])],
        "perplexity": [p.value for p in llama_jax.perplexity(params, [1, 2, 3, 4, 5], context=4)],
    }


def bytes_read():
    fields = Path("/proc/self/io").read_text().split()
    return int(fields[fields.index("rchar:") + 1])


def end_badly(process, mode):
    """Works together for ever, but for the victim, which does not."""
    import jax.numpy as jnp

    mesh = llama_jax.make_mesh(tensor=len(jax.devices()))
    split, whole = (jax.sharding.NamedSharding(mesh, jax.P(*axes)) for axes in (["tensor"], []))
    total = jax.jit(jnp.sum, out_shardings=whole)
    part = jax.make_array_from_callback((mesh.size,), split, lambda index: jnp.ones(1))
    assert float(total(part)) == mesh.size
    print("working", flush=True)
    while mode != "idle" or process:
        if process == ASKED["victim"] and mode in ("raise", "mistake"):
            raise RuntimeError("my disk is on fire")
        if process == ASKED["victim"] and mode == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        float(total(part))
    time.sleep(3600)  # process 0 is on the host, in no collective that could fail


main()
