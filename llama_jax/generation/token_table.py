"""A vocabulary as llguidance takes it: what each token adds to a text, in bytes."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from llama_jax.generation.grammar import library
from llama_jax.generation.limits import GRAMMARS, MAX_LEXER_STATES
from llama_jax.generation.masks import bits_of, words_of
from llama_jax.tokenizer import Tokenizer


class TokenTable:
    """The bytes of a model's tokens, and the grammars compiled for them, the last 32 of them.

    The first token of a text may add other bytes than it does later: SentencePiece's "▁The" adds
    no space there. Such a token stands in the table twice, the second time with an id beyond the
    vocabulary. Control tokens, and ids that spell nothing, add no bytes, and no grammar allows
    them: a text could go on with them for ever.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        later = [_added(tokenizer, id, at_start=False) for id in range(vocab_size)]
        first = [_added(tokenizer, id, at_start=True) for id in range(vocab_size)]
        self.differing = np.flatnonzero([a != b for a, b in zip(later, first, strict=True)])
        """Ids of tokens that add other bytes to an empty text."""
        end = vocab_size + len(self.differing)
        spelled = [*later, *(first[id] for id in self.differing), b"\xff<end>"]
        self._first_id = {int(id): vocab_size + n for n, id in enumerate(self.differing)}
        self.spelling = words_of(np.array([token != b"" for token in later], bool))
        """Words of the ids that add bytes."""
        self.same = words_of(np.array([a == b for a, b in zip(later, first, strict=True)], bool))
        """Words of the ids that add the same bytes wherever they stand."""
        wrapped = library().TokenizerWrapper(_Spelled(spelled))
        self._library = library().LLTokenizer(wrapped, eos_token=end)
        self.compiled: OrderedDict[str, Any] = OrderedDict()
        """Grammars that were compiled, the newest used last."""
        self._lock = threading.Lock()

    def matcher(self, grammar: str) -> Any:
        """llguidance's matcher for a checked grammar, at the beginning of a text."""
        with self._lock:
            if grammar not in self.compiled:
                limits = library().LLParserLimits(
                    max_lexer_states=MAX_LEXER_STATES, verbose_errors=False
                )
                made = library().LLMatcher(self._library, grammar, log_level=0, limits=limits)
                if made.is_error():
                    raise ValueError(
                        "the schema, regex or grammar takes too much work to compile; make it "
                        "simpler"
                    )
                self.compiled[grammar] = made
            self.compiled.move_to_end(grammar)
            while len(self.compiled) > GRAMMARS:
                self.compiled.popitem(last=False)
            return self.compiled[grammar].deep_copy()

    def allowed(self, matcher: Any, *, first: bool) -> np.ndarray:
        """Words of the ids whose bytes may come next. `first`: the text is empty so far."""
        words = np.frombuffer(matcher.compute_bitmask(), np.uint32)
        if first and len(self.differing):
            bits = bits_of(words)
            bits[self.differing] = bits[self.vocab_size : self.vocab_size + len(self.differing)]
            return words_of(bits[: self.vocab_size])
        return words[: len(self.spelling)] & self.spelling

    def id_of(self, token: int, *, first: bool) -> int:
        """The table's id of a token."""
        return self._first_id.get(token, token) if first else token


def table_of(tokenizer: Tokenizer, vocab_size: int) -> TokenTable:
    """The table of a tokenizer for a model of `vocab_size` ids, made once for each."""
    with _lock:
        known = _tables.setdefault(tokenizer, {})
        if vocab_size not in known:
            known[vocab_size] = TokenTable(tokenizer, vocab_size)
        return known[vocab_size]


_tables: weakref.WeakKeyDictionary[Any, dict[int, TokenTable]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


class _Spelled:
    """What llguidance asks of a tokenizer. It never has to encode: no text is forced."""

    bos_token_id = None
    special_token_ids: tuple[int, ...] = ()

    def __init__(self, tokens: list[bytes]) -> None:
        self.tokens = tokens
        self.eos_token_id = len(tokens) - 1

    def __call__(self, text: bytes) -> list[int]:
        return []


def _added(tokenizer: Tokenizer, id: int, *, at_start: bool) -> bytes:
    """A token's bytes; none where they begin with 0xFF, by which the library marks controls."""
    added, _ = tokenizer.token_bytes(id, at_start=at_start)
    return b"" if added.startswith(b"\xff") else added
