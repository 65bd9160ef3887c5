"""`python -m tests.fuzz.costs`: what the files that we made to cost the most do cost.

Each is made by one child of a process that has imported JAX, and read by another, whose processor
time and memory beyond its start are measured. Both are bounded by docs/security.md. What else runs
makes a core slower, and a slow machine has slower ones: the time counts in seconds of a quiet core
of the machine of that page's table, by fixed work that the child does before and after.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
os.environ["JAX_PLATFORMS"] = "cpu"

from fuzz.kills import Tell, child  # noqa: E402
from fuzz.seeds import make, peft_on, read_gguf, read_tokenizer, read_weights  # noqa: E402
from fuzz.trying import MAX_SECONDS, wrong_words  # noqa: E402
from fuzz.worst import Worst  # noqa: E402
from fuzz.worst_tokenizers import TOKENIZERS  # noqa: E402
from fuzz.worst_weights import WEIGHTS  # noqa: E402

WORST = {**WEIGHTS, **TOKENIZERS}
READERS: dict[str, Callable[[Path], Any]] = {
    **dict.fromkeys(("pth", "safetensors", "native", "bnb-nf4"), read_weights),
    **dict.fromkeys(("tokenizer.json", "tokenizer.model", "tiktoken"), read_tokenizer),
    "gguf": read_gguf,
}
QUIET = 0.08
"""Seconds of processor time that the fixed work takes on a quiet core, by Python 3.11."""
_ENDED = 120
"""Seconds of processor time after which the system ends a reader."""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a reader took, and its error's words; none where it read the file."""

    size: int
    measured: float
    mib: int
    said: str
    slower: float
    """How many times a quiet core's time the fixed work took."""

    @property
    def seconds(self) -> float:
        """Of a quiet core."""
        return self.measured / max(1.0, self.slower)

    def wrong(self) -> str | None:
        """What breaks a promise."""
        if self.seconds > MAX_SECONDS:
            return f"it took {self.seconds:.1f} s"
        if self.mib << 20 > 3 * (self.size + 200_000_000):
            return f"it took {self.mib:,} MiB"
        return wrong_words(self.said)


def cost(worst: Worst, sound: str, folder: Path) -> Cost:
    """What a file costs that takes its place in a copy of a sound folder."""
    shutil.copytree(sound, folder)
    file = folder / worst.file

    def write(tell: Tell) -> None:
        content = worst.made(file)
        file.write_bytes(content)
        tell({"size": len(content)})

    read = READERS.get(worst.seed, peft_on(Path(sound).with_name("hf")))
    (written,) = child(write, folder)
    told = child(lambda tell: _read(read, folder, tell), folder)
    shutil.rmtree(folder)
    ended = {"measured": float(_ENDED), "mib": 0, "said": "", "slower": 1.0}
    return Cost(**written, **(told[0] if told else ended))


def _seeds(root: Path, tell: Tell) -> None:
    """Makes the sound folders. A child must: what has written a native one may not fork."""
    tell({name: str(seed.folder) for name, seed in make(root).items()})


def _read(read: Callable[[Path], Any], folder: Path, tell: Tell) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (_ENDED, _ENDED))
    slower = fixed_work()
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    before, began, said = _peak(), time.process_time(), ""
    try:
        read(folder)
    except (ValueError, OSError) as error:
        said = str(error).replace(str(folder), "")
    found: dict[str, Any] = {"measured": time.process_time() - began, "mib": _peak() - before}
    slower = (slower + fixed_work()) / 2 / QUIET
    tell({**found, "said": said, "slower": slower})


def fixed_work() -> float:
    """Seconds of processor time that some Python takes; it leaves no memory behind."""
    began = time.process_time()
    for _ in range(100):
        found = {str(n): n for n in range(4_000)}
        sum(len(name) + number for name, number in found.items())
    return time.process_time() - began


def _peak() -> int:
    """This process's largest resident memory, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) >> 10


def costs(root: Path, chosen: dict[str, Worst]) -> dict[str, Cost]:
    """What each file costs, printed as it is known."""
    found = {}
    (folders,) = child(lambda tell: _seeds(root, tell), root / "made" / "x")
    for number, (name, worst) in enumerate(chosen.items()):
        tries = []
        while not tries or (tries[-1].wrong() and len(tries) < 3):  # a busy machine is slow
            tries.append(cost(worst, folders[worst.seed], root / str(number) / "x"))
        one = found[name] = min(tries, key=lambda one: one.seconds)
        print(
            f"{name:46} {one.size / 1e6:5.1f} MB {one.seconds:6.2f} s "
            f"({one.measured:.2f} on a core {one.slower:.1f} times as slow) {one.mib:5,} MiB  "
            f"{one.said[:60]!r} {one.wrong() or ''}",
            flush=True,
        )
    return found


def main() -> None:
    said = argparse.ArgumentParser(prog="python -m tests.fuzz.costs", description=__doc__)
    said.add_argument("--only", action="append", help="a part of a file's name; may be repeated")
    given = said.parse_args()
    parts = given.only or [""]
    chosen = {name: one for name, one in WORST.items() if any(part in name for part in parts)}
    with tempfile.TemporaryDirectory() as root:
        found = costs(Path(root), chosen)
    slowest = max(found, key=lambda name: found[name].seconds)
    largest = max(found, key=lambda name: found[name].mib)
    print(
        f"{len(found)} files: the slowest {found[slowest].seconds:.1f} s ({slowest}), the largest "
        f"{found[largest].mib:,} MiB ({largest})"
    )
    raise SystemExit(1 if any(one.wrong() for one in found.values()) else 0)


if __name__ == "__main__":
    main()
