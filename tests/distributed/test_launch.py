"""The launch files, as far as a machine without Slurm, Kubernetes or a cluster can run them."""

import itertools
import os
import shutil
import subprocess
import sys

import pytest
from helpers import ROOT
from typer.testing import CliRunner

from llama_jax.cli import app

LAUNCH = ROOT / "tools/launch"
MODEL = ROOT / "tests/golden/meta/llama2-gqa"
ARGUMENTS = ("generate", str(MODEL), "--ids", "1 2 3", "-n", "4", "-t", "0")
SRUN = """#!{python}
# What srun does for two tasks on this machine: the variables, the processes, their output.
import os, subprocess, sys
command = sys.argv[1:]
while command[0].startswith("--"):
    command = command[1:]
said = {{"JOB_ID": os.environ["TEST_JOB_ID"], "STEP_NODELIST": "127.0.0.1", "NTASKS": "2"}}
tasks = [
    subprocess.Popen(command, env={{**os.environ, **{{f"SLURM_{{k}}": v for k, v in
        {{**said, "PROCID": str(i), "LOCALID": str(i)}}.items()}}}})
    for i in range(2)
]
sys.exit(max(task.wait() for task in tasks))
"""


def alone():
    result = CliRunner().invoke(app, list(ARGUMENTS))
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def commands(tmp_path):
    """An environment whose `srun` and `llama-jax` are a stand-in and this tree."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "srun": SRUN.format(python=sys.executable),
        "llama-jax": f'#!/bin/sh\nexec {sys.executable} -m llama_jax "$@"\n',
    }
    for name, text in scripts.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TEST_JOB_ID": str(os.getpid()),  # JAX makes the coordinator's port of it
    }


def test_the_sbatch_script_is_bash_and_shellcheck_finds_nothing():
    script = LAUNCH / "slurm.sbatch"
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    if shutil.which("shellcheck"):
        assert subprocess.run(["shellcheck", script], check=False).returncode == 0


@pytest.mark.slow
def test_under_slurm_two_tasks_find_each_other_and_generate_as_one(commands):
    command = ["bash", LAUNCH / "slurm.sbatch", *ARGUMENTS, "--tensor", "2"]
    done = subprocess.run(command, env=commands, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone()
    assert "over 2 devices (cpu) of 2 processes" in done.stderr


def test_the_manifest_is_a_jobset_whose_counts_and_names_agree():
    yaml = pytest.importorskip("yaml", reason="PyYAML is absent, which reads the manifest")
    manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    name, spec = manifest["metadata"]["name"], manifest["spec"]
    assert set(spec) == {"failurePolicy", "replicatedJobs"}
    (replicated,) = spec["replicatedJobs"]
    assert set(replicated) == {"name", "replicas", "template"}
    job = replicated["template"]["spec"]
    assert replicated["replicas"] == 1
    assert job["completionMode"] == "Indexed"  # each pod has a number, and a name that says it
    (container,) = job["template"]["spec"]["containers"]
    (words,) = ([word.strip('"') for word in text.split()] for text in container["args"])
    option = {a: b for a, b in itertools.pairwise(words) if a.startswith("--")}
    host, port = option["--coordinator"].split(":")
    assert host == f"{name}-{replicated['name']}-0-0.{name}"
    assert int(port) == container["ports"][0]["containerPort"]
    assert int(option["--processes"]) == job["parallelism"] == job["completions"]
    assert option["--process"] == "$JOB_COMPLETION_INDEX"
    gpus = container["resources"]["limits"]["nvidia.com/gpu"] * job["parallelism"]
    assert int(option["--tensor"]) * int(option["--fsdp"]) == gpus
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in job["template"]["spec"]["volumes"]}


def test_the_manifests_command_is_one_that_llama_jax_knows():
    yaml = pytest.importorskip("yaml", reason="PyYAML is absent, which reads the manifest")
    manifest = yaml.safe_load((LAUNCH / "jobset.yaml").read_text())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    (container,) = job["template"]["spec"]["containers"]
    command = [*container["command"], container["args"][0].replace("exec llama-jax", "echo")]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "9"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    checkpoint = done.stdout.index("/checkpoints")
    assert done.stdout[:checkpoint] == "generate "
    words = done.stdout[checkpoint:].split()
    result = CliRunner().invoke(app, ["generate", *words])
    assert result.exit_code == 2
    assert "--process 9 must be from 0 to processes - 1 = 1" in result.stderr


@pytest.mark.slow
def test_on_ray_two_workers_generate_as_one():
    pytest.importorskip("ray", reason="Ray is absent; pip install ray for on_ray.py")
    command = [sys.executable, LAUNCH / "on_ray.py", "--machines", "2", "--pack"]
    done = subprocess.run(
        [*command, *ARGUMENTS, "--tensor", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone()
