"""What a compiled program must keep to: a check returns what breaks it, and `== []` is kept.

The tests apply them to our programs, and `test_planted.py` to programs with a known fault.
"""

from __future__ import annotations

from collections.abc import Sequence

from compiled_text import Program

KERNELS_A_LAYER = {1: 22, 8: 17}
"""Of a step of 8B, by the rows of its batch."""
A_GLANCE = 1000
"""A kernel that reads less than one part in so many of a cache looks at a slot, not at the past."""


def arrays_of(text: Program, elements: int) -> list[str]:
    """Arrays of so many elements or more: weights, what a kernel writes, parts of a tuple."""
    every = [i for part in text.executed.values() for i in part]
    return [f"{i.name}: {i.shape}" for i in every if i.elements >= elements]


def weights_not_read_once(text: Program, count: int, smallest: int) -> list[str]:
    """Of `count` weights of `smallest` bytes or more, those that not exactly one kernel takes."""
    readers = text.readers(smallest)
    weights = {name: by for name, by in readers.items() if name.startswith("params")}
    missed = [f"{len(weights)} weights of {count}"] if len(weights) != count else []
    named = {name: [i.name for i in by] for name, by in weights.items()}
    return missed + [f"{name}: {by}" for name, by in named.items() if len(by) != 1]


def caches_misused(text: Program, count: int, smallest: int) -> list[str]:
    """Of `count` caches, those that not our kernel alone reads and then one other writes in place.

    What was written is the caller's: nothing reads that either.
    """
    readers = text.readers(smallest)
    caches = {name: by for name, by in readers.items() if name.startswith("cache")}
    faults = [f"{len(caches)} caches of {count}"] if len(caches) != count else []
    for name, by in caches.items():
        written = [i for i in by if text.updates_in_place(i)]
        uses = [(i, name) for i in by]
        uses += [(i, w.name) for w in written for i in text.readers_of(w.name)]
        read = [i for i, of in uses if text.bytes_read(i, of) * A_GLANCE > text.nbytes(of)]
        ours = [i for i in read if i.op == "custom-call" and "xla.gpu.triton" in i.rest]
        if not len(read) == len(ours) == len(written) == 1:
            names = [[i.name for i in kernels] for kernels in (read, written)]
            faults.append(f"{name}: read by {names[0]}, written by {names[1]}")
    return faults


def taken_by_loops(text: Program, smallest: int) -> list[str]:
    """Arrays of `smallest` bytes or more that a loop takes, where they are read under other names.

    The two promises above see readers outside of loops; a step needs no other.
    """
    return [name for name in text.readers(smallest) if not name.startswith(("params", "cache"))]


def kernels_beyond(deep: Program, shallow: Program, layers: int, allowed: int) -> list[str]:
    """The kernels that a layer runs, of a program with so many more than another, if too many."""
    more = (deep.launches - shallow.launches) / layers
    return [f"{more:.1f} kernels a layer, not {allowed}"] if more >= allowed + 0.5 else []


def cudnn_calls(text: Program) -> int:
    """How often the program calls cuDNN's attention."""
    return sum("__cudnn$fmha" in i.rest for i in text.kernels)


def collectives_beyond(text: Program, allowed: Sequence[str]) -> list[str]:
    """Collectives, if they are not those allowed, in order."""
    found = text.collectives()
    return [] if found == list(allowed) else found
