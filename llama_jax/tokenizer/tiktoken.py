"""The tokenizer of Llama 3.x: Meta's tiktoken file, and the special tokens it leaves unsaid."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import SupportsIndex

from llama_jax.tokenizer.chat_template import WithTemplate
from llama_jax.tokenizer.detokenizer import detokenize
from llama_jax.tokenizer.dialog import encode_llama3
from llama_jax.tokenizer.protocol import Message, Tokenizer, Tools, check_id, check_text

_WORDS = "|".join(  # Meta's cut of a text into the words that merges stay within
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
_NAMED = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|step_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<|image|>",
)
# 256 in all in every release; Llama 3.0 called reserved what later ones gave names.
SPECIAL = (*_NAMED, *(f"<|reserved_special_token_{n}|>" for n in range(2, 258 - len(_NAMED))))
STOP = ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")

# tiktoken's regular expressions panic or crawl beyond these. They are Meta's own: a cut inside a
# word changes its ids.
MAX_TEXT, MAX_RUN = 400_000, 25_000
_RUN = re.compile(r"\s+|\S+")


class TiktokenTokenizer(WithTemplate, Tokenizer):
    """Byte-pair merges by rank, from the bytes of their file; the special ids follow the ranks."""

    special: Mapping[str, int]
    """The id of each special token, by name. No text encodes to them."""

    def __init__(self, file: bytes) -> None:
        import tiktoken

        ranks = _parse(file)
        # tiktoken is told of no special token: it then has none to find in a text.
        self._words = tiktoken.Encoding(
            "llama3", pat_str=_WORDS, mergeable_ranks=ranks, special_tokens={}
        )
        self._bytes = [*ranks, *(name.encode() for name in SPECIAL)]
        self.special = {name: len(ranks) + n for n, name in enumerate(SPECIAL)}
        self.bos_id = self.special["<|begin_of_text|>"]
        self.eos_id = self.special["<|end_of_text|>"]
        self.stop_ids = tuple(self.special[name] for name in STOP)
        self.vocab_size = len(self._bytes)

    @staticmethod
    def recognizes(file: bytes) -> bool:
        """Whether the first line of `file` is base64 and a rank."""
        return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?$", file, re.MULTILINE) is not None

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        check_text(text)
        ids = [id for part in _parts(text) for id in self._words.encode_ordinary(part)]
        return [self.bos_id] * bos + ids + [self.eos_id] * eos

    def encode_dialog(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> list[int]:
        """The ids of a dialog, in Llama 3's format: `encode_llama3` says which keys it knows."""
        return encode_llama3(self, self.special, messages, tools=tools)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return detokenize(self, ids)

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        return self._bytes[check_id(id, self.vocab_size)], False


def _parts(text: str) -> Iterator[str]:
    """`text` cut every `MAX_TEXT` characters and in runs of (non-)whitespace over `MAX_RUN`."""
    for begin in range(0, len(text), MAX_TEXT):
        part, start = text[begin : begin + MAX_TEXT], 0
        for run in _RUN.finditer(part):
            for cut in range(run.start() + MAX_RUN, run.end(), MAX_RUN):
                yield part[start:cut]
                start = cut
        yield part[start:]


def _parse(file: bytes) -> dict[bytes, int]:
    """The tokens in the order of their ranks, which a sound file states as 0, 1, 2, ...

    `tiktoken.load` is not used: it answers from a copy in the temporary folder, kept by path,
    that outlives a change of the file.
    """
    ranks: dict[bytes, int] = {}
    for due, line in enumerate(file.splitlines()):
        try:
            token, rank = line.split(b" ")
            token, stated = base64.b64decode(token, validate=True), int(rank)
        except ValueError:
            raise ValueError(
                f"line {due + 1}, {line[:60]!r}, is not a token in base64 and its rank; "
                "copy or download the file again"
            ) from None
        if stated != due:
            raise ValueError(
                f"line {due + 1} has rank {stated} where {due} is due; "
                "lines were lost or added, so copy or download the file again"
            )
        if token in ranks:
            raise ValueError(
                f"lines {ranks[token] + 1} and {due + 1} hold the same token, {token!r}; "
                "copy or download the file again"
            )
        ranks[token] = due
    if missing := [byte for byte in range(256) if bytes([byte]) not in ranks]:
        raise ValueError(
            f"{len(missing)} of the 256 single bytes are no tokens, the first 0x{missing[0]:02X}, "
            "so not every text can be encoded; copy or download the file again"
        )
    return ranks
