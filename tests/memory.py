"""How much memory of its own a piece of code takes, as Linux counts it."""

import contextlib
import subprocess
import threading
import time
from pathlib import Path


class AnonymousPeak:
    """Samples this process's resident anonymous memory (not the files it has mapped), in bytes."""

    def __enter__(self):
        self.before = self.peak = anonymous_bytes()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._stopped.set()
        self._thread.join()
        self.peak = max(self.peak, anonymous_bytes())

    @property
    def added(self):
        return self.peak - self.before

    def _sample(self):
        while not self._stopped.is_set():
            self.peak = max(self.peak, anonymous_bytes())
            time.sleep(0.002)


def run_measured(command, **options):
    """Runs a command; its result, and its own process's peak of anonymous memory in bytes."""
    process = subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError):  # it has just ended
            peak = max(peak, anonymous_bytes(process.pid))
        time.sleep(0.005)
    out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err), peak


def anonymous_bytes(process="self"):
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon; this needs Linux 4.5")
