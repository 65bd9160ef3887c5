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
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
FREE = {  # no kernel runs for these
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
    *("while", "conditional", "call", "partition-id", "replica-id"),
    *("async-start", "async-done", *(f"{kind}-done" for kind in COLLECTIVES)),
}
UPDATES, SLICES = ("dynamic-update-slice", "scatter"), ("dynamic-slice", "slice", "gather")
CALLS_THE_HOST = re.compile(r'custom_call_target="[^"]*callback')


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
    def elements(self) -> int:
        """Of the largest array it yields, a tuple's too."""
        return max((_elements(sizes) for _, sizes in ARRAY.findall(self.shape)), default=0)

    @property
    def axes(self) -> int:
        """Of the array it yields."""
        return len(ARRAY.findall(self.shape)[0][1].split(","))

    @property
    def fused(self) -> str | None:
        """The name of the computation that it runs as one kernel."""
        found = re.search(r"\bcalls=%([\w.\-]+)", self.rest)
        return found and found[1]

    @property
    def waits(self) -> bool:
        """Whether nothing runs beside it, of a collective."""
        return self.op in COLLECTIVES or '"is_sync":true' in self.rest

    @property
    def multiplies(self) -> bool:
        """Whether it is a kernel that multiplies matrices."""
        return "gemm" in (self.fused or "") or "__cublas" in self.rest

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

    @functools.cached_property
    def turns(self) -> dict[str, int]:
        """How often each computation runs; a loop of unknown length counts as one turn."""
        found = dict.fromkeys(self.executed, 0)

        def count(name: str, times: int) -> None:
            found[name] += times
            for instruction in self.computations[name]:
                if instruction.op in ("while", "conditional", "call"):
                    for inner in _run_by(instruction):
                        count(inner, times * (instruction.trips or 1))

        count(self.entry, 1)
        return found

    @property
    def launches(self) -> int:
        """How many kernels run: those of a loop at every turn."""
        parts = self.executed.items()
        return sum(self.turns[name] * sum(i.op not in FREE for i in part) for name, part in parts)

    def inside(self, computation: str) -> Program:
        return Program(self.computations, computation)

    def large_outputs(self, limit: int) -> list[str]:
        """Kernels that write an array of `limit` bytes or more, but for updates in place."""
        large = [i for i in self.kernels if i.nbytes >= limit and not self.updates_in_place(i)]
        return [f"{i.name} writes {i.shape}" for i in large]

    def updates_in_place(self, kernel: Instruction) -> bool:
        """Whether it changes a part of an operand and gives back that operand."""
        if kernel.fused is None:
            return kernel.op in UPDATES
        inside = self.computations[kernel.fused]
        return any(i.op in UPDATES and i.nbytes == kernel.nbytes for i in inside)

    def readers(self, limit: int) -> dict[str, list[Instruction]]:
        """For each array of `limit` bytes or more that comes from outside, its kernels."""
        found = {}
        for part in self.executed.values():
            for source in part:
                comes_in = source.op in ("parameter", "get-tuple-element")
                if comes_in and not source.shape.startswith("(") and source.nbytes >= limit:
                    found[source.name] = _readers(part, source.name)
        return found

    def readers_of(self, source: str) -> list[Instruction]:
        """The kernels that take an array."""
        return _readers(self._part_of(source), source)

    def array(self, source: str) -> Instruction:
        """What makes an array."""
        return next(i for i in self._part_of(source) if i.name == source)

    def _part_of(self, source: str) -> tuple[Instruction, ...]:
        """The computation that makes an array."""
        return next(p for p in self.executed.values() if any(i.name == source for i in p))

    def bytes_read(self, kernel: Instruction, source: str) -> int:
        """Of an array, by one of its readers: less than all where it takes or writes a part."""
        names, users = _names(self._part_of(source), source), (kernel,)
        whole = self.array(source).nbytes
        if kernel.fused is not None:
            users = self.computations[kernel.fused]
            places = {str(i) for i, name in enumerate(kernel.operands) if name in names}
            parameters = [i for i in users if i.op == "parameter"]
            taken = [i.name for i in parameters if i.rest.split(")")[0] in places]
            names = set().union(*(_names(users, name) for name in taken))
        users = [i for i in users if i.op != "bitcast" and names & set(i.operands)]
        return min(whole, sum(_share(user, names, whole) for user in users))

    def times_read(self, shape: str) -> float:
        """How often an array of such a shape that comes from outside is read, on the average."""
        outside = [i for i in self.computations[self.entry] if i.op == "parameter"]
        whole = sum(i.nbytes for i in outside if i.shape.startswith(shape))
        read = 0
        for name, part in self.executed.items():
            for i in part:
                if i.op in ("parameter", "get-tuple-element") and i.shape.startswith(shape):
                    by = _readers(part, i.name)
                    read += self.turns[name] * sum(self.bytes_read(k, i.name) for k in by)
        return read / whole

    def host_waits(self) -> list[str]:
        """Where host and device wait for each other: branches, loops of unknown length, Python."""
        return [
            i.name
            for part in self.executed.values()
            for i in part
            if i.op in ("conditional", "infeed", "outfeed", "send", "recv")
            or (i.op == "while" and i.trips is None)
            or (i.op == "custom-call" and CALLS_THE_HOST.search(i.rest))
        ]

    def beside(self) -> list[tuple[Instruction, list[Instruction]]]:
        """Each collective, and the kernels between its begin and its end.

        The text is the order in which a GPU is given its work; a collective has a stream of its
        own, unless it is one instruction or says that it is synchronous.
        """
        found = []
        for part in self.executed.values():
            places = {i.name: n for n, i in enumerate(part)}
            for end, done in enumerate(part):
                if done.op in COLLECTIVES:
                    found.append((done, []))
                elif done.op.endswith("-done"):
                    begin = places[done.operands[0]]
                    between = [i for i in part[begin + 1 : end] if i.op not in FREE]
                    found.append((part[begin], [] if part[begin].waits else between))
        return found

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
    names = _names(part, source)
    return [i for i in part if i.op not in FREE and names & set(i.operands)]


def _names(part: tuple[Instruction, ...], source: str) -> set[str]:
    """An array's name, and those of the same bytes in another shape."""
    names = {source}
    for instruction in part:
        if instruction.op == "bitcast" and names & set(instruction.operands):
            names.add(instruction.name)
    return names


def _share(user: Instruction, names: set[str], whole: int) -> int:
    """The bytes that an instruction reads of an array: of its first operand, a part may do."""
    if user.op in (*UPDATES, *SLICES) and not names & set(user.operands[1:]):
        return user.nbytes if user.op in SLICES else 0
    return whole


def _nbytes(array: tuple[str, str]) -> int:
    bits, sizes = array
    return _elements(sizes) * max(1, int(bits or 8) // 8)


def _elements(sizes: str) -> int:
    return math.prod(int(n) for n in sizes.split(",") if n)
