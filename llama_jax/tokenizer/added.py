"""Tokens that a folder adds to a vocabulary, each with its id, its spelling and how it is found."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from llama_jax.tokenizer.foreign import in_short, in_words

_LIKE_A_CONTROL = re.compile(r"<[|\uff5c][\w\u2581.:/-]{1,40}[|\uff5c]>")
MAX_ID = 2**24
"""Above any vocabulary's ids: a number in a stranger's file must not decide how much is made."""
MAX_TOKENS, MAX_MERGES = 300_000, 600_000
"""Above what any vocabulary has, GPT-4o's 446,000 merges being the most: of a million tokens the
tokenizers library makes ten seconds."""
MAX_ADDED, MAX_ADDED_TEXT = 80_000, 750_000
"""How many tokens a folder may add, and of how many characters together. Models that speak add up
to 66,000 for sounds, of 0.7 million characters. A search for all takes a second to make for each
million characters."""
_DECODER = "added_tokens_decoder in tokenizer_config.json"
_BOTH = "tokenizer_config.json or added_tokens.json"
_MAX_NOTES = 20
"""How many additions are told of one by one."""


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """One token, as `added_tokens_decoder` describes it."""

    id: int
    text: str
    special: bool
    """Whether it is a control token, which no text encodes to and which adds no text."""
    lstrip: bool = False
    rstrip: bool = False
    """Whether it takes the white space to its left or right."""
    single_word: bool = False
    """Whether it is found between the ends of words alone."""


def read_added_tokens(
    decoder: Any, by_text: Mapping[str, Any], controls: Callable[[str], bool]
) -> tuple[list[AddedToken], list[str]]:
    """The tokens of `added_tokens_decoder` and of `added_tokens.json` by id, and notes.

    The second says nothing but ids: there, a token is a control token where `controls` says so.
    """
    if decoder is not None and not isinstance(decoder, Mapping):
        raise ValueError(f"{_DECODER} must be an object of ids and tokens")
    check_added([*(decoder or {}), *by_text], _BOTH)  # before anything is made of so many
    found: dict[int, AddedToken] = {}
    for id, fields in (decoder or {}).items():
        fields = {"content": fields} if isinstance(fields, str) else fields
        if not isinstance(fields, Mapping) or not str(id).isdecimal():
            raise ValueError(f"{_DECODER} has {id!r}: {fields!r:.60}, no id and token")
        flags = {
            name: fields.get(name) is True
            for name in ("special", "lstrip", "rstrip", "single_word")
        }
        token = AddedToken(int(id), fields.get("content"), **flags)  # type: ignore[arg-type]
        _check(token, _DECODER)
        found[token.id] = token
    ids, notes = {token.text: token.id for token in found.values()}, []
    for text, id in by_text.items():
        token = AddedToken(id, text, special=controls(text))
        _check(token, "added_tokens.json")
        if ids.get(text, id) != id or (id in found and found[id].text != text):
            notes.append(
                f"added_tokens.json gives {text!r} id {id}, against {_DECODER}, which is followed"
            )
        else:
            found.setdefault(id, token)
    check_added([token.text for token in found.values()], _BOTH)
    return [found[id] for id in sorted(found)], few(notes)


def check_added(texts: Collection[str], where: str) -> None:
    """ValueError where there are more added tokens, or longer ones, than any model has."""
    length = sum(map(len, texts))
    if len(texts) > MAX_ADDED or length > MAX_ADDED_TEXT:
        tokens = f"{len(texts):,} token{'s' * (len(texts) != 1)} of {length:,} characters"
        most = f"{MAX_ADDED:,} of {MAX_ADDED_TEXT:,} characters"
        raise ValueError(f"{where} adds {tokens}, and at most {most} are read; download it again")


def check_vocabulary(tokens: int, merges: int = 0) -> None:
    """ValueError where a tokenizer has more tokens than any model's, or merges."""
    for what, count, most in (("tokens", tokens, MAX_TOKENS), ("merges", merges, MAX_MERGES)):
        if count > most:
            raise ValueError(f"it has {count:,} {what}, and at most {most:,} are read")


def few(notes: list[str]) -> list[str]:
    """The first notes, and how many more there are: a stranger's file may give cause for many."""
    more = len(notes) - _MAX_NOTES
    return notes if more <= 0 else [*notes[:_MAX_NOTES], f"and so on: {more:,} more of that kind"]


