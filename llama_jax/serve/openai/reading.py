"""A body to a request, or to an error that names the field, its value and the rule."""

from __future__ import annotations

import itertools
import re
from typing import Any, TypeVar, get_type_hints

import msgspec

from llama_jax.serve.limits import MAX_BIASES
from llama_jax.serve.openai.errors import bad
from llama_jax.serve.openai.requests import INERT

T = TypeVar("T", bound=msgspec.Struct)
_PLACED = re.compile(r"(.*?)(?: - at `\$\.?(.*)`)?", flags=re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(\w+)`")
_WHY = {
    "chat_template": "a template is a program, and this server runs the checkpoint's alone",
    "chat_template_kwargs": "the checkpoint's template is filled by messages and tools alone",
    "suffix": "the model only continues texts",
    "include_stop_str_in_output": "a text ends before its stop string",
    "functions": "use tools",
    "function_call": "use tool_choice",
}


def read_request(kind: type[T], body: bytes) -> T:
    """The request in a body. Fields that are null count as absent."""
    try:
        given = msgspec.json.decode(body)
    except RecursionError:
        raise bad("the body nests lists or objects too deeply", code="invalid_json") from None
    except ValueError as error:  # msgspec's own, and Python's of bytes that are not UTF-8
        said = str(error).partition(" - at `$")[0]  # a place that msgspec knows only in part
        raise bad(f"the body is no JSON: {said}", code="invalid_json") from None
    if not isinstance(given, dict):
        raise bad(f"the body is a {type(given).__name__}; send a JSON object", code="invalid_json")
    given = {name: value for name, value in given.items() if value is not None}
    known = set(kind.__struct_encode_fields__)  # structs.fields() leaves a cycle at each call
    given = {name: value for name, value in given.items() if name in known or _counts(name, value)}
    try:
        return msgspec.convert(given, kind)
    except msgspec.ValidationError as error:
        raise _worded(str(error), given, kind) from None


def _counts(name: str, value: Any) -> bool:
    """False of a field that changes nothing at its value; an error of any other that is unknown."""
    if value in INERT.get(name, ()):
        return False
    reason = _WHY.get(name, "it may change the answer")
    rest = f"={value!r:.60} cannot be followed" if name in INERT else " is not a field known here"
    raise bad(f"{name[:60]}{rest}: {reason}; leave it out", name[:60], "unknown_field")


def _worded(message: str, given: Any, kind: type[Any]) -> Exception:
    found = _PLACED.fullmatch(message)
    rule, path = (found[1], found[2] or "") if found else (message, "")
    is_entry = path.endswith("[...]")  # msgspec's word for any value of a dict
    path = path.removesuffix("[...]")
    if missing := _MISSING.fullmatch(rule):
        path = ".".join(filter(None, (path, missing[1])))
        return bad(f"the request has no {path}", path, "missing_field")
    rule = rule[:1].lower() + rule[1:].replace("`", "")
    shown = f"{path}={_at(path, given)!r:.60}"
    if is_entry:
        shown = _refused_entry(path, given, kind) or shown
    return bad(f"{shown} is refused: {rule}", path or None, "invalid_value")


def _refused_entry(name: str, given: Any, kind: type[Any]) -> str:
    """The refused entry of a dict, `logit_bias['77']=101` say; "" if it is not found soon."""
    hint, entries = get_type_hints(kind, include_extras=True).get(name, Any), given.get(name)
    if not isinstance(entries, dict):
        return ""
    for key, value in itertools.islice(entries.items(), MAX_BIASES):
        try:
            msgspec.convert({key: value}, hint)
        except msgspec.ValidationError:
            return f"{name}[{key!r:.60}]={value!r:.60}"
    return ""


def _at(path: str, value: Any) -> Any:
    """What stands at a path such as `messages[0].content`; the nearest that there is."""
    for name, index in re.findall(r"([^.\[\]]+)|\[(\d+)\]", path):
        try:
            value = value[int(index)] if index else value[name]
        except (LookupError, TypeError):
            return value
    return value
