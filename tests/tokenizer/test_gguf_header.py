"""The head of a GGUF file: texts of any length, whichever block of the file they lie in."""

import pytest
from gguf_file import gguf_bytes, small_model

from llama_jax.tokenizer import gguf_header


@pytest.mark.parametrize("block", [1, 8, 9, 40, 2**20])
def test_texts_are_read_across_blocks(tmp_path, monkeypatch, block):
    monkeypatch.setattr(gguf_header, "BLOCK", block)
    metadata, tensors = small_model()
    several = {"a": ["", "é", "llama " * 20, "x"] * 5, "b": ["end"]}
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_bytes({**metadata, **several}, tensors))
    found = gguf_header.read_header(file).metadata
    assert {key: found[key] for key in several} == several


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.replace(b"third", b"thi\xffd"), "'a' is not UTF-8"),
        (lambda said: said[: said.index(b"third") - 3], "is cut off in 'a'"),
        (lambda said: said[: said.index(b"third") + 3], "claims a text of 5 bytes"),
    ],
)
def test_what_is_wrong_with_one_of_many_texts_is_said(tmp_path, change, message):
    file = tmp_path / "model.gguf"
    said = gguf_bytes({"a": ["first", "second", "third"]}, {})
    file.write_bytes(change(said[: said.index(b"third") + 5]))
    with pytest.raises(ValueError, match=message):
        gguf_header.read_header(file)
