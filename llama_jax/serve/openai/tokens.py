"""/tokenize, /detokenize, /tokenizer_info and /v1/models."""

from __future__ import annotations

from typing import Any

import msgspec

from llama_jax.serve.openai.answers import Detokenized, Model, Models, Tokenized
from llama_jax.serve.openai.chat import messages_of
from llama_jax.serve.openai.errors import ApiError, bad, refused
from llama_jax.serve.openai.logprobs import Spelling
from llama_jax.serve.openai.requests import DetokenizeRequest, TokenizeRequest
from llama_jax.serve.openai.served import Served


def tokenize(served: Served, request: TokenizeRequest) -> Tokenized:
    """The ids of a text, or of a dialog."""
    served.check_name(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise bad("tokenize takes a prompt or messages; send one of them", "prompt")
    if request.prompt is not None:
        ids = served.encode(request.prompt, "prompt", bos=request.add_special_tokens)
    else:
        messages = messages_of(served, request.messages or [])
        tools = msgspec.to_builtins(request.tools) or None
        try:
            ids = served.tokenizer.encode_dialog(messages, tools=tools)
        except ValueError as error:
            raise refused(error, "messages") from None
    texts = None
    if request.return_token_strs:
        spelling, texts = Spelling(served.tokenizer), []
        for id in ids:
            texts.append(spelling.spelled(id)[0])
            spelling.take(id)
    return Tokenized(count=len(ids), max_model_len=served.context, tokens=ids, token_strs=texts)


def detokenize(served: Served, request: DetokenizeRequest) -> Detokenized:
    """The text of ids, of which control tokens are no part."""
    served.check_name(request.model)
    if wrong := [id for id in request.tokens if not 0 <= id < 2**31]:
        raise bad(f"tokens has {wrong[0]}, which is no token", "tokens", "invalid_value")
    return Detokenized(served.tokenizer.decode(request.tokens))


def tokenizer_info(served: Served) -> dict[str, Any]:
    """What evaluations ask of a tokenizer before they use it."""
    tokenizer = served.tokenizer
    names = {id: name for name, id in tokenizer.special.items()}
    template = getattr(tokenizer, "_template", None)
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "vocab_size": tokenizer.vocab_size,
        "bos_token": names.get(tokenizer.bos_id),
        "bos_token_id": tokenizer.bos_id,
        "eos_token": names.get(tokenizer.eos_id),
        "eos_token_id": tokenizer.eos_id,
        "stop_token_ids": list(tokenizer.stop_ids),
        "pad_token": names.get(tokenizer.eos_id),
        "model_max_length": served.context,
        "chat_template": None if template is None else template.source,
        "special_tokens": dict(tokenizer.special),
    }


def models(served: Served) -> Models:
    """The one model that there is."""
    return Models(data=[_model(served)])


def model(served: Served, name: str) -> Model:
    """The model of this name; a 404 where it is another's."""
    served.check_name(name)
    return _model(served)


def _model(served: Served) -> Model:
    return Model(
        id=served.name,
        created=served.created,
        max_model_len=served.context,
        chat=served.chats,
    )


def no_embeddings() -> ApiError:
    """The answer to a route that clients may look for."""
    return ApiError(404, "this server makes no embeddings: its model writes text", code="not_found")
