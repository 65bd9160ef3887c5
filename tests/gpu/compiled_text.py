"""What a compiled GPU program does, read from XLA's text: its kernels, what they read and write.

A check returns what breaks it, so that `== []` is the contract and a failure says why.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

LINE = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
RUN = re.compile(
    r"\b(?:body|condition|true_computation|false_computation|to_apply)=%([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
FREE = {  # no kernel runs for these
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "partition-id", "replica-id"),
    *("all-reduce-done", "all-gather-done", "async-start", "async-done"),
}
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    op: str
    shape: str
    operands: tuple[str, ...]
    rest: str

    @property
    def nbytes(self) -> int:
        """Of the largest array it yields."""
        return max(map(_nbytes, ARRAY.findall(self.shape)), default=0)

    @property
    def fused(self) -> str | None:
        """The name of the computation that it runs as one kernel."""
        found = re.search(r"\bcalls=%([\w.\-]+)", self.rest)
        return found and found[1]

    @property
    def body(self) -> str:
        """The name of what a while repeats."""
        return re.search(r"\bbody=%([\w.\-]+)", self.rest)[1]

    @property
    def trips(self) -> int | None:
        """How often a while runs, where that is known before."""
        found = re.search(r'"known_trip_count":\{"n":"(\d+)"', self.rest)
        return found and int(found[1])


@dataclasses.dataclass(frozen=True)
class Program:
    """The computations of a compiled program, by name, and the one that starts it."""

    computations: dict[str, tuple[Instruction, ...]]
    entry: str

    @functools.cached_property
    def executed(self) -> dict[str, tuple[Instruction, ...]]:
        """The computations that run as such, and not inside a kernel."""
        found, waiting = {}, [self.entry]
        while waiting:
            name = waiting.pop()
            if name not in found:
                found[name] = self.computations[name]
                for instruction in found[name]:
                    if instruction.op in ("while", "conditional", "call"):
                        waiting += _run_by(instruction)
        return found

    @property
    def kernels(self) -> list[Instruction]:
        return [i for part in self.executed.values() for i in part if i.op not in FREE]

    def inside(self, computation: str) -> Program:
        return Program(self.computations, computation)

    def large_outputs(self, limit: int) -> list[str]:
        """Kernels that write an array of `limit` bytes or more, but for updates in place."""
        large = [i for i in self.kernels if i.nbytes >= limit and not self.updates_in_place(i)]
        return [f"{i.name} writes {i.shape}" for i in large]

    def updates_in_place(self, kernel: Instruction) -> bool:
        """Whether it changes a part of an operand and gives back that operand."""
        updates = ("dynamic-update-slice", "scatter")
        if kernel.fused is None:
            return kernel.op in updates
        inside = self.computations[kernel.fused]
        return any(i.op in updates and i.nbytes == kernel.nbytes for i in inside)

    def readers(self, limit: int) -> dict[str, list[Instruction]]:
        """For each array of `limit` bytes or more that comes from outside, its kernels."""
        found = {}
        for part in self.executed.values():
            for source in part:
                comes_in = source.op in ("parameter", "get-tuple-element")
                if comes_in and not source.shape.startswith("(") and source.nbytes >= limit:
                    found[source.name] = _readers(part, source.name)
        return found

    def host_waits(self) -> list[str]:
        """Where the host waits for a device's answer: branches, and loops of unknown length."""
        return [
            i.name
            for part in self.executed.values()
            for i in part
            if i.op == "conditional" or (i.op == "while" and i.trips is None)
        ]

    def collectives(self) -> list[str]:
        """The kinds of its collectives, in the order of the text."""
        kinds = [i.op.removesuffix("-start") for i in self.kernels]
        return [kind for kind in kinds if kind in COLLECTIVES]


def program(text: str) -> Program:
    """Reads what `compiled.as_text()` gives."""
    computations: dict[str, list[Instruction]] = {}
    current, entry = "", ""
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")):
            current = line.split("%")[1].split(" ")[0]
            computations[current] = []
            entry = current if line.startswith("ENTRY") else entry
        elif current and (match := LINE.match(line)):
            name, op, shape, rest = match[1], match[3], match[2], match[4]
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            computations[current].append(Instruction(name, op, shape, tuple(operands), rest))
    return Program({name: tuple(part) for name, part in computations.items()}, entry)


def _run_by(instruction: Instruction) -> list[str]:
    found = RUN.findall(instruction.rest)
    return [name.strip(" %") for one, many in found for name in (one or many).split(",")]


def _readers(part: tuple[Instruction, ...], source: str) -> list[Instruction]:
    """The kernels that take an array, as it is or as another shape of the same bytes."""
    names = {source}
    for instruction in part:
        if instruction.op == "bitcast" and names & set(instruction.operands):
            names.add(instruction.name)
    return [i for i in part if i.op not in FREE and names & set(i.operands)]


def _nbytes(array: tuple[str, str]) -> int:
    bits, sizes = array
    return math.prod(int(n) for n in sizes.split(",") if n) * max(1, int(bits or 8) // 8)