def _check(token: AddedToken, where: str) -> None:
    if not isinstance(token.text, str) or not token.text:
        raise ValueError(f"{where} gives id {token.id} the text {token.text!r:.60}; it needs one")
    if isinstance(token.id, bool) or not isinstance(token.id, int) or not 0 <= token.id < MAX_ID:
        raise ValueError(
            f"{where} gives {token.text!r:.60} the id {token.id!r:.60}, which must be an integer "
            f"from 0 to {MAX_ID - 1:,}"
        )


class AddedTokens:
    """Tokens beside a vocabulary that knows none, found in a text before it is encoded.

    `controls` are the vocabulary's own control tokens, by name. For example, with `<think>` added
    as id 7, "so <think>this" is split into "so ", 7, "this".
    """

    def __init__(self, tokens: Iterable[AddedToken], controls: Mapping[str, int]) -> None:
        self.by_id = {token.id: token for token in tokens}
        added = {token.text: token.id for token in self.by_id.values() if token.special}
        self.special = {**controls, **added}
        """The id of each control token, by name."""
        self._id_of = {token.text: token.id for token in self.by_id.values()}
        own = [AddedToken(id, name, special=True) for name, id in controls.items()]
        self._all = _finder([*self.by_id.values(), *own])
        self._plain = _finder([token for token in self.by_id.values() if not token.special])

    def id_of(self, text: str) -> int | None:
        """The id of an added or control token."""
        return self._id_of.get(text, self.special.get(text))

    def bytes_of(self, id: int) -> bytes:
        """What an id adds to a text: a control token nothing, nor an id that is no added token."""
        token = self.by_id.get(id)
        return b"" if token is None or token.special else token.text.encode()

    @property
    def in_texts(self) -> bool:
        """Whether a text may have one of them."""
        return self._plain is not None

    def split(
        self, text: str, *, controls: bool = False
    ) -> Iterator[tuple[str | int, tuple[int, int]]]:
        """Texts and, between them, the ids of what is found; of control tokens if asked for.

        Each with where in `text` it begins and ends.
        """
        finder = self._all if controls else self._plain
        if finder is None:
            if text:
                yield text, (0, len(text))
            return
        with in_words("the tokenizers library cannot split the text (", ")"):
            found = finder.encode(text, add_special_tokens=False)
        for id, (begin, end) in zip(found.ids, found.offsets, strict=True):
            name = finder.id_to_token(id)
            if not name:
                yield text[begin:end], (begin, end)
            else:
                yield self._id_of[name] if name in self._id_of else self.special[name], (begin, end)


def _finder(tokens: Sequence[AddedToken]) -> Any:
    """The tokenizers library, which knows these tokens alone: all else is one word without a name.

    It finds any number of tokens in one pass over a text.
    """
    if not tokens:
        return None
    import tokenizers

    finder = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0}, unk_token=""))
    finder.add_special_tokens([library_token(token) for token in tokens])
    return finder


def library_token(token: AddedToken) -> Any:
    """A token as the tokenizers library takes it, found as it is spelled."""
    import tokenizers

    return tokenizers.AddedToken(
        token.text,
        special=token.special,
        normalized=False,
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
    )


@in_short()
def check_controls(
    source: str, named: Mapping[str, str], id_of: Callable[[str], int | None]
) -> None:
    """ValueError where a chat template writes a stated control token that is no token.

    `named` are the stated ones: {"eos_token": "<|im_end|>", ...}. Spelled by several tokens, it
    would be a text to the model.
    """
    for name, text in named.items():
        if id_of(text) is not None:
            continue
        if text in source or re.search(rf"\b{re.escape(name)}\b", source):
            raise ValueError(
                f"the chat template writes the control token {text!r} ({name}), and it is no token "
                "of this tokenizer; add it with the model's id for it to added_tokens.json, "
                f'{{"{text}": ID}}'
            )


def unknown_controls(source: str, id_of: Callable[[str], int | None]) -> list[str]:
    """What a chat template spells like a control token, <|user|> say, and is no token.

    The model then reads its characters, which is as some were trained (TinyLlama), and in others
    means that a file beside the tokenizer is missing.
    """
    before, *comments = source.split("{#")  # a pattern would look for the end of each that has none
    written = before + "".join(comment.partition("#}")[2] for comment in comments)
    spelled = dict.fromkeys(_LIKE_A_CONTROL.findall(written))
    return [text for text in spelled if id_of(text) is None]
