"""What clients send: a struct a request. `/openapi.json` is made of them.

Fields are named as in OpenAI's protocol; those that it does not have are named as in vLLM's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from msgspec import Meta, Struct, defstruct

from llama_jax.generation.limits import LARGEST
from llama_jax.generation.settings import ON_DEVICE
from llama_jax.serve import limits

Name = Annotated[str, Meta(max_length=limits.MAX_NAME_CHARACTERS)]
Stop = Annotated[str, Meta(min_length=1, max_length=limits.MAX_STOP_CHARACTERS)]
Grammar = Annotated[str, Meta(min_length=1, max_length=limits.MAX_GRAMMAR_CHARACTERS)]
Share = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Count = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Logprobs = Annotated[int, Meta(ge=0, le=limits.MAX_LOGPROBS)]
Tokens = Annotated[list[int], Meta(max_length=limits.MAX_STOP_IDS)]


class StreamOptions(Struct, forbid_unknown_fields=True):
    """`include_usage`: a last chunk says how many tokens were read and written."""

    include_usage: bool = False
    include_obfuscation: Any = None


class JsonSchema(Struct, forbid_unknown_fields=True):
    """A schema that the answer is to follow."""

    schema: dict[str, Any] | bool = True
    name: str = ""
    description: str = ""
    strict: bool | None = None


class ResponseFormat(Struct, forbid_unknown_fields=True):
    """What the whole answer is: a text, any JSON object, or what a schema or a grammar says.

    A `schema` beside json_object is llama.cpp's way to state one.
    """

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"] = "text"
    json_schema: JsonSchema | None = None
    schema: dict[str, Any] | bool | None = None
    regex: Grammar | None = None
    grammar: Grammar | None = None


class StructuredOutputs(Struct, forbid_unknown_fields=True):
    """vLLM's way to say the same; one of them."""

    json: dict[str, Any] | str | None = None
    json_object: bool | None = None
    regex: Grammar | None = None
    choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    grammar: Grammar | None = None


def _numbers() -> Any:
    """A struct with a field for each setting that is a number, with its default and its bounds."""
    fields = []
    for name, setting in ON_DEVICE.items():
        bounds = setting.metadata
        kind: Any = int if bounds["integer"] else float
        largest = 2**63 - 1 if bounds["integer"] else LARGEST
        low, high = max(bounds["low"], -largest), min(bounds["high"], largest)
        from_low = {"gt" if bounds["is_open"] else "ge": kind(low)}
        kind = Annotated[kind, Meta(le=kind(high), **from_low)]
        fields.append((name, kind | None if bounds["optional"] else kind, setting.default))
    return defstruct("Numbers", fields, kw_only=True, module=__name__)


if TYPE_CHECKING:

    class Numbers(Struct, kw_only=True):
        """As type checkers see it: its fields are read with `getattr` alone."""

else:
    Numbers = _numbers()


class Request(Numbers, Struct, kw_only=True):
    """What completions and chat have in common.

    A number of `SamplingSettings` is stated here where a request has another default or other
    bounds than Python: OpenAI's, and for `top_k` and `repetition_penalty` vLLM's and our own.
    """

    model: Name | None = None
    n: Annotated[int, Meta(ge=1, le=limits.MAX_COMPLETIONS)] = 1
    max_tokens: Count | None = None
    min_tokens: Count = 0
    temperature: Annotated[float, Meta(ge=0, le=2)] = 1.0
    top_p: Share = 1.0
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] = 0
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] = 1.0
    logit_bias: dict[str, Annotated[float, Meta(ge=-100, le=100)]] = {}
    stop: Stop | Annotated[list[Stop], Meta(max_length=limits.MAX_STOPS)] = []
    stop_token_ids: Tokens = []
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None
    prompt_logprobs: Logprobs | None = None
    cache_salt: Name = ""
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: Grammar | None = None
    guided_choice: Annotated[list[str], Meta(min_length=1, max_length=1024)] | None = None
    guided_grammar: Grammar | None = None
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None

    @property
    def counts_usage(self) -> bool:
        """Whether a stream's last chunk says how many tokens were read and written."""
        return self.stream_options is not None and self.stream_options.include_usage


class CompletionRequest(Request, kw_only=True):
    """POST /v1/completions: continues texts."""

    prompt: str | Annotated[list[str | int | list[int]], Meta(min_length=1)]
    max_tokens: Count | None = 16
    logprobs: Logprobs | None = None
    echo: bool = False
    best_of: int | None = None
    add_special_tokens: bool = True


class Function(Struct):
    """A function that the model may call."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool; functions are the one kind."""

    function: Function
    type: Literal["function"] = "function"


class NamedFunction(Struct):
    """The name of a function."""

    name: Name


class NamedTool(Struct):
    """The tool that is to be called."""

    function: NamedFunction
    type: Literal["function"] = "function"


class ChatRequest(Request, kw_only=True):
    """POST /v1/chat/completions: answers a dialog."""

    messages: Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=limits.MAX_MESSAGES)]
    max_completion_tokens: Count | None = None
    logprobs: bool = False
    top_logprobs: Logprobs | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.MAX_TOOLS)] = []
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: Any = None
    continue_final_message: bool = False
    add_generation_prompt: bool | None = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: the ids of a text, or of a dialog up to where it answers."""

    model: Name | None = None
    prompt: str | None = None
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=limits.MAX_TOOLS)] = []
    add_special_tokens: bool = True
    return_token_strs: bool = False


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize: the text of ids."""

    model: Name | None = None
    tokens: Annotated[list[int], Meta(max_length=limits.MAX_IDS)]


INERT: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1, 1.0),
    "early_stopping": (False,),
    "return_tokens_as_token_ids": (False,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none",),
    "documents": ([],),
    "chat_template_kwargs": ({},),
}
"""Fields that are not followed, and the values at which that makes no difference."""
