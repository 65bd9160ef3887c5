"""The fuzzer's watchdog ends what hangs, and not what was stopped."""

import os
import signal
import subprocess
import sys
import time

import pytest
from fuzz.watchdog import own_seconds
from helpers import ROOT

PROGRAM = """
import sys, time
from fuzz.watchdog import watched
beat, end = watched(6)
print("begun", flush=True)
for _ in range(int(sys.argv[1])):
    time.sleep(0.1)
    beat()
time.sleep(float(sys.argv[2]))
end()
print("ended")
"""


def begun(beats, waits):
    command = [sys.executable, "-c", PROGRAM, str(beats), str(waits)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    job = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, **pipes)
    assert job.stdout.readline() == "begun\n"
    return job


@pytest.mark.parametrize(
    ("states", "used", "own"),
    [("S", 0.0, 1.0), ("SS", 0.3, 1.0), ("RS", 0.01, 0.01), ("SR", 1.7, 1.0), ("TT", 0.2, 0.0)],
)
def test_a_second_without_a_processor_is_not_a_process_s_own(states, used, own):
    assert own_seconds(states, used) == own


@pytest.mark.slow
def test_what_hangs_is_ended_with_its_traceback():
    job = begun(1, 1000)
    _, said = job.communicate(timeout=60)
    assert job.returncode == -signal.SIGABRT
    assert "Current thread" in said


@pytest.mark.slow
def test_what_is_stopped_for_longer_than_that_goes_on():
    job = begun(2, 0)
    job.send_signal(signal.SIGSTOP)
    time.sleep(9)
    job.send_signal(signal.SIGCONT)
    assert job.communicate(timeout=60) == ("ended\n", "")
