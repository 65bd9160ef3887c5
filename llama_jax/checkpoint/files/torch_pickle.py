"""The pickle inside torch's files, read as data: a closed set of opcodes, and nothing importable.

Python's own unpickler looks names up in modules and calls what it finds. This one knows a
handful of names, each standing only for itself, and builds plain values; a name or an opcode
beyond them is refused before anything happens. `pickletools` cuts the bytes into opcodes.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable
from typing import Any

import numpy as np

from llama_jax.checkpoint.files.messages import Refused
from llama_jax.checkpoint.files.torch_names import (
    BUILDERS,
    RESAVE,
    STORAGES,
    Storage,
    check_name,
    is_count,
)


def read_pickle(data: bytes) -> Any:
    """What `torch.save` pickled: dicts, lists, tuples, scalars and `Tensor`s.

    Time and memory are linear in `data`. Raises `Refused`, or for bytes that are no pickle at
    all whatever Python raises on them.
    """
    _check_names(data)
    machine = _Machine([], [], {})
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name == "STOP":
            break
        if opcode.name not in _OPCODES:
            raise Refused(f"its pickle uses {opcode.name}, which no state dict needs; {RESAVE}")
        _OPCODES[opcode.name](machine, argument)
    return machine.stack.pop()


_MAX_DEPTH, _MAX_OPCODES = 64, 2**19
"""Open marks, of which a state dict has about five; and opcodes, of which a tensor has about 28."""


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name the pickle may say. It stands for itself: there is nothing behind it to call."""

    name: str


@dataclasses.dataclass
class _Machine:
    stack: list[Any]
    below: list[list[Any]]
    """The stacks under each open mark."""
    memo: dict[int, Any]

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def top(self, kind: type) -> Any:
        if type(self.stack[-1]) is not kind:
            raise Refused(f"its pickle changes a value that is not a {kind.__name__}; {RESAVE}")
        return self.stack[-1]


def _proto(machine: _Machine, version: int) -> None:
    if version != 2:
        raise Refused(f"its pickle has protocol {version}, and torch.save writes 2; {RESAVE}")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _mark(machine: _Machine, _: Any) -> None:
    if len(machine.below) == _MAX_DEPTH:
        raise Refused(f"its pickle is over {_MAX_DEPTH} levels deep; {RESAVE}")
    machine.below.append(machine.stack)
    machine.stack = []


def _put(machine: _Machine, slot: int) -> None:
    machine.memo[slot] = machine.stack[-1]


def _get(machine: _Machine, slot: int) -> None:
    machine.stack.append(machine.memo[slot])


def _tuple(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    machine.stack.append(tuple(items))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    def make(machine: _Machine, _: Any) -> None:
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return make


def _append(machine: _Machine, _: Any) -> None:
    value = machine.stack.pop()
    machine.top(list).append(value)


def _appends(machine: _Machine, _: Any) -> None:
    values = machine.since_mark()
    machine.top(list).extend(values)


def _setitem(machine: _Machine, _: Any) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _fill(machine.top(dict), [key, value])


def _setitems(machine: _Machine, _: Any) -> None:
    items = machine.since_mark()
    _fill(machine.top(dict), items)


def _fill(target: dict[Any, Any], items: list[Any]) -> None:
    for key, value in zip(items[::2], items[1::2], strict=True):
        # Tuples within tuples, each the same one twice, take exponential time to hash.
        if not isinstance(key, str | int):
            raise Refused(f"its pickle has a dict key that is a {type(key).__name__}; {RESAVE}")
        target[key] = value


def _check_names(data: bytes) -> None:
    """Refuses a pickle by the names it would import, in whatever protocol, before all else."""
    strings: list[str] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(data)):
        if count == _MAX_OPCODES:
            raise Refused(f"its pickle has over {_MAX_OPCODES:,} opcodes; {RESAVE}")
        if opcode.name in ("GLOBAL", "INST"):
            check_name(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            check_name(".".join(strings[-2:]))
        elif isinstance(argument, str):
            strings.append(argument)


def _global(machine: _Machine, module_and_name: str) -> None:
    machine.stack.append(_Name(module_and_name.replace(" ", ".")))


def _reduce(machine: _Machine, _: Any) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(function) is not _Name or function.name not in BUILDERS or type(arguments) is not tuple:
        raise Refused(f"its pickle calls a value that is not a function; {RESAVE}")
    machine.stack.append(BUILDERS[function.name](*arguments))


def _build(machine: _Machine, _: Any) -> None:
    """Drops the attributes torch hangs on a state dict (`_metadata`: module versions)."""
    machine.stack.pop()
    machine.top(dict)


def _storage(machine: _Machine, _: Any) -> None:
    kind, storage_type, key, _location, numel = machine.stack.pop()
    known = type(storage_type) is _Name and storage_type.name in STORAGES
    if kind != "storage" or not known or not isinstance(key, str) or not is_count(numel):
        raise Refused("its pickle describes a storage as torch does not; the file is damaged")
    machine.stack.append(Storage(key, np.dtype(STORAGES[storage_type.name]), numel))


_OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _proto,
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"), _push),
    "EMPTY_TUPLE": _constant(()),
    "EMPTY_LIST": lambda machine, _: machine.stack.append([]),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "MARK": _mark,
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "APPEND": _append,
    "APPENDS": _appends,
    "SETITEM": _setitem,
    "SETITEMS": _setitems,
    "BINPUT": _put,
    "LONG_BINPUT": _put,
    "BINGET": _get,
    "LONG_BINGET": _get,
    "GLOBAL": _global,
    "REDUCE": _reduce,
    "BUILD": _build,
    "BINPERSID": _storage,
}
