"""The tokenizer of LLaMA 1 and 2: a SentencePiece model that falls back to bytes."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

from llama_jax.tokenizer.added import AddedTokens, check_vocabulary
from llama_jax.tokenizer.beside import Stated
from llama_jax.tokenizer.chat_template import ChatTemplate
from llama_jax.tokenizer.detokenizer import detokenize
from llama_jax.tokenizer.dialog import (
    STEP,
    encode_codellama70b,
    encode_llama2,
    encode_llama2_answers,
    refuse_codellama70b_answers,
)
from llama_jax.tokenizer.foreign import in_words
from llama_jax.tokenizer.protocol import Answers, Message, Tools, check_id, check_text
from llama_jax.tokenizer.template_answers import Located, located
from llama_jax.tokenizer.with_template import WithTemplate

SPACE = "\u2581"  # how a piece spells a space
_CANNOT_ENCODE = (
    "SentencePiece cannot encode the text by tokenizer.model (",
    "); copy or download the file again",
)
_NO_PREFIX = b"\x1a\x02\x18\x00"
"""Behind a model's file: normalizer_spec.add_dummy_prefix is false. The last word counts."""


class SentencePieceTokenizer(WithTemplate):
    """A SentencePiece model, from the bytes of its file.

    Without a chat template it writes dialogs in Code Llama 70B's format where the model has the
    piece <step>, in Llama 2's otherwise.
    """

    def __init__(
        self, file: bytes, stated: Stated | None = None, template: ChatTemplate | None = None
    ) -> None:
        stated = stated or Stated()
        self._file, self._template, self._stated = file, template, stated
        self.model = model = _open(file)
        check_vocabulary(model.vocab_size())
        pieces = model.id_to_piece(list(range(model.vocab_size())))
        joining, self.notes = stated.join(self._base_id, len(pieces))
        controls = {piece: id for id, piece in enumerate(pieces) if model.is_control(id)}
        self._added = AddedTokens(joining, controls)
        self.special = self._added.special
        self.vocab_size: int = max([len(pieces) - 1, *self._added.by_id]) + 1
        bos = stated.first(stated.bos, self._id_of, self.vocab_size)
        eos = stated.first(stated.eos, self._id_of, self.vocab_size)
        self.bos_id: int = model.bos_id() if bos is None else bos
        self.eos_id: int = model.eos_id() if eos is None else eos
        self._step_id = self._base_id(STEP)
        own = [model.eos_id()] if self._step_id is None else [model.eos_id(), self._step_id]
        self.stop_ids = stated.stops(self.eos_id, own, self.vocab_size)
        self._bytes = [_bytes_of(model, id, piece) for id, piece in enumerate(pieces)]
        # Whether a text's first space is dropped, or even all of them, is the model's setting.
        # Only its protobuf states it, but decoding shows it at work.
        drops_all = model.decode([model.piece_to_id(SPACE)] * 2) == ""
        self._at_start: dict[int, tuple[bytes, bool]] = {}
        for id, piece in enumerate(pieces):
            if piece.startswith(SPACE):
                added = model.decode([id]).encode()
                self._at_start[id] = added, drops_all and not added

    @staticmethod
    def recognizes(file: bytes) -> bool:
        """Whether `file` begins as SentencePiece's protobuf does: field 1, a piece."""
        return file.startswith(b"\n")

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        check_text(text)
        ids = self.encode_text(text)
        return [self.bos_id] * (bos and self._adds_bos) + ids + [self.eos_id] * eos

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool, eos: bool, threads: int
    ) -> list[list[int]]:
        if self._added.in_texts:
            return [self.encode(text, bos=bos, eos=eos) for text in texts]
        for text in texts:
            check_text(text)
        with in_words(*_CANNOT_ENCODE):
            found = self.model.encode(list(texts), num_threads=threads)
        first, last = [self.bos_id] * (bos and self._adds_bos), [self.eos_id] * eos
        return [first + ids + last for ids in found]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return detokenize(self, ids)

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        id = check_id(id)
        if id >= len(self._bytes) or (id in self._added.by_id and self._added.by_id[id].special):
            added = self._added.bytes_of(id)
        elif at_start and id in self._at_start:
            return self._at_start[id]
        else:
            added = self._bytes[id]
        return added, at_start and not added

    def encode_text(self, text: str, controls: bool = False, begins: bool = True) -> list[int]:
        ids: list[int] = []
        for part, _, model in self._parts(text, controls, begins):
            ids += [part] if isinstance(part, int) else _encoded(model, part)
        return ids

    def _locate(self, text: str, controls: bool, begins: bool) -> list[Located]:
        found: list[Located] = []
        for part, (begin, end), model in self._parts(text, controls, begins):
            if isinstance(part, int):
                found.append((part, (begin, end)))
                continue
            ids = _encoded(model, part)
            spelled = [self._bytes[id] for id in ids]
            if b"".join(spelled) == b" " + part.encode():
                spelled[0] = spelled[0][1:]
            elif b"".join(spelled) != part.encode():
                raise ValueError(
                    "the SentencePiece model changes texts before it encodes them, so a chat "
                    "template's {% generation %} cannot be found in its tokens; write it without"
                )
            found += located(ids, spelled, begin)
        return found

    def _parts(
        self, text: str, controls: bool, begins: bool
    ) -> Iterator[tuple[str | int, tuple[int, int], Any]]:
        """The parts of a text, and the model for each: after an added token begins no text."""
        for n, (part, place) in enumerate(self._added.split(text, controls=controls)):
            # In one piece, however long: its time is linear, and a cut would add a leading space.
            prefixed = (begins and n == 0) or self._stated.legacy
            yield part, place, self.model if prefixed else self._unprefixed

    @property
    def own_format(self) -> str:
        return "Llama 2" if self._step_id is None else "Code Llama 70B"

    def _encode_own_dialog(self, messages: Sequence[Message], tools: Tools | None) -> list[int]:
        if self._step_id is not None:
            return encode_codellama70b(self, self._step_id, messages, tools=tools)
        return encode_llama2(self, messages, tools=tools)

    def _encode_own_answers(self, messages: Sequence[Message]) -> Answers:
        if self._step_id is not None:
            refuse_codellama70b_answers()
        return encode_llama2_answers(self, messages)

    @property
    def _adds_bos(self) -> bool:
        return self._stated.adds_bos is not False

    @functools.cached_property
    def _unprefixed(self) -> Any:
        """The model, told to put no space before a text."""
        return _open(self._file + _NO_PREFIX)

    def _base_id(self, text: str) -> int | None:
        id = self.model.piece_to_id(text)
        return id if self.model.id_to_piece(id) == text else None

    def _id_of(self, text: str) -> int | None:
        id = self._added.id_of(text)
        return self._base_id(text) if id is None else id


def _encoded(model: Any, text: str) -> list[int]:
    with in_words(*_CANNOT_ENCODE):
        return model.encode(text)


def _open(file: bytes) -> Any:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor()
    with in_words(
        "SentencePiece cannot read it (",
        "); it is truncated or damaged, so copy or download it again",
    ):
        model.LoadFromSerializedProto(file)
    if model.bos_id() < 0 or model.eos_id() < 0:
        raise ValueError(
            f"its bos id is {model.bos_id()} and its eos id {model.eos_id()}, where -1 means "
            "none; a LLaMA tokenizer has both"
        )
    return model


def _bytes_of(model: Any, id: int, piece: str) -> bytes:
    """What a token adds to a text that has begun."""
    if model.is_control(id):
        return b""
    if model.is_byte(id):
        return bytes.fromhex(piece[3:5])  # <0xE2>
    if model.is_unknown(id):
        return model.decode([id]).encode()
    return piece.replace(SPACE, " ").encode()
