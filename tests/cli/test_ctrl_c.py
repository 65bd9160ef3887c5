"""Ctrl-C ends a command with 130 and no traceback, also while Python still imports."""

import subprocess
import sys

import pytest
from helpers import ROOT

BEGINS = """
import os, signal, sys

class Watching:
    def find_spec(name, *_):
        if name == {module!r}:
            {action}

def interrupt(frame, event, argument):
    if event == "call" and frame.f_code.co_filename.endswith("enum.py"):
        sys.setprofile(None)
        print("interrupted", flush=True)
        os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Watching)
sys.argv = ["llama-jax", "generate", "Once upon a time", "-n", "1"]
from llama_jax.__main__ import main
main()
"""


def begun(module, action):
    """The command, with something done where it is about to import a module."""
    code = BEGINS.format(module=module, action=action)
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["llama_jax.cli.chat", "jax", "llama_jax.generation.text"])
def test_ctrl_c_during_an_import_ends_the_command(module):
    done = begun(module, "os.kill(os.getpid(), signal.SIGINT)")
    assert (done.returncode, done.stdout) == (130, ""), done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_waits_until_an_extension_module_is_loaded():
    """That of jaxlib makes enumerations by Python's own class; an interrupt there would abort."""
    done = begun("jaxlib._jax", "sys.setprofile(interrupt)")
    assert (done.returncode, done.stdout) == (130, "interrupted\n"), done.stderr
    assert "Traceback" not in done.stderr


def test_an_import_that_fails_is_an_error():
    done = begun("jaxlib._jax", "raise ImportError('of another machine')")
    assert done.returncode == 1
    assert "of another machine" in done.stderr
