"""The tables of adapter_config.json whose keys are regular expressions, as in peft."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from llama_jax.checkpoint.files.json_file import shown

MAX_SECONDS = 2.0
"""Processor time for all look-ups in one table. A pattern of one line can take for ever."""
MAX_KEYS, MAX_KEY = 4096, 512
"""How many keys a table has, and how many characters a key."""
MAX_REPEATED = 100_000
"""Characters of all keys that count, `x{3}`, each times its counts: they become so many states."""
_COUNT = re.compile(r"\{(\d{0,9})(?:,(\d{0,9}))?\}")
_NO_PATTERN = (re.error, ValueError, OverflowError, RecursionError, MemoryError)
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
        self._check_counts(table)
        self._rows: list[tuple[str, Any, Value]] = [
            (key, self._compiled(key), value) for key, value in table.items()
        ]

    def get(self, module: str, default: Value) -> Value:
        """The value of the first pattern that fits; ValueError once that has taken too long."""
        for key, pattern, value in self._rows:
            began = time.process_time()
            try:
                fits = pattern.match(module, timeout=self._left)
            except (TimeoutError, MemoryError):
                raise self._too_long(key) from None
            self._spend(key, began)
            if fits:
                return value
        return default

    def _check_counts(self, table: Mapping[str, Value]) -> None:
        """ValueError where patterns are short, and what they are compiled to is not."""
        repeated = 0
        for key in table:
            counts = [int(count or 1) for found in _COUNT.findall(key) for count in found]
            if "{" in _COUNT.sub("", key):
                raise ValueError(f"{self._name}: {shown(key)} has a {{ that counts nothing")
            repeated += len(key) * math.prod(max(1, count) for count in counts) if counts else 0
            if repeated > MAX_REPEATED:
                raise ValueError(
                    f"{self._name}: the counts of {shown(key)} repeat too much; write modules' "
                    "names in place of patterns, or merge it with peft"
                )

    def _compiled(self, key: str) -> Any:
        import regex  # of tiktoken; Python's own module cannot be stopped

        began, text = time.process_time(), rf"(.*\.)?({key})$"
        try:
            # Python's knows no recursion and no near matches, whose memory has no bound.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                re.compile(text)
            pattern = regex.compile(text)
        except (*_NO_PATTERN, regex.error) as error:
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
