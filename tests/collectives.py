"""Which devices talk to which, and about what: read from a compiled program's text."""

import dataclasses
import itertools
import math
import re

import numpy as np

KINDS = (
    "all-reduce",
    "all-gather",
    "all-to-all",
    "reduce-scatter",
    "collective-permute",
    "collective-broadcast",
)
INSTRUCTION = re.compile(rf"= (\(.*?\)|\S+) ({'|'.join(KINDS)})(-start)?\((.*)")
ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
NAMED = re.compile(
    r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}"
)
LISTED = re.compile(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One array that devices exchange; XLA may send several in one instruction."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    """Of the result on each device."""
    axes: tuple[str, ...]
    """Of the mesh, along which devices exchange it; `?` where no axes explain who does."""
    entry: bool
    """Whether it stands in the entry computation, and so in no loop and no branch."""

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def collectives(text: str, mesh) -> list[Collective]:
    """Every collective of `compiled.as_text()`, a CPU's or GPU's; a loop's body counts once."""
    found, entry = [], False
    for line in text.splitlines():
        if line.endswith("{"):
            entry = line.startswith("ENTRY")
        if match := INSTRUCTION.search(line):
            result, kind, start, rest = match.groups()
            arrays = ARRAY.findall(result)
            if start and kind in ("all-gather", "collective-permute"):
                # An asynchronous one lists what goes in before what comes out.
                arrays = arrays[len(arrays) // 2 :] if kind == "all-gather" else arrays[1:2]
            axes = _axes(_groups(rest), mesh)
            for dtype, dims in arrays:
                shape = tuple(int(n) for n in dims.split(",") if n)
                found.append(Collective(kind, dtype, shape, axes, entry))
    return found


def _groups(rest: str) -> set[frozenset[int]]:
    """Who exchanges with whom, in any of XLA's three ways of writing it."""
    if match := NAMED.search(rest):
        return _named_groups(*match.groups())
    if match := IOTA.search(rest):
        shape, tiles, order = match.groups()
        return _rows(_iota(tiles, order).reshape(_numbers(shape)))
    if match := LISTED.search(rest):
        return {frozenset(_numbers(row)) for row in re.findall(r"\{([\d,]+)\}", match[1])}
    return set()


def _named_groups(sizes: str, tiles: str, order: str, along: str) -> set[frozenset[int]]:
    """Of XLA's own mesh, whose axes may be named in part: `'a':(2)4` is 4 of a, after 2 others."""
    shape = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    ids = np.arange(math.prod(shape.values())) if tiles is None else _iota(tiles, order)
    split, moved = [], []
    parts = {name: part for name, *part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)}
    for name, size in shape.items():
        before, inside = (int(n or 0) for n in parts.get(name, (size, 1)))
        before, inside = (before, inside) if before else (1, size)
        moved += [len(split) + 1]
        split += [before, inside, size // before // inside]
    ids = np.moveaxis(ids.reshape(split), moved, range(len(split) - len(moved), len(split)))
    return _rows(ids.reshape(-1, math.prod(split[axis] for axis in moved)))


def _iota(tiles: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_numbers(tiles))).reshape(_numbers(tiles))
    return ids if order is None else ids.transpose(_numbers(order))


def _rows(groups: np.ndarray) -> set[frozenset[int]]:
    return {frozenset(row.tolist()) for row in groups}


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _axes(groups: set[frozenset[int]], mesh) -> tuple[str, ...]:
    """The axes of the mesh along which these groups of devices differ, all others being fixed."""
    shape = tuple(mesh.shape.values())
    names = [axis for axis in mesh.axis_names if mesh.shape[axis] > 1]
    for count in range(1, len(names) + 1):
        for some in itertools.combinations(names, count):
            moved = [mesh.axis_names.index(axis) for axis in some]
            ids = np.arange(mesh.size).reshape(shape)
            ids = np.moveaxis(ids, moved, range(len(shape) - count, len(shape)))
            rows = ids.reshape(-1, math.prod(mesh.shape[axis] for axis in some))
            if groups == _rows(rows):
                return some
    return ("?",)
