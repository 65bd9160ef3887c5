"""The tables of adapter_config.json whose keys are regular expressions, as in peft."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from llama_jax.checkpoint.files.json_file import shown

MAX_SECONDS = 2.0
"""Processor time for all look-ups in one table. A pattern of one line can take for ever."""
MAX_KEYS, MAX_KEY = 4096, 512
"""How many keys a table has, and how many characters a key."""
Value = TypeVar("Value", int, float)


class Patterns(Generic[Value]):
    """Values by patterns that fit the end of a module's name. Host state: it counts its time."""

    def __init__(self, name: str, table: Mapping[str, Value]) -> None:
        """`name` is what the file calls the table. ValueError for a key that is no pattern."""
        self._name, self._left = name, MAX_SECONDS
        long = [key for key in table if len(key) > MAX_KEY]
        if long or len(table) > MAX_KEYS:
            what = f"a key of {len(long[0]):,} characters" if long else f"{len(table):,} keys"
            raise ValueError(
                f"{name} has {what}, and at most {MAX_KEYS:,} keys of {MAX_KEY} are read"
            )
        self._rows: list[tuple[str, Any, Value]] = [
            (key, self._compiled(key), value) for key, value in table.items()
        ]

    def get(self, module: str, default: Value) -> Value:
        """The value of the first pattern that fits; ValueError once that has taken too long."""
        for key, pattern, value in self._rows:
            began = time.process_time()
            try:
                fits = pattern.match(module, timeout=self._left)
            except TimeoutError:
                raise self._too_long(key) from None
            self._spend(key, began)
            if fits:
                return value
        return default

    def _compiled(self, key: str) -> Any:
        import regex  # of tiktoken; Python's own module cannot be stopped

        began = time.process_time()
        try:
            pattern = regex.compile(rf"(.*\.)?({key})$")
        except (regex.error, ValueError, OverflowError, RecursionError, MemoryError) as error:
            raise ValueError(
                f"{self._name}: the pattern {shown(key)} is none: {error!s:.80}"
            ) from None
        self._spend(key, began)
        return pattern

    def _spend(self, key: str, began: float) -> None:
        self._left -= time.process_time() - began
        if self._left <= 0:
            raise self._too_long(key)

    def _too_long(self, key: str) -> ValueError:
        return ValueError(
            f"the keys of adapter_config.json's {self._name}, such as {shown(key)}, take more than "
            f"{MAX_SECONDS:g} seconds to match; write modules' names in place of patterns, or "
            "merge it with peft"
        )
