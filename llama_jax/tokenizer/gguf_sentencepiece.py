"""A SentencePiece vocabulary of a GGUF file as the protobuf that SentencePiece reads.

sentencepiece_model.proto has the numbers of the fields. What GGUF leaves unsaid is as in LLaMA 1
and 2: BPE with a fallback to bytes, and texts taken as they are but for the space before them.
"""

from __future__ import annotations

import struct

from llama_jax.tokenizer.gguf_vocabulary import BYTE, UNKNOWN, Vocabulary

_BPE = 2  # of the kinds of model


def tokenizer_model(said: Vocabulary) -> bytes:
    """The model's file."""
    pieces = b"".join(
        _field(1, _field(1, text.encode()) + _float(2, score) + _number(3, kind))
        for text, score, kind in zip(said.tokens, said.scores.tolist(), said.kinds, strict=True)
    )
    unknown = [id for id, kind in enumerate(said.kinds) if kind == UNKNOWN]
    if len(unknown) != 1 or said.bos is None:
        raise ValueError(
            f"it has {len(unknown)} tokens for what is unknown and bos {said.bos}; a SentencePiece "
            "vocabulary has one of each"
        )
    trainer = _number(3, _BPE) + _number(4, len(said.tokens))
    trainer += _number(35, BYTE in said.kinds)
    ends = {40: unknown[0], 41: said.bos, 42: said.eos}
    trainer += b"".join(_number(field, id) for field, id in ends.items())
    trainer += _number(43, 2**64 - 1)  # -1: it has no token to pad with
    trainer += b"".join(_field(5 + at, said.tokens[id].encode()) for at, id in ends.items())
    normalizer = _field(1, b"identity") + _number(3, said.adds_space) + _number(4, 0)
    return pieces + _field(2, trainer) + _field(3, normalizer + _number(5, 1))


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _field(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])
