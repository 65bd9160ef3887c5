"""The tokenizer of a Hugging Face folder: tokenizer.json, and what the files beside it say."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, SupportsIndex

from llama_jax.tokenizer.beside import SpecialTokens
from llama_jax.tokenizer.chat_template import ChatTemplate, WithTemplate, encode_with_template
from llama_jax.tokenizer.detokenizer import detokenize
from llama_jax.tokenizer.hf_decoder import spelling_of
from llama_jax.tokenizer.protocol import Message, Tokenizer, Tools, check_id, check_text


class HuggingFaceTokenizer(WithTemplate, Tokenizer):
    """A tokenizer.json, from the bytes of its file, run by the library that wrote it.

    Control tokens are those it calls special, and the ones that begin and end a text; they have
    no bytes. A text gets a bos where the files give it one: `bos_id` is `eos_id` where they name
    none.
    """

    def __init__(
        self, file: bytes, special: SpecialTokens, template: ChatTemplate | None = None
    ) -> None:
        self._file, self._template = file, template
        self._controls_too = _open(file)
        ids = self._controls_too.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values(), default=-1) + 1
        added = self._controls_too.get_added_tokens_decoder()

        eos = self._first(special.eos)
        if eos is None:
            raise ValueError(
                "neither tokenizer_config.json, special_tokens_map.json, generation_config.json "
                "nor config.json names an eos token that it knows; a LLaMA tokenizer has one"
            )
        bos = self._first(special.bos)
        stops = [id for id in special.stop_ids if id < self.vocab_size]
        self.eos_id: int = eos
        self.bos_id: int = eos if bos is None else bos
        self.stop_ids = tuple(dict.fromkeys([eos, *stops]))
        self._adds_bos = bos is not None and _adds_bos(self._controls_too, bos, special)

        controls = {id for id, token in added.items() if token.special}
        controls |= {self.bos_id, *self.stop_ids}
        self._control_ids = frozenset(controls)
        self.special = {added[id].content: id for id in sorted(controls) if id in added}
        """The id of each control token, by name. No text encodes to them."""
        self._spelling = spelling_of(json.loads(file).get("decoder"))
        self._spelled: dict[tuple[int, bool], tuple[bytes, bool]] = {}

    @staticmethod
    def recognizes(file: bytes) -> bool:
        """Whether `file` begins as a JSON object does."""
        return file.lstrip()[:1] == b"{"

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        check_text(text)
        with _in_words():
            ids = self._text_only.encode(text, add_special_tokens=False).ids
        return [self.bos_id] * (bos and self._adds_bos) + ids + [self.eos_id] * eos

    def encode_dialog(
        self, messages: Sequence[Message], *, tools: Tools | None = None
    ) -> list[int]:
        """The ids of a dialog, as the checkpoint's chat template writes it."""
        if self._template is None:
            raise ValueError(
                "the checkpoint has no chat template, neither chat_template.jinja nor one in "
                "tokenizer_config.json; write the dialog as a text, as the model's card says"
            )
        return encode_with_template(
            self._template,
            messages,
            tools=tools,
            encode=self._encode_controls_too,
            encode_text=lambda text: self.encode(text, bos=False, eos=False),
            special=self.special,
        )

    def _encode_controls_too(self, text: str) -> list[int]:
        with _in_words():
            return self._controls_too.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return detokenize(self, ids)

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        id = check_id(id, self.vocab_size)
        if id in self._control_ids:
            return b"", at_start
        if (id, at_start) not in self._spelled:
            self._spelled[id, at_start] = self._spell(id, at_start)
        return self._spelled[id, at_start]

    def _spell(self, id: int, at_start: bool) -> tuple[bytes, bool]:
        token = self._controls_too.id_to_token(id)
        if token is None:
            return b"", at_start  # ids need not follow each other
        if self._spelling is not None:
            return self._spelling(token, at_start)
        # Of a kind unknown: what the library adds to a text for it, or begins one with.
        with _in_words():
            a = self._controls_too.encode("a", add_special_tokens=False).ids
            before = [] if at_start else a
            text, longer = (self._controls_too.decode(ids) for ids in (before, [*before, id]))
        return longer.removeprefix(text).encode(), at_start and not longer

    def _first(self, names: Iterable[str | int]) -> int | None:
        """The first of some tokens, each by name or id, that the vocabulary has."""
        for name in names:
            id = self._controls_too.token_to_id(name) if isinstance(name, str) else name
            if id is not None and id < self.vocab_size:
                return id
        return None

    @functools.cached_property
    def _text_only(self) -> Any:
        """The library's tokenizer, told to find no control token in a text.

        A second one: the setting belongs to the tokenizer, and threads may encode at once.
        """
        tokenizer = _open(self._file)
        tokenizer.add_special_tokens(list(self.special))  # those not called special in the file
        tokenizer.encode_special_tokens = True
        return tokenizer


def _open(file: bytes) -> Any:
    import tokenizers

    with _in_words():
        tokenizer = tokenizers.Tokenizer.from_buffer(file)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@contextlib.contextmanager
def _in_words() -> Iterator[None]:
    """The library's failures as ValueErrors; what Rust panics with is not even an Exception."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(
            f"the tokenizers library cannot use tokenizer.json ({error}); copy or download it again"
        ) from None


def _adds_bos(tokenizer: Any, bos: int, special: SpecialTokens) -> bool:
    """As stated, or as its post-processor does; without one, as transformers' LLaMA classes do."""
    if special.adds_bos is not None:
        return special.adds_bos
    with _in_words():
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        processed = tokenizer.encode("a").ids
    if processed[: len(bare) + 1] == [bos, *bare]:
        return True
    return special.is_llama and tokenizer.post_processor is None
