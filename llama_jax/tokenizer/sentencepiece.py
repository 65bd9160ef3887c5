"""The tokenizer of LLaMA 1 and 2: a SentencePiece model that falls back to bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from llama_jax.tokenizer.chat_template import WithTemplate
from llama_jax.tokenizer.detokenizer import detokenize
from llama_jax.tokenizer.dialog import STEP, encode_codellama70b, encode_llama2
from llama_jax.tokenizer.protocol import Message, Tokenizer, Tools, check_id, check_text

SPACE = "\u2581"  # how a piece spells a space


class SentencePieceTokenizer(WithTemplate, Tokenizer):
    """A SentencePiece model, from the bytes of its file."""

    def __init__(self, file: bytes) -> None:
        import sentencepiece

        model = sentencepiece.SentencePieceProcessor()
        try:
            model.LoadFromSerializedProto(file)
        except RuntimeError as error:
            raise ValueError(
                f"SentencePiece cannot read it ({error}); it is truncated or damaged, "
                "so copy or download it again"
            ) from None
        if model.bos_id() < 0 or model.eos_id() < 0:
            raise ValueError(
                f"its bos id is {model.bos_id()} and its eos id {model.eos_id()}, where -1 means "
                "none; a LLaMA tokenizer has both"
            )
        self._model = model
        self.bos_id: int = model.bos_id()
        self.eos_id: int = model.eos_id()
        step = model.piece_to_id(STEP)
        self._step_id: int | None = step if model.id_to_piece(step) == STEP else None
        self.stop_ids = (self.eos_id,) if self._step_id is None else (self.eos_id, step)
        self.vocab_size: int = model.vocab_size()

        pieces = model.id_to_piece(list(range(self.vocab_size)))
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
        # In one piece, however long: its time is linear, and a cut would add a leading space.
        check_text(text)
        return [self.bos_id] * bos + self._model.encode(text) + [self.eos_id] * eos

    def encode_dialog(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> list[int]:
        """The ids of a dialog, in Llama 2's format, or Code Llama 70B's where it has <step>."""
        if self._step_id is not None:
            return encode_codellama70b(self, self._step_id, messages, tools=tools)
        return encode_llama2(self, messages, tools=tools)

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return detokenize(self, ids)

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        id = check_id(id, self.vocab_size)
        if at_start and id in self._at_start:
            return self._at_start[id]
        added = self._bytes[id]
        return added, at_start and not added


def _bytes_of(model: Any, id: int, piece: str) -> bytes:
    """What a token adds to a text that has begun."""
    if model.is_control(id):
        return b""
    if model.is_byte(id):
        return bytes.fromhex(piece[3:5])  # <0xE2>
    if model.is_unknown(id):
        return model.decode([id]).encode()
    return piece.replace(SPACE, " ").encode()
