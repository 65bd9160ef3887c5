"""Changes of files that keep most of their structure, so that they come far into a reader."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

from hf_folder import framed, mutated

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -1e308, "", "a", "../x", "\u0000"),
    *([], {}, [[]], {"a": {}}, [0] * 1000, "x" * 10_000),
)
TEMPLATE_PARTS = (
    *("{{ ", " }}", "{% ", " %}", "{% for m in messages %}", "{% endfor %}", "{% if x %}"),
    *("{% endif %}", "{% set ns = namespace(x='a') %}", "{% set ns.x = ns.x ~ ns.x %}"),
    *("{% macro f(x) %}", "{% endmacro %}", "{{ f(1) }}", "{% set y %}", "{% endset %}"),
    *("{{ 'a' * 999 }}", "{{ 9 ** 9 ** 9 }}", "{{ 'a'.center(10 ** 9) }}", "{{ m.content }}"),
    *("{{ messages | tojson(indent=9) }}", "{{ range(99999) | join('ab') }}", "{{ ns.x }}"),
    *("{{ [ns.x, ns.x] | string }}", "{% for i in range(99999) %}", "{{ x.y.z }}", "'", '"', "|"),
    *("{{ ''.__class__.__mro__ }}", "{{ '%99999999d' % 1 }}", "{{ '{:99999999}'.format(1) }}"),
    *("{% include 'a' %}", "{{ cycler.__init__.__globals__ }}", "{{ raise_exception('no') }}"),
    *("{% generation %}", "{% endgeneration %}", "{{ bos_token + 'x' }}", "\\n", "{#", "#}"),
    *("{% set x = ('a\u0100-' * 333) * 999 %}", "{{ x | list | length }}", "{{ x | title }}"),
    *("{{ x | sort | first }}", "{{ cycler(*x) }}", "{{ x | unique | list }}", "{{ x.upper() }}"),
    *("{% for a in [x] recursive %}", "{{ loop(a) }}", "{{ x | indent(1) | wordcount }}"),
    *("{% set ns.x = namespace(a=ns.x, b=x | batch(9)) %}", "{{ (x | e | tojson) * 9 }}"),
    *("{{ dict(range(0, 2 ** 61 * 9999, 2 ** 61 - 1) | batch(2)) }}", "{{ -9 ** 999 | abs }}"),
)


def change(name: str, content: bytes, rng: random.Random) -> bytes:
    """The bytes of a file of this path changed: within its structure, or anywhere."""
    if rng.random() < 0.3:
        return mutated(content, rng)
    if name.endswith(".json"):
        return json.dumps(changed_json(json.loads(content), rng)).encode()
    if name.endswith(".jsonl"):
        lines = content.splitlines()
        at = rng.randrange(len(lines))
        lines[at] = json.dumps(changed_json(json.loads(lines[at]), rng)).encode()
        return b"\n".join(lines)
    if name.endswith(".safetensors"):
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        return framed(changed_json(header, rng), content[8 + size :])
    if name.endswith((".pth", ".pt", "model.bin")):
        return _changed_zip(content, rng)
    if "/weights/" in name:
        return _changed_shard(content, rng)
    return mutated(content[: len(content) // 4], rng) + content[len(content) // 4 :]


def template(rng: random.Random) -> str:
    """A chat template of parts that work, fail or want much."""
    return "".join(rng.choices(TEMPLATE_PARTS, k=rng.choice([1, 3, 8, 30])))


def changed_json(value: Any, rng: random.Random) -> Any:
    """A value of JSON with some of what lies in it replaced, left out or doubled."""
    for _ in range(rng.choice([1, 1, 2, 5])):
        value = _changed(value, rng)
    return value


def _changed(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict | list) or not value or rng.random() < 0.05:
        return rng.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, found = rng.choice(keys), value.copy()
    match rng.randrange(6):
        case 0:
            del found[key]
        case 1:
            found[key] = found[rng.choice(keys)]
        case 2 if isinstance(found, dict):
            found[str(key) + rng.choice("x.\u0000")] = found.pop(key)
        case _:
            found[key] = _changed(found[key], rng)
    return found


def _changed_zip(content: bytes, rng: random.Random) -> bytes:
    """An archive whose checksums are right, one of its members changed."""
    written = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(written, "w") as new:
        names = old.namelist()
        chosen = next(n for n in names if n.endswith("data.pkl"))
        if rng.random() < 0.3:
            chosen = rng.choice(names)
        for name in names:
            data = old.read(name)
            new.writestr(name, mutated(data, rng) if name == chosen else data)
    return written.getvalue()


def _changed_shard(content: bytes, rng: random.Random) -> bytes:
    """A file of a native weight, of one chunk, whose checksums are right, changed in one part."""
    data, (at, size) = content[:-24], struct.unpack("<2Q", content[-20:-4])
    if rng.random() < 0.5:
        data = mutated(data, rng)
        at, size = 0, len(data) + 4
    else:
        ends = [0, 1, size - 1, size + 1, len(content), 2**31, 2**63, 2**64 - 1, 2**64 - size]
        at, size = rng.choice([at, *ends]), rng.choice([size, *ends])
    return b"".join(part + _crc32c(part) for part in (data, struct.pack("<2Q", at, size)))


def _crc32c(data: bytes) -> bytes:
    found = 0xFFFFFFFF
    for byte in data:
        found = found >> 8 ^ _CRC32C[(found ^ byte) & 0xFF]
    return (found ^ 0xFFFFFFFF).to_bytes(4, "little")


def _shifted(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC32C = [_shifted(byte) for byte in range(256)]
