"""How much faster two CPU devices decode than one, a core each: `python bench/scaling.py`.

The same work (a model of random weights, float32, greedy) on one core of this machine and on two:
as two devices of one process, and as two processes. The machine must be otherwise quiet.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

RUNS = (  # the mesh, its processes
    ({}, 1),
    ({"data": 2}, 1),
    ({"tensor": 2}, 1),
    ({"fsdp": 2}, 1),
    ({"data": 2}, 2),
    ({"tensor": 2}, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        measure(asked, **json.loads(asked.one))
        return
    with tempfile.TemporaryDirectory() as folder:
        save_model(asked, folder)
        alone = None
        print("mesh       processes  tokens/s  ratio to one core")
        for mesh, processes in RUNS:
            speed = run(folder, mesh, processes)
            alone = alone or speed
            name = ", ".join(f"{axis}={size}" for axis, size in mesh.items()) or "one device"
            print(f"{name:<10}  {processes:>8}  {speed:>8.1f}  {speed / alone:.2f}")


def save_model(asked: argparse.Namespace, folder: str) -> None:
    """A model of random weights, so that nothing needs to be at hand."""
    import jax

    import llama_jax

    config = llama_jax.Config.named("tiny").replace(
        dim=asked.dim,
        n_layers=asked.layers,
        n_heads=8,
        n_kv_heads=4,
        head_dim=asked.dim // 8,
        hidden_dim=asked.dim * 11 // 4,
        vocab_size=8192,
        max_seq_len=1024,
    )
    llama_jax.save(llama_jax.init_params(jax.random.key(0), config), Path(folder) / "model")


def run(folder: str, mesh: dict[str, int], processes: int) -> float:
    """Tokens a second on a mesh, in fresh processes that have a core for each device."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    running = []
    for i in range(processes):
        what = {"folder": folder, "mesh": mesh, "port": port, "processes": processes, "process": i}
        command = [sys.executable, __file__, *sys.argv[1:], "--one", json.dumps(what)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
    said = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit(f"{mesh} over {processes} processes failed; see above")
    return float(said[0].splitlines()[-1])


def measure(
    asked: argparse.Namespace,
    folder: str,
    mesh: dict[str, int],
    port: int,
    processes: int,
    process: int,
) -> None:
    """One process's part of a measurement; prints the tokens a second of the whole."""
    devices = 2 if mesh else 1
    here = devices // processes
    cores = sorted(os.sched_getaffinity(0))
    # Before JAX starts its threads: there is one for each core that it sees.
    os.sched_setaffinity(0, cores[process * here : (process + 1) * here])
    import jax

    jax.config.update("jax_num_cpu_devices", here)
    import llama_jax

    if processes > 1:
        llama_jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    on = llama_jax.make_mesh(**mesh) if mesh else None
    params = llama_jax.load(Path(folder) / "model", mesh=on, dtype="float32")
    prompts = [[1 + row, 2, 3, 4] for row in range(asked.rows)]
    best = float("inf")
    for _ in range(1 + asked.repeats):  # the first compiles, and is never the fastest
        start = time.perf_counter()
        llama_jax.generate(params, prompts, max_new_tokens=asked.tokens, temperature=0)
        best = min(best, time.perf_counter() - start)
    print(asked.rows * asked.tokens / best)


if __name__ == "__main__":
    main()
