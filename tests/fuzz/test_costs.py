"""What a few of the worst files cost; all of them cost minutes."""

import subprocess
import sys

import pytest
from helpers import ROOT

# One of each kind that once took minutes, and little to make.
QUICK = (
    "peft, tensors",
    "safetensors, dots",
    "native, one file many times",
    "torch, opcode b'('",
    "tokenizer.json, a long regex",
    "tiktoken, too many",
)


def test_no_file_of_those_found_to_be_dear_is_dear_any_more():
    assert tried(*(f"--only={name}" for name in QUICK)).count(" MiB  ") >= len(QUICK)


@pytest.mark.slow
def test_no_file_below_20_mb_costs_more_than_it_may():
    tried()


def tried(*arguments):
    """What the program prints. It forks, which TensorStore forbids to a process that used it."""
    command = [sys.executable, "-m", "tests.fuzz.costs", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return done.stdout
