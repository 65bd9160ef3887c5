"""The tokenizer of Llama 3.x: Meta's tiktoken file, and the special tokens it leaves unsaid."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, SupportsIndex

from llama_jax.tokenizer.added import AddedTokens, check_vocabulary
from llama_jax.tokenizer.beside import Stated
from llama_jax.tokenizer.chat_template import ChatTemplate
from llama_jax.tokenizer.detokenizer import detokenize
from llama_jax.tokenizer.foreign import in_words
from llama_jax.tokenizer.llama3_dialog import encode_llama3, encode_llama3_answers, llama3_keys
from llama_jax.tokenizer.protocol import Answers, Message, Tools, check_id, check_text
from llama_jax.tokenizer.template_answers import Located, located
from llama_jax.tokenizer.with_template import WithTemplate

WORDS = "|".join(  # Meta's cut of a text into the words that merges stay within
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


class TiktokenTokenizer(WithTemplate):
    """Byte-pair merges by rank, from the bytes of their file; the special ids follow the ranks.

    Without a chat template it writes dialogs in Llama 3's format: `encode_llama3` says which keys
    that knows.
    """

    def __init__(
        self, file: bytes, stated: Stated | None = None, template: ChatTemplate | None = None
    ) -> None:
        import tiktoken

        ranks, stated = _parse(file), stated or Stated()
        self._file, self._template, self._stated = file, template, stated
        # tiktoken is told of no special token: it then has none to find in a text.
        with in_words("tiktoken cannot use it (", "); copy or download it again"):
            self._words = tiktoken.Encoding(
                "llama3", pat_str=WORDS, mergeable_ranks=ranks, special_tokens={}
            )
        self._bytes = [*ranks, *(b"" for _ in SPECIAL)]
        own = {name: len(ranks) + n for n, name in enumerate(SPECIAL)}
        joining, self.notes = stated.join(own.get, len(self._bytes))
        self._added = AddedTokens(joining, own)
        self.special = self._added.special
        self.vocab_size = max([len(self._bytes) - 1, *self._added.by_id]) + 1
        bos = stated.first(stated.bos, self._added.id_of, self.vocab_size)
        eos = stated.first(stated.eos, self._added.id_of, self.vocab_size)
        stops = [own[name] for name in STOP]
        self.bos_id = own["<|begin_of_text|>"] if bos is None else bos
        self.eos_id = stops[0] if eos is None else eos
        self.stop_ids = stated.stops(self.eos_id, stops, self.vocab_size)

    @staticmethod
    def recognizes(file: bytes) -> bool:
        """Whether the first line of `file` is base64 and a rank."""
        return re.match(rb"[A-Za-z0-9+/]+={0,2} \d+\r?$", file, re.MULTILINE) is not None

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        check_text(text)
        bos = bos and self._stated.adds_bos is not False
        return [self.bos_id] * bos + self.encode_text(text) + [self.eos_id] * eos

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool, eos: bool, threads: int
    ) -> list[list[int]]:
        with ThreadPoolExecutor(threads) as pool:  # tiktoken encodes without the GIL
            return list(pool.map(lambda text: self.encode(text, bos=bos, eos=eos), texts))

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return detokenize(self, ids)

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        id = check_id(id)
        added = self._bytes[id] if id < len(self._bytes) else self._added.bytes_of(id)
        return added, at_start and not added

    def encode_text(self, text: str, controls: bool = False, begins: bool = True) -> list[int]:
        ids: list[int] = []
        for part, _ in self._added.split(text, controls=controls):
            ids += [part] if isinstance(part, int) else self._encode_ordinary(part)
        return ids

    def _encode_ordinary(self, text: str) -> list[int]:
        with in_words("tiktoken cannot encode the text (", "); pass it in shorter pieces"):
            return [id for cut in parts_of_text(text) for id in self._words.encode_ordinary(cut)]

    def _locate(self, text: str, controls: bool, begins: bool) -> list[Located]:
        found: list[Located] = []
        for part, (begin, end) in self._added.split(text, controls=controls):
            if isinstance(part, int):
                found.append((part, (begin, end)))
            else:
                ids = self._encode_ordinary(part)
                found += located(ids, [self._bytes[id] for id in ids], begin)
        return found

    def _id_of(self, text: str) -> int | None:
        return self._added.id_of(text)

    @property
    def own_format(self) -> str:
        return "Llama 3"

    def _encode_own_dialog(self, messages: Sequence[Message], tools: Tools | None) -> list[int]:
        return encode_llama3(self, self.special, messages, tools=tools)

    def answer_keys(self, tokens: Sequence[int], end: int | None) -> dict[str, Any]:
        return {} if self.has_template else llama3_keys(self.special, tokens, end)

    def _encode_own_answers(self, messages: Sequence[Message]) -> Answers:
        return encode_llama3_answers(self, self.special, messages)


def parts_of_text(text: str) -> Iterator[str]:
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
    check_vocabulary(file.count(b"\n"))
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
