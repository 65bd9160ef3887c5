"""The tokenizers library: opened from tokenizer.json, with the tokens that a folder adds to it."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from llama_jax.tokenizer import foreign
from llama_jax.tokenizer.added import AddedToken, library_token

_MAX_FILLERS = 2**16


def open_library(file: bytes) -> Any:
    """The library of a file, which cuts and pads no text and encodes each in one way."""
    import tokenizers

    with in_words():
        tokenizer = tokenizers.Tokenizer.from_buffer(file)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        if getattr(tokenizer.model, "dropout", None) is not None:
            tokenizer.model.dropout = None
    return tokenizer


def add(tokenizer: Any, tokens: Sequence[AddedToken]) -> None:
    """Adds tokens, which follow its own by their ids, as `with_fillers` orders them.

    All together: with each call the library makes its search for all of its tokens anew.
    """
    with in_words():
        if tokens:
            tokenizer.add_tokens([library_token(token) for token in tokens])
        for token in tokens:
            if tokenizer.token_to_id(token.text) != token.id:
                raise ValueError(f"it cannot hold {token.text!r} as id {token.id}")


def vocab_size(tokenizer: Any, vocab: Mapping[str, int] | Sequence[Any]) -> int:
    """One above the largest id; `vocab` is the file's, a list where ids are places.

    The library would make a dictionary of all tokens to say it.
    """
    own = max(vocab.values(), default=-1) + 1 if isinstance(vocab, Mapping) else len(vocab)
    return max([own, *(id + 1 for id in tokenizer.get_added_tokens_decoder())])


def make_controls(tokenizer: Any, ids: Collection[int]) -> None:
    """Makes control tokens of `ids`; these, and what the file calls special, are found as spelled.

    A normalizer may change a text before the library looks for a token in it: where it prepends
    "\u2581", "a</s>" would hold no "</s>".
    """
    import tokenizers

    added, controls = tokenizer.get_added_tokens_decoder(), []
    for id in {*ids, *(id for id, token in added.items() if token.special)}:
        token = added.get(id)
        text = tokenizer.id_to_token(id) if token is None else token.content
        if text is None or (token is not None and token.special and not token.normalized):
            continue
        names = () if token is None else ("lstrip", "rstrip", "single_word")
        flags = {name: getattr(token, name) for name in names}
        controls.append(tokenizers.AddedToken(text, special=True, normalized=False, **flags))
    if controls:
        tokenizer.add_special_tokens(controls)


def finding_no_controls(tokenizer: Any, controls: Collection[str]) -> Any:
    """The same tokenizer, which finds no control token in a text; `controls` are more of them.

    The two share the model, which takes long to make.
    """
    import tokenizers

    with in_words():
        twin = tokenizers.Tokenizer(tokenizer.model)
        for part in ("normalizer", "pre_tokenizer"):
            if (value := getattr(tokenizer, part)) is not None:
                setattr(twin, part, value)
        added = sorted(tokenizer.get_added_tokens_decoder().items())
        for _, token in added:
            token.special = token.special or token.content in controls
        twin.add_tokens([token for _, token in added])
        for id, token in added:
            if twin.token_to_id(token.content) != id:
                raise ValueError(f"it cannot hold {token.content!r} as id {id}")
        twin.encode_special_tokens = True
    return twin


def with_fillers(tokens: Sequence[AddedToken], size: int) -> list[AddedToken]:
    """The tokens by id, and between them fillers: the library gives out ids without a gap.

    A filler's spelling begins with what is random, so that no text has it.
    """
    ordered: list[AddedToken] = []
    unguessed = secrets.token_hex(16)
    for token in sorted(tokens, key=lambda token: token.id):
        if token.id - size > _MAX_FILLERS:
            raise ValueError(
                f"{token.text!r} is added as id {token.id:,}, far above the {size:,} ids that "
                "there are; correct added_tokens.json or added_tokens_decoder"
            )
        fillers = range(size, token.id)
        ordered += [AddedToken(id, f"<{unguessed}{id}>", special=True) for id in fillers]
        ordered.append(token)
        size = max(size, token.id + 1)
    return ordered


def in_words() -> contextlib.AbstractContextManager[None]:
    """The library's failures as ValueErrors; what Rust panics with is not even an Exception."""
    return foreign.in_words(
        "the tokenizers library cannot use tokenizer.json (", "); copy or download it again"
    )
