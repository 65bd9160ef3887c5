"""Ctrl-C ends a command with 130 and no traceback, also while Python still imports."""

import subprocess
import sys

import pytest
from helpers import ROOT

BEGINS = """
import sys

class Interrupted:
    def find_spec(name, *_):
        if name == {module!r}:
            {action}

sys.meta_path.insert(0, Interrupted)
sys.argv = ["llama-jax", "generate", "Once upon a time", "-n", "1"]
from llama_jax.__main__ import main
main()
"""
IN_C = "raise ImportError('cannot initialize') from KeyboardInterrupt()"
"""What an extension module makes of it."""


def begun(module, action):
    code = BEGINS.format(module=module, action=action)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("module", "action"),
    [
        ("llama_jax.cli.chat", "raise KeyboardInterrupt"),
        ("jax", "raise KeyboardInterrupt"),
        ("jaxlib._jax", IN_C),
        ("llama_jax.generation.text", "raise RuntimeError from KeyboardInterrupt()"),
    ],
)
def test_ctrl_c_during_an_import_is_no_error(module, action):
    done = begun(module, action)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_an_import_that_fails_otherwise_is_an_error():
    done = begun("jaxlib._jax", "raise ImportError('of another machine')")
    assert done.returncode == 1
    assert "of another machine" in done.stderr
