"""Changed files, each read; what breaks a promise of docs/security.md is a find, and kept."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from fuzz.formats import NATIVE_KINDS
from fuzz.mutations import change, template
from fuzz.seeds import DIALOG, Seed, make, without_sums
from fuzz.watchdog import watched

from llama_jax.tokenizer.chat_template import ChatTemplate

MAX_SECONDS, MAX_SAID, MAX_MIB = 5.0, 500, 572  # 3 times 200 MB
HANGS = 60
"""Seconds after which a reader is ended with its traceback; `_place` says where its file lies."""
SAYS = 30
"""Seconds between two writings of `keep`/report."""
RUNS_CODE = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "socket.connect")
_ran: list[str] = []


@dataclasses.dataclass
class Report:
    """What was tried of each format, what was accepted, and the dearest, by their numbers."""

    tried: dict[str, int] = dataclasses.field(default_factory=dict)
    accepted: dict[str, int] = dataclasses.field(default_factory=dict)
    slowest: dict[str, tuple[float, int]] = dataclasses.field(default_factory=dict)
    largest: tuple[int, str] = (0, "none")
    finds: list[str] = dataclasses.field(default_factory=list)
    next: int = 0
    """The seed that goes on where this run ended."""

    def lines(self) -> list[str]:
        each = [
            f"{name:16} {self.tried[name]:7,} tried {self.accepted.get(name, 0):7,} accepted, "
            "slowest {:.2f} s (change {})".format(*self.slowest[name])
            for name in self.tried
        ]
        total = f"{sum(self.tried.values()):,} changes; --seed {self.next} goes on from here"
        most = "the most memory {:,} MiB ({})".format(*self.largest)
        return [*each, total, most, *self.finds[:40]]


def fuzz(seconds: float, first: int, formats: Sequence[str], keep: Path) -> Report:
    """Tries changes, the first of seed `first`, format after format, until the time is over.

    An interrupt ends it sooner. `keep`/report says how far it is.
    """
    beat, end = watched(HANGS)
    sys.addaudithook(lambda event, _: _ran.append(event) if event in RUNS_CODE else None)
    report, until = Report(next=first), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as root, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seeds = make(Path(root)) if {*formats} - {"template"} else {}
        if {"native", NATIVE_KINDS} & {*formats}:
            seeds = without_sums(seeds, Path(root))
        shutil.rmtree(keep / "now", ignore_errors=True)
        keep.mkdir(parents=True, exist_ok=True)
        for name in {*seeds} & {*formats}:  # sound as they are, and where they are changed
            shutil.copytree(seeds[name].folder, place := _place(keep, name))
            seeds[name].read(place)
        beat()
        with contextlib.suppress(KeyboardInterrupt):
            _try_all(until, seeds, formats, keep, report, beat)
    end()
    return report


def _try_all(
    until: float,
    seeds: dict[str, Seed],
    formats: Sequence[str],
    keep: Path,
    report: Report,
    beat: Callable[[], None],
) -> None:
    said = -math.inf
    for number in itertools.count(report.next):
        report.next = number
        for name in formats:
            now = time.monotonic()
            if now > until and report.tried.keys() >= set(formats):
                return
            if now > said + SAYS:
                said = now
                (keep / "report").write_text("\n".join(report.lines()))
            _try(name, seeds.get(name), number, keep, report)
            beat()


def _try(name: str, seed: Seed | None, number: int, keep: Path, report: Report) -> None:
    rng, now = random.Random(f"{name} {number}"), _place(keep, name)
    resident = _resident()
    if seed is None:
        now.mkdir(parents=True, exist_ok=True)
        file, sound = now / "template", b""
        file.write_text(source := template(rng))
    else:
        file = now / rng.choice(seed.files)
        sound = file.read_bytes()
        file.write_bytes(change(str(file), sound, rng))
    _ran.clear()
    (began, highest), wrong = _spent(), None
    try:
        if seed is None:
            ChatTemplate(source, {"bos_token": "<s>"}).render(DIALOG)
        else:
            seed.read(now)
        report.accepted[name] = report.accepted.get(name, 0) + 1
    except (ValueError, OSError) as error:
        wrong = wrong_words(str(error).replace(str(now), ""))
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        wrong = f"{type(error).__name__}: {error}"
    ended, peak = _spent()
    used = ended - began
    report.tried[name] = report.tried.get(name, 0) + 1
    report.slowest[name] = max((used, number), report.slowest.get(name, (0.0, number)))
    cost = peak - resident if peak > highest else 0  # what others left is not of this one
    report.largest = max((cost, f"{name}, change {number}"), report.largest)
    wrong = f"it ran {_ran}" if _ran else wrong
    wrong = f"it took {used:.1f} s" if used > MAX_SECONDS else wrong
    wrong = f"it took {cost:,} MiB" if cost > MAX_MIB else wrong
    if wrong is not None:
        kept = keep / f"{name}-{number}"
        report.finds.append(f"{name} {number}: {wrong[:300]!r}, kept in {kept}")
        with contextlib.suppress(FileExistsError):
            shutil.copytree(now, kept)
    file.write_bytes(sound)


def _place(keep: Path, name: str) -> Path:
    """Where a format's files are changed. Some readers also look into the folder above."""
    return keep / "now" / name / "files"


def wrong_words(said: str) -> str | None:
    """What breaks a promise in an error's words; None where nothing does."""
    if len(said) > MAX_SAID:
        return f"an error of {len(said):,} characters: {said}"
    return None if said.isprintable() else f"control characters in an error: {said}"


def _spent() -> tuple[float, int]:
    """This process's seconds of processor time, and its largest resident memory in MiB."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_maxrss >> 10


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() >> 20
