"""Writings that link an older checkpoint's files, and training's states, killed with SIGKILL.

`python -m tests.fuzz.kills` has the others, and more of them.
"""

import subprocess
import sys

import pytest
from helpers import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("moments", [["--kills=12"], ["--calls", "--share=0/20"]])
def test_a_save_killed_at_any_moment_leaves_what_was_or_what_is_to_be(moments):
    """At random moments, and at every twentieth of its system calls."""
    saves = ["--only=save adapters", "--only=training's saves"]
    command = [sys.executable, "-m", "tests.fuzz.kills", *moments, *saves]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.count(" killed, and ") == len(saves)
