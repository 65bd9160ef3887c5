"""The files of tokenizers that cost their readers the most."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuzz.worst import OF_JSON, SIZE, Made, Worst, adding, changed, filled, names, texts
from gguf_file import gguf_bytes, small_model
from small_tokenizers import tiktoken_file

from llama_jax.tokenizer.added import MAX_ADDED, MAX_TOKENS

_JSON, _BESIDE = "tokenizer.json", "added_tokens.json"
_CONFIG, _CONFIG_BYTES = "tokenizer_config.json", 16 << 20
_MODEL = "tokenizer.model"
_FULL = MAX_TOKENS - 1000
"""As many tokens as are read, and what a file has beside them."""


def _added(count: int, length: int, *, special: bool) -> Made:
    """A tokenizer.json that adds so many tokens of a length."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False}
    flags |= {"normalized": special, "special": special}

    def change(said: dict[str, Any]) -> None:
        said["added_tokens"] += [
            {"id": id, "content": text, **flags}
            for id, text in enumerate(texts(count, length), 263)
        ]

    return changed(change)


def _vocabulary(count: int, *, merged: bool) -> Made:
    """A tokenizer.json of so many tokens, each made of the one before it and a byte, or not."""

    def change(said: dict[str, Any]) -> None:
        found = said["model"]["vocab"]
        for name in itertools.islice(itertools.chain(*map(names, (2, 3, 4))), count):
            found[name] = len(found) + 7  # what is added has the ids before
            if merged:
                said["model"]["merges"] += [[name[:-1], name[-1]]] * 2

    return changed(change)


