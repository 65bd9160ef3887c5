"""Real jobs for tests: several processes over loopback, and none of them left behind."""

import os
import socket
import subprocess
import sys
import time

from helpers import ROOT


class Job:
    """So many processes that run one program; `{process}` in an argument is which one it is."""

    def __init__(self, processes, *arguments, absent=(), environment=None):
        port = free_port()
        self.started = time.monotonic()
        self.running = {
            i: subprocess.Popen(
                [sys.executable, *(_filled(word, i, port) for word in arguments)],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
            if i not in absent
        }

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for process in self.running.values():
            process.kill()
            process.communicate()

    def say(self, text):
        """Types a text into process 0, and nothing into the others."""
        self.running[0].stdin.write(text)
        self.running[0].stdin.flush()

    def wait_for(self, word, process=0):
        """Reads what a process prints up to a line with `word` in it."""
        for line in self.running[process].stdout:
            if word in line:
                return
        raise AssertionError(f"process {process} never said {word}: {self.ended()[process].stderr}")

    def ended(self, seconds=120):
        """What each process that was started has printed, and its exit code."""
        found = {}
        for i, process in self.running.items():
            out, err = process.communicate(timeout=seconds)
            found[i] = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        return found


def _filled(word, process, port):
    return str(word).replace("{process}", str(process)).replace("{port}", str(port))


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def over(processes):
    """The options that make a command one of `processes` on this machine."""
    coordinator = ("--coordinator", "127.0.0.1:{port}", "--processes", processes)
    return ("--distributed", *coordinator, "--process", "{process}")
