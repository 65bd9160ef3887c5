"""What a compiled program must keep to: a check returns what breaks it, and `== []` is kept.

The tests apply them to our programs, and `test_planted.py` to programs with a known fault. What a
program takes is known by its axes, as a loop has its own names: a matrix is a weight, and an array
of four axes a cache.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from compiled_text import ARRAY, FREE, Instruction, Program

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
    taken = text.readers(smallest)
    weights = {name: by for name, by in taken.items() if text.array(name).axes == 2}
    missed = [f"{len(weights)} weights of {count}"] if len(weights) != count else []
    named = {name: [i.name for i in by] for name, by in weights.items()}
    return missed + [f"{name}: {by}" for name, by in named.items() if len(by) != 1]


def caches_misused(text: Program, count: int, smallest: int) -> list[str]:
    """Of `count` caches, those that not one kernel alone reads and then another writes in place.

    What was written is the caller's: nothing reads that either.
    """
    caches = _caches(text, smallest)
    faults = [f"{len(caches)} caches of {count}"] if len(caches) != count else []
    for name, (read, written) in caches.items():
        if not len(read) == len(written) == 1 or read == written:
            names = [[i.name for i in kernels] for kernels in (read, written)]
            faults.append(f"{name}: read by {names[0]}, written by {names[1]}")
    return faults


def caches_read_by_xla(text: Program, smallest: int) -> list[str]:
    """Caches that kernels other than our own read."""
    return [
        f"{name}: {i.name}"
        for name, (read, _) in _caches(text, smallest).items()
        for i in read
        if i.op != "custom-call" or "xla.gpu.triton" not in i.rest
    ]


def copies_of_caches(text: Program, cache: Sequence[int]) -> list[str]:
    """Kernels that give a cache's numbers once more, in whatever order of axes and dtype.

    Such a kernel takes an array of the cache's sizes and gives another, and not by an update in
    place. A new cache's zeros are no copy.
    """

    def has_sizes(shape: str) -> bool:
        found = [sizes.split(",") for _, sizes in ARRAY.findall(shape)]
        return any(sorted(n for n in sizes if n != "1") == wanted for sizes in found)

    wanted = sorted(str(n) for n in cache if n != 1)
    copies = []
    for part in text.executed.values():
        of_sizes = {i.name for i in part if has_sizes(i.shape)}
        copies += [
            f"{i.name} writes {i.shape}"
            for i in part
            if i.op not in FREE and i.name in of_sizes and of_sizes & set(i.operands)
            if not text.updates_in_place(i)
        ]
    return copies


def taken_by_loops(text: Program, smallest: int) -> list[str]:
    """Arrays of `smallest` bytes or more that a loop inside a step takes, and may read in parts."""
    return [name for name in text.readers(smallest) if not name.startswith(("params", "cache"))]


def kernels_beyond(deep: Program, shallow: Program, layers: int, allowed: int) -> list[str]:
    """The kernels that a layer runs, of a program with so many more than another, if too many."""
    more = (deep.launches - shallow.launches) / layers
    return [f"{more:.1f} kernels a layer, not {allowed}"] if more >= allowed + 0.5 else []


def products(text: Program, smallest: int) -> Counter[tuple[str, ...]]:
    """The shapes of weights that one kernel takes together, and how many kernels do."""
    taken: dict[str, list[str]] = {}
    for name, by in text.readers(smallest).items():
        for kernel in by:
            if text.array(name).axes == 2:
                taken.setdefault(kernel.name, []).append(text.array(name).shape.split("{")[0])
    return Counter(tuple(sorted(shapes)) for shapes in taken.values() if len(shapes) > 1)


def cudnn_calls(text: Program) -> int:
    """How often the program calls cuDNN's attention."""
    return sum("__cudnn$fmha" in i.rest for i in text.kernels)


def collectives_other_than(text: Program, wanted: Sequence[str]) -> list[str]:
    """The collectives, if they are not those wanted, in order; a missing one is a fault as well."""
    found = text.collectives()
    return [] if found == list(wanted) else [f"{found}, not {list(wanted)}"]


def _caches(text: Program, smallest: int) -> dict[str, tuple[list[Instruction], list[Instruction]]]:
    """For each cache, the kernels that read it, before it is written or after, and that write."""
    found = {}
    for name, by in text.readers(smallest).items():
        if text.array(name).axes == 4:
            written = [i for i in by if text.updates_in_place(i)]
            uses = [(i, name) for i in by]
            uses += [(i, w.name) for w in written for i in text.readers_of(w.name)]
            sizes = {of: text.array(of).nbytes for _, of in uses}
            read = [i for i, of in uses if text.bytes_read(i, of) * A_GLANCE > sizes[of]]
            found[name] = read, written
    return found
