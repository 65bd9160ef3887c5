"""The tokenizer of a Hugging Face folder: tokenizer.json, and what the files beside it say."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex

from llama_jax.tokenizer.beside import Stated
from llama_jax.tokenizer.chat_template import ChatTemplate
from llama_jax.tokenizer.detokenizer import detokenize
from llama_jax.tokenizer.hf_bounds import read_bounded_json
from llama_jax.tokenizer.hf_decoder import part_of_character, spelling_of
from llama_jax.tokenizer.hf_library import (
    add,
    finding_no_controls,
    in_words,
    make_controls,
    open_library,
    vocab_size,
    with_fillers,
)
from llama_jax.tokenizer.protocol import Answers, Message, Tools, check_id, check_text
from llama_jax.tokenizer.template_answers import Located
from llama_jax.tokenizer.with_template import WithTemplate


class HuggingFaceTokenizer(WithTemplate):
    """A tokenizer.json, from the bytes of its file, run by the library that wrote it.

    The folder's added tokens are its own too. Control tokens are those called special, and the ones
    that begin and end a text; they have no bytes. A text gets a bos where the files give it one:
    `bos_id` is `eos_id` where they name none.
    """

    def __init__(
        self, file: bytes, stated: Stated | None = None, template: ChatTemplate | None = None
    ) -> None:
        self._file, self._template = file, template
        self._stated = stated = stated or Stated()
        said = read_bounded_json(file)  # before the library opens it, which may take long
        library = self._controls_too = open_library(file)
        size = vocab_size(library, said["model"]["vocab"])
        joining, self.notes = stated.join(library.token_to_id, size)
        if said["model"].get("dropout"):
            self.notes += ("dropout in tokenizer.json is ignored: a text has one encoding",)
        self._joined = with_fillers(joining, size)
        add(library, self._joined)
        self.vocab_size: int = max([size, *(token.id + 1 for token in self._joined)])

        id_of = library.token_to_id
        eos = stated.first(stated.eos, id_of, self.vocab_size)
        if eos is None:
            raise ValueError(
                "neither tokenizer_config.json, special_tokens_map.json, generation_config.json "
                "nor config.json names an eos token that it knows; a LLaMA tokenizer has one"
            )
        bos = stated.first(stated.bos, id_of, self.vocab_size)
        self.eos_id: int = eos
        self.bos_id: int = eos if bos is None else bos
        self.stop_ids = stated.stops(eos, (), self.vocab_size)
        self._adds_bos = bos is not None and _adds_bos(self._controls_too, bos, stated)

        make_controls(self._controls_too, {self.bos_id, eos})
        added = self._controls_too.get_added_tokens_decoder()
        controls = {id for id, token in added.items() if token.special}
        controls |= {self.bos_id, *self.stop_ids}
        self._control_ids = frozenset(controls)
        fillers = {token.id for token in self._joined} - {token.id for token in joining}
        named = sorted(controls & added.keys() - fillers)
        self.special = {added[id].content: id for id in named}
        self._decoder, self._added = said.get("decoder"), {t.content for t in added.values()}
        self._spelling = spelling_of(self._decoder, self._added)
        self._spelled: dict[tuple[int, bool], tuple[bytes, bool]] = {}

    @staticmethod
    def recognizes(file: bytes) -> bool:
        """Whether `file` begins as a JSON object does."""
        return file.lstrip()[:1] == b"{"

    def encode(self, text: str, *, bos: bool, eos: bool) -> list[int]:
        check_text(text)
        ids = self.encode_text(text)
        return [self.bos_id] * (bos and self._adds_bos) + ids + [self.eos_id] * eos

    def encode_batch(
        self, texts: Sequence[str], *, bos: bool, eos: bool, threads: int
    ) -> list[list[int]]:
        for text in texts:
            check_text(text)
        if threads == 1:  # the library's own threads are as many as there are cores
            return [self.encode(text, bos=bos, eos=eos) for text in texts]
        with in_words():
            found = self._text_only.encode_batch_fast(list(texts), add_special_tokens=False)
        first, last = [self.bos_id] * (bos and self._adds_bos), [self.eos_id] * eos
        return [first + one.ids + last for one in found]

    def decode(self, ids: Iterable[SupportsIndex]) -> str:
        return detokenize(self, ids)

    def token_bytes(self, id: SupportsIndex, *, at_start: bool) -> tuple[bytes, bool]:
        id = check_id(id)
        if id in self._control_ids:
            return b"", at_start
        if (id, at_start) not in self._spelled:
            self._spelled[id, at_start] = self._spell(id, at_start)
        return self._spelled[id, at_start]

    def encode_text(self, text: str, controls: bool = False, begins: bool = True) -> list[int]:
        return self._run(text, controls).ids

    def _locate(self, text: str, controls: bool, begins: bool) -> list[Located]:
        found = self._run(text, controls)
        return list(zip(found.ids, found.offsets, strict=True))

    def _run(self, text: str, controls: bool) -> Any:
        with in_words():
            library = self._controls_too if controls else self._text_only
            return library.encode(text, add_special_tokens=False)

    def _id_of(self, text: str) -> int | None:
        return self._controls_too.token_to_id(text)

    @property
    def own_format(self) -> None:
        return None

    def _encode_own_dialog(self, messages: Sequence[Message], tools: Tools | None) -> list[int]:
        raise _no_format()

    def _encode_own_answers(self, messages: Sequence[Message]) -> Answers:
        raise _no_format()

    def _spell(self, id: int, at_start: bool) -> tuple[bytes, bool]:
        token = self._controls_too.id_to_token(id)
        if token is None:
            return b"", at_start  # ids need not follow each other
        if self._spelling is not None:
            return self._spelling(token, at_start)
        if (part := part_of_character(token, self._decoder, self._added)) is not None:
            return part, False
        # Of a kind unknown: what the library adds to a text for it, or begins one with.
        with in_words():
            a = self._controls_too.encode("a", add_special_tokens=False).ids
            before = [] if at_start else a
            text, longer = (self._controls_too.decode(ids) for ids in (before, [*before, id]))
        return longer.removeprefix(text).encode(), at_start and not longer

    @functools.cached_property
    def _text_only(self) -> Any:
        """The library's tokenizer, told to find no control token in a text.

        A second one: the setting belongs to the tokenizer, and threads may encode at once.
        """
        return finding_no_controls(self._controls_too, self.special)


def _no_format() -> ValueError:
    return ValueError(
        "the checkpoint has no chat template, neither chat_template.jinja nor one in "
        "tokenizer_config.json; write the dialog as a text, as the model's card says"
    )


def _adds_bos(tokenizer: Any, bos: int, stated: Stated) -> bool:
    """As stated, or as its post-processor does; without one, as transformers' LLaMA classes do."""
    if stated.adds_bos is not None:
        return stated.adds_bos
    with in_words():
        bare = tokenizer.encode("a", add_special_tokens=False).ids
        processed = tokenizer.encode("a").ids
    if processed[: len(bare) + 1] == [bos, *bare]:
        return True
    return stated.is_llama and tokenizer.post_processor is None
