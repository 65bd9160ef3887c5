"""A tokenizer.json that would make a text endless is refused; the models' own are not."""

import base64
import json

import pytest

import llama_jax
from llama_jax.tokenizer import hf_bounds

SPACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
LLAMA_2 = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACE]}
LLAMA_3 = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Split", "pattern": {"Regex": "a+"}}, {"type": "ByteLevel"}],
}
BACK = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
LLAMA_2_DECODER = {
    "type": "Sequence",
    "decoders": [BACK, *({"type": kind} for kind in ("ByteFallback", "Fuse", "Strip"))],
}


def charsmap(*texts):
    trie = bytes(1024)
    table = len(trie).to_bytes(4, "little") + trie + b"\0".join(texts) + b"\0"
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(table).decode()}


def check_growth(said):
    hf_bounds.read_bounded_json(json.dumps(said).encode())


def test_the_models_own_chains_pass():
    check_growth({"normalizer": LLAMA_2, "pre_tokenizer": None, "decoder": LLAMA_2_DECODER})
    check_growth({"normalizer": None, "pre_tokenizer": LLAMA_3, "decoder": {"type": "ByteLevel"}})
    check_growth({"normalizer": charsmap("صلى الله عليه وسلم".encode(), b"fi")})
    many_forms = [{"type": form} for form in ("NFD", "StripAccents", "Lowercase", "NFKC")]
    check_growth({"normalizer": {"type": "Sequence", "normalizers": many_forms}})


def replace(pattern, content):
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLES = [
    replace({"String": "a"}, "aa"),
    replace({"Regex": "a"}, "aa"),
    replace({"String": ""}, "a"),
    {"type": "Prepend", "prepend": "aa"},
    {"type": "ByteLevel"},
    {"type": "Metaspace"},
    charsmap(b"a" * 96),
]


@pytest.mark.parametrize("step", DOUBLES)
def test_a_chain_that_doubles_is_refused(step):
    check_growth({"normalizer": step})
    chain = {"type": "Sequence", "normalizers": [step] * 7}
    for normalizer in (chain, {"type": "Sequence", "normalizers": [{"normalizers": [chain]}]}):
        with pytest.raises(ValueError, match="its normalizer makes a text over 64 times as long"):
            check_growth({"normalizer": normalizer})


def test_many_steps_are_refused_as_they_are_counted():
    chain = {"decoders": [{"type": "Fuse"}] * 65}
    with pytest.raises(ValueError, match=r"its decoder .* has over 64 steps"):
        check_growth({"decoder": chain})


@pytest.mark.parametrize(("pieces", "ids"), [(2, 600), (1025, 1), (40, 40)])
def test_a_template_that_puts_many_tokens_around_a_text_is_refused(pieces, ids):
    def template(pieces, ids):
        return {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}] * pieces,
            "pair": [],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1] * ids, "tokens": ["<s>"] * ids}},
        }

    check_growth({"post_processor": template(2, 2)})
    for processor in (template(pieces, ids), {"processors": [template(20, 20)] * 3}):
        with pytest.raises(ValueError, match="its post_processor puts over 1,024 tokens around"):
            check_growth({"post_processor": processor})


def added(count, length):
    return {"added_tokens": [{"id": n, "content": f"{n:0{length}}"} for n in range(count)]}


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "a" * 4097}}}, "4,097 charact"),
        (
            {"normalizer": replace({"String": "a" * 4097}, "")},
            "4,097 characters, and at most 4,096",
        ),
        ({"model": {"vocab": dict.fromkeys(map(str, range(300_001)), 0)}}, "has 300,001 tokens"),
        ({"model": {"vocab": {}, "merges": ["a b"] * 600_001}}, "has 600,001 merges"),
        (added(80_001, 5), "it adds 80,001 tokens of 400,005 characters, and at most 80,000"),
        (added(1, 750_001), "it adds 1 token of 750,001 characters, and"),
        ({"x": [{"": 0}] * 1_000_000}, "1,000,002 objects and lists, and at most 1,000,000"),
        ({"x": [[0]] * 999_999}, "1,000,001 objects and lists"),
    ],
)
def test_what_would_take_the_library_long_is_refused(said, message):
    with pytest.raises(ValueError, match=message):
        check_growth(said)


def test_as_much_as_models_have_is_read():
    check_growth(added(66_000, 10))
    check_growth({"model": {"vocab": dict.fromkeys(map(str, range(256_000)), 0), "merges": []}})
    check_growth({"model": {"vocab": {}, "merges": [["a", "b"]] * 600_000}})
    check_growth({"pre_tokenizer": LLAMA_3, "added_tokens": "none", "model": []})


def test_a_tokenizer_whose_normalizer_doubles_is_not_opened(shared, tmp_path):
    folder = shared / "models/tinystories656K-hf"
    said = json.loads((folder / "tokenizer.json").read_text())
    doubles = [replace({"String": "a"}, "aa")] * 40
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text((folder / name).read_text())
    said["normalizer"] = {"type": "Sequence", "normalizers": doubles}
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"tokenizer\.json .*its normalizer makes a text over 64"):
        llama_jax.load_tokenizer(tmp_path)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_file_beside_a_tokenizer_of_too_many_lists_is_named(shared, tmp_path, name):
    folder = shared / "models/tinystories656K-hf"
    for file in ("tokenizer.json", "config.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    (tmp_path / name).write_text('{"x": [' + "[]," * 1_000_000 + "0]}")
    with pytest.raises(ValueError, match=rf"{name} has 1,000,002 objects and lists"):
        llama_jax.load_tokenizer(tmp_path)
