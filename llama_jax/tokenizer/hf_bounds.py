"""What a tokenizer.json asks of the library: a stranger's must not ask for all time or memory.

Each of a chain of replacements may double a text, so a file of a kilobyte could ask for all memory.
"""

from __future__ import annotations

import base64
import binascii
import gc
import json
from collections.abc import Iterator
from typing import Any

from llama_jax.tokenizer.added import check_added, check_vocabulary
from llama_jax.tokenizer.folder import check_brackets

MAX_GROWTH = 64
"""The most that a chain of steps may make of one character; Llama's make up to 4 bytes of one."""
MAX_ADDED = 1024
"""The most tokens that may be put around a text. Llama's templates have up to four."""
_MAX_STEPS = 64
_MAX_PATTERN = 4096
"""Characters of a regex or a text to find; Llama 3's regex has 150."""
_PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "decoder": "decoders"}
_KNOWN = {"ByteLevel": 4.0, "Metaspace": 2.0, "BertNormalizer": 3.0}
"""Steps that lengthen a text each time; a Unicode normal form does so once."""
_UNICODE_BYTES = 48
"""What no Unicode normal form of one character exceeds: the longest, of U+FDFA, has 33."""


def read_bounded_json(file: bytes) -> dict[str, Any]:
    """What a tokenizer.json says, without its merges, which are large.

    It is an empty object where the file holds none, for the library to refuse. ValueError where it
    lengthens a text beyond all use, or has more tokens or values than any model's.
    """
    check_brackets(file)
    try:
        said = _parsed(file)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(said, dict):
        return {}
    _check_chains(said)
    _check_templates(said)
    model = said.get("model")
    found = [model.get(what) if isinstance(model, dict) else None for what in ("vocab", "merges")]
    check_vocabulary(*(len(each) if isinstance(each, dict | list) else 0 for each in found))
    added = said.get("added_tokens")
    tokens = added if isinstance(added, list) else []
    texts = [token.get("content") for token in tokens if isinstance(token, dict)]
    check_added([text for text in texts if isinstance(text, str)], "it")
    if isinstance(model, dict):
        model.pop("merges", None)
    return said


def _parsed(file: bytes) -> Any:
    """JSON without Python's collector, which looks at all values again while they are made.

    Of 600,000 merges it would make three times the time.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return json.loads(file)
    finally:
        if collects:
            gc.enable()


def _check_chains(said: dict[str, Any]) -> None:
    for part, chain in _PARTS.items():
        growth = 1.0
        for count, step in enumerate(_steps(said.get(part), chain), 1):
            growth *= _growth(step)
            _check_pattern(step.get("pattern"))
            if count > _MAX_STEPS or growth > MAX_GROWTH:
                raise ValueError(
                    f"its {part} makes a text over {MAX_GROWTH} times as long, or has over "
                    f"{_MAX_STEPS} steps, which no model's does; download tokenizer.json again"
                )


def _check_pattern(pattern: Any) -> None:
    found = list(pattern.values()) if isinstance(pattern, dict) else [pattern]
    longest = max((len(text) for text in found if isinstance(text, str)), default=0)
    if longest > _MAX_PATTERN:
        raise ValueError(
            f"it has a pattern of {longest:,} characters, and at most {_MAX_PATTERN:,} are read; "
            "download tokenizer.json again"
        )


def _check_templates(said: dict[str, Any]) -> None:
    """What stands around a text: a template's pieces, each of which may stand for many ids."""
    added = 0
    for step in _steps(said.get("post_processor"), "processors"):
        tokens = step.get("special_tokens")
        named = list(tokens.values()) if isinstance(tokens, dict) else tokens
        named = named if isinstance(named, list) else []
        ids = (one.get("ids") for one in named if isinstance(one, dict))
        longest = max((len(one) for one in ids if isinstance(one, list)), default=1)
        pieces = (step.get(which) for which in ("single", "pair"))
        added += longest * sum(len(one) for one in pieces if isinstance(one, list | str))
        if added > MAX_ADDED:
            raise ValueError(
                f"its post_processor puts over {MAX_ADDED:,} tokens around a text, which no "
                "model's does; download tokenizer.json again"
            )


def _steps(part: Any, chain: str) -> Iterator[dict[str, Any]]:
    """The steps of a chain, however deep."""
    waiting = [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            yield step
            inner = step.get(chain)
            waiting += inner if isinstance(inner, list) else []


def _growth(step: dict[str, Any]) -> float:
    """The most that a step makes of a character."""
    kind, content = step.get("type"), step.get("content", step.get("prepend"))
    length = len(content) if isinstance(content, str) else 0
    if kind == "Prepend":
        return max(1.0, length)
    if kind == "Replace":
        pattern = step.get("pattern")
        found = pattern.get("String") if isinstance(pattern, dict) else None
        # An empty text and a regex may be found between any two characters.
        return max(1.0, length / len(found)) if isinstance(found, str) and found else 1.0 + length
    if kind == "Precompiled":
        return max(1.0, _longest(step.get("precompiled_charsmap")) / _UNICODE_BYTES)
    return _KNOWN.get(str(kind), 1.0)


def _longest(charsmap: Any) -> int:
    """The bytes of the longest text in SentencePiece's table: a trie's size, the trie, texts."""
    try:
        table = base64.b64decode(charsmap if isinstance(charsmap, str) else "")
    except (binascii.Error, ValueError):
        return 0  # which the library refuses
    texts = table[4 + int.from_bytes(table[:4], "little") :]
    return max(map(len, texts.split(b"\0")))
