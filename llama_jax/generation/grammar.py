"""What a text must be, in the words of llguidance: a JSON schema, a regular expression, a grammar.

What is given comes from strangers, and a few lines can ask for years of work. So each text is first
tried in a process that has a second and a gigabyte (`grammar_check.py`).
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from llama_jax.generation.limits import (
    GRAMMAR_MEMORY,
    GRAMMAR_SECONDS,
    GRAMMAR_WAIT_SECONDS,
    GRAMMARS,
    MAX_GRAMMAR_BYTES,
)
from llama_jax.tokenizer.foreign import plain

_OPTIONS = '%llguidance {"no_forcing": true}\n'
"""Every cut of a text into tokens is allowed, and not only the one that `encode` makes."""
_WHITESPACE = r" |\n[ \t]{0,20}"
"""The blanks between JSON's tokens: those of `json.dumps`, with an indent too, never endless."""

JSONSchema = Mapping[str, Any] | bool | str
"""A JSON schema, or its text."""


def library() -> ModuleType:
    """The module `llguidance`; ImportError that says how to get it."""
    try:
        import llguidance
    except ImportError:
        raise ImportError(
            "a JSON schema, regex or grammar needs llguidance, which is not installed: "
            'pip install "llama_jax[grammar]"'
        ) from None
    return llguidance


def grammar_of(
    json_schema: JSONSchema | None = None, regex: str | None = None, grammar: str | None = None
) -> str:
    """The grammar of the schema, regex or grammar that is given, checked; this may take a second.

    ValueError where none or several are given, where the text is wrong or too long, where it asks
    for too much work, and where no text follows it.
    """
    given = {"json_schema": json_schema, "regex": regex, "grammar": grammar}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        said = " and ".join(named) or "none"
        raise ValueError(f"give one of json_schema, regex and grammar, not {said}")
    (name,) = named
    if name == "json_schema":
        text = f"start: %json {_schema_text(json_schema)}\n"
    else:
        text = _bounded(name, given[name])
        if name == "regex":
            text = f"start: /{library()._lib.regex_to_lark(text, use_ascii='d')}/\n"
    if error := _error_in(_OPTIONS + text):
        raise ValueError(f"{name} cannot be followed: {error}")
    return _OPTIONS + text


def _schema_text(schema: Any) -> str:
    """The schema as one line of JSON that says which blanks a text may have."""
    if isinstance(schema, str):
        schema = _bounded("json_schema", schema)
    try:
        text = json.dumps(
            json.loads(schema) if isinstance(schema, str) else schema, allow_nan=False
        )
        read = json.loads(text)
    except RecursionError:
        raise ValueError("json_schema cannot be followed: it is too deeply nested") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"json_schema is no JSON: {error}") from None
    _bounded("json_schema", text)
    if read is False:
        raise ValueError("json_schema cannot be followed: no text follows it")
    if read is not True and not isinstance(read, dict):
        raise ValueError(f"json_schema={text:.40} must be a JSON object, true or false")
    own = {"x-guidance": {"whitespace_pattern": _WHITESPACE}}
    return json.dumps({**({} if read is True else read), **own})


def _bounded(name: str, text: Any) -> str:
    if not isinstance(text, str):
        raise ValueError(f"{name}={text!r:.60} must be a text")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{name} has a lone surrogate, which is no character") from None
    if size > MAX_GRAMMAR_BYTES:
        raise ValueError(f"{name} has {size:,} bytes; at most {MAX_GRAMMAR_BYTES:,} are compiled")
    return text


@functools.lru_cache(maxsize=GRAMMARS)
def _error_in(grammar: str) -> str:
    """Why a grammar cannot be compiled, or "". A process of its own tries it."""
    library()
    found = importlib.util.find_spec("llguidance")
    place = Path(found.origin).parents[1] if found and found.origin else Path()
    script = Path(__file__).with_name("grammar_check.py")
    bounds = [str(GRAMMAR_SECONDS), str(GRAMMAR_MEMORY)]
    command = [sys.executable, "-I", "-S", str(script), str(place), *bounds]
    try:
        done = subprocess.run(
            command, input=grammar.encode(), capture_output=True, timeout=GRAMMAR_WAIT_SECONDS
        )
    except subprocess.TimeoutExpired:  # raised, so that it is not remembered
        raise ValueError(f"a grammar did not compile in {GRAMMAR_WAIT_SECONDS} seconds") from None
    complaint = done.stderr.decode(errors="replace").strip().split("\n")[-1]
    if done.returncode < 0 or "memory" in complaint.lower():  # ended by a bound
        return "it takes more than a second or a gigabyte to compile; make it simpler"
    if done.returncode:
        raise RuntimeError(f"the process that tries a grammar failed: {complaint:.200}")
    return _in_words(done.stdout.decode(errors="replace"))


def _in_words(error: str) -> str:
    """The sentence of a compiler's error, without line numbers of a grammar that we wrote."""
    said = re.findall(r"^error: (.+)$", error, re.MULTILINE)
    line = said[0] if said else error.strip().split("\n")[0]
    line = re.sub(r"^at \d+\(\d+\): |failed to compile JSON schema: ", "", line)
    if line.startswith("NoExtension"):
        return "no text follows it"
    return plain(line, 200) if line else ""
