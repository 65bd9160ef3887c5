"""One model over the machines of a Ray cluster, a process a machine, as `llama-jax` is run on one.

python tools/launch/on_ray.py --machines 2 --gpus 8 generate CHECKPOINT "Once" --tensor 8 --fsdp 2

What follows the two counts goes to llama-jax. Ray places the processes and hands process 0's text
back; JAX joins them.
"""

import argparse
import os
import socket
import subprocess
import sys

import ray
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy


@ray.remote
class Process:
    """Where one process of the job runs."""

    def address(self) -> str:
        """This machine, and a port that is free on it."""
        with socket.socket() as one:
            one.bind(("", 0))
            return f"{ray.util.get_node_ip_address()}:{one.getsockname()[1]}"

    def run(self, arguments: list[str]) -> tuple[int, str]:
        """The command's exit code and what it printed; Ray shows its stderr as it comes."""
        command = [sys.executable, "-m", "llama_jax", *arguments]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        return done.returncode, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--machines", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0, help="of each machine")
    parser.add_argument("--pack", action="store_true", help="allow several on one machine")
    asked, command = parser.parse_known_args()
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}})
    bundle = {"CPU": 1, "GPU": asked.gpus} if asked.gpus else {"CPU": 1}
    strategy = "PACK" if asked.pack else "STRICT_SPREAD"
    group = placement_group([bundle] * asked.machines, strategy=strategy)
    ray.get(group.ready())
    processes = [
        Process.options(
            num_cpus=1,
            num_gpus=asked.gpus,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, i),
        ).remote()
        for i in range(asked.machines)
    ]
    job = ["--distributed", "--coordinator", ray.get(processes[0].address.remote())]
    job += ["--processes", str(asked.machines)]
    running = [
        process.run.remote([*command, *job, "--process", str(i)])
        for i, process in enumerate(processes)
    ]
    codes = [code for code, _ in ray.get(running)]
    sys.stdout.write(ray.get(running[0])[1])
    sys.exit(max(codes, key=abs))


if __name__ == "__main__":
    main()