def _regex(pattern: str, count: int = 1) -> Made:
    """A tokenizer.json that cuts a text by a regex, so many times."""
    cut = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}

    def change(said: dict[str, Any]) -> None:
        steps = [*([cut] * count), said["pre_tokenizer"]]
        said["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}

    return changed(change)


def _beside(count: int, length: int = 6, first: int = 5000) -> Made:
    """An added_tokens.json."""
    return lambda _: json.dumps(
        {text: id for id, text in enumerate(texts(count, length), first)}
    ).encode()


def _decoder(size: int) -> bytes:
    each = (f'"{id}":{{"content":"{text}"}}' for id, text in enumerate(texts(size // 30), 5000))
    return ("{" + ",".join(each) + "}").encode()


def _pieces(count: int) -> Made:
    """A SentencePiece model with so many more pieces, each of which begins a word."""

    def made(file: Path) -> bytes:
        found = [file.read_bytes()]
        for name in itertools.islice(names(5), count):
            piece = f"\u2581{name}".encode()
            inside = b"\n%c%b\x15\0\0\0\0" % (len(piece), piece)
            found.append(b"\n%c%b" % (len(inside), inside))
        return b"".join(found)

    return made


def _ranks(count: int) -> Made:
    """A tiktoken file of so many tokens."""

    def made(_: Path) -> bytes:
        first = tiktoken_file(())
        each = enumerate(itertools.islice(names(), count), 256)
        return first + b"".join(b"%b %d\n" % (base64.b64encode(s.encode()), n) for n, s in each)

    return made


def _gguf(kind: str, tokens: Sequence[str], merges: Sequence[str] = ()) -> Made:
    """A GGUF file whose tokenizer has these tokens, beside a few."""

    def made(_: Path) -> bytes:
        known = ["<unk>", "<s>", "</s>", "a", "b", "ab"]
        known += [token for token in tokens if token not in known[3:6]]
        said: dict[str, Any] = {"model": kind, "tokens": known}
        said |= {"bos_token_id": 1, "eos_token_id": 2}
        said |= {"token_type": [2, 3, 3] + [1] * (len(known) - 3)}
        said |= {"merges": list(merges)} if merges else {}
        model, tensors = small_model()
        metadata = {f"tokenizer.ggml.{key}": value for key, value in said.items()}
        return gguf_bytes({**model, **metadata}, tensors)

    return made


_MANY, _TOO_MANY = (list(itertools.islice(names(5), count)) for count in (_FULL, 10**6))
_GROWING = list(itertools.islice(itertools.chain(*map(names, (1, 2, 3, 4))), _FULL))
"""Each made of one before it and a letter."""
_GROWN = [f"{name[:-1]} {name[-1]}" for name in _GROWING[36:]]


TOKENIZERS: dict[str, Worst] = {
    **{
        f"{file}, {kind}": Worst(_JSON, file, adding("x", value, size))
        for file, size in ((_JSON, SIZE), (_CONFIG, _CONFIG_BYTES))
        for kind, value in OF_JSON.items()
    },
    "tokenizer.json, control tokens": Worst(_JSON, _JSON, _added(79_000, 6, special=True)),
    "tokenizer.json, long ones": Worst(_JSON, _JSON, _added(21_500, 34, special=True)),
    "tokenizer.json, added tokens": Worst(_JSON, _JSON, _added(79_000, 6, special=False)),
    "tokenizer.json, too many": Worst(_JSON, _JSON, _added(MAX_ADDED + 1, 6, special=False)),
    "tokenizer.json, tokens": Worst(_JSON, _JSON, _vocabulary(_FULL, merged=False)),
    "tokenizer.json, merges": Worst(_JSON, _JSON, _vocabulary(_FULL, merged=True)),
    "tokenizer.json, too many tokens": Worst(_JSON, _JSON, _vocabulary(10**6, merged=False)),
    "tokenizer.json, repeats": Worst(_JSON, _JSON, _regex("(((a{0,999}){0,999}){0,999})" * 100)),
    "tokenizer.json, turning back": Worst(_JSON, _JSON, _regex(r"(\w+\s?)+$", 60)),
    "tokenizer.json, a long regex": Worst(_JSON, _JSON, _regex("a|" * 9_000_000)),
    "added_tokens.json, a gap": Worst(_JSON, _BESIDE, _beside(1, first=65_000)),
    **{
        f"added_tokens.json beside {seed}, {kind}": Worst(seed, _BESIDE, _beside(*given))
        for seed in (_JSON, _MODEL, "tiktoken")
        for kind, given in (
            ("many", (79_000,)),
            ("long ones", (21_500, 34)),
            ("too many", (900_000,)),
        )
    },
    "tokenizer_config.json, tokens": Worst(
        _JSON, _CONFIG, adding("added_tokens_decoder", _decoder, _CONFIG_BYTES)
    ),
    "tokenizer_config.json, control tokens": Worst(
        _JSON,
        _CONFIG,
        adding(
            "additional_special_tokens",
            lambda size: filled(size, '"<%s>"', "[", "]"),
            _CONFIG_BYTES,
        ),
    ),
    "tokenizer_config.json, a template": Worst(
        _JSON,
        _CONFIG,
        adding("chat_template", lambda n: b'"' + b"{{a}}" * (n // 5 - 1) + b'"', _CONFIG_BYTES),
    ),
    "chat_template.jinja, words": Worst(
        _JSON, "chat_template.jinja", lambda _: b"{{a}}" * 12_000 + b"{#" + b"a" * 900_000 + b"#}"
    ),
    "chat_template.jinja, comments": Worst(_JSON, "chat_template.jinja", lambda _: b"{#" * 520_000),
    "tokenizer.model, pieces": Worst(_MODEL, _MODEL, _pieces(_FULL)),
    "tokenizer.model, too many": Worst(_MODEL, _MODEL, _pieces(10**6)),
    "tiktoken, ranks": Worst("tiktoken", _MODEL, _ranks(_FULL)),
    "tiktoken, too many": Worst("tiktoken", _MODEL, _ranks(10**6)),
    "gguf, pieces": Worst("gguf", "model.gguf", _gguf("llama", _MANY)),
    "gguf, tokens": Worst("gguf", "model.gguf", _gguf("gpt2", _MANY, ["a b"])),
    "gguf, merges": Worst("gguf", "model.gguf", _gguf("gpt2", _GROWING, 2 * _GROWN)),
    "gguf, too many tokens": Worst("gguf", "model.gguf", _gguf("llama", _TOO_MANY)),
}
