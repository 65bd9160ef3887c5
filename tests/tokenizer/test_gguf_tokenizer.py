"""The tokenizer of a GGUF file encodes as the one that the file was made from."""

import json

import numpy as np
import pytest
from gguf_file import (
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    bpe_metadata,
    gguf_bytes,
    sentencepiece_metadata,
)
from helpers import SHARED
from small_tokenizers import FILES, needs_shared, sentencepiece_file, tiktoken_file

from llama_jax.tokenizer import load_tokenizer, tokenizer_files
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import TiktokenTokenizer

TEXTS = [
    "the llama was there",
    "  two  spaces, a\ttab\n\nand lines \r\n end ",
    "Ça va? Größe 日本語 🦙 e\u0301 \u200d",
    "a1 22 333 4444 it's THEY'LL",
    "<s> </s> <|eot_id|> <|begin_of_text|> <unk> <0x41>",
    "",
]
TEMPLATE = "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def written(folder, metadata):
    file = folder / "model.gguf"
    file.write_bytes(gguf_bytes({"general.architecture": "llama", **metadata}, {}))
    return file


def same(ours, original, texts):
    for text in texts:
        ids = original.encode(text, bos=True, eos=False)
        assert ours.encode(text, bos=True, eos=False) == ids, text
        assert ours.decode(ids) == original.decode(ids)


@pytest.mark.parametrize("name", ["tiny-sentencepiece", "tiny-no-prefix"])
def test_a_sentencepiece_vocabulary_encodes_as_its_original(tmp_path, name):
    file = sentencepiece_file(name)
    changes = {"ggml.add_space_prefix": name != "tiny-no-prefix"}
    ours = load_tokenizer(written(tmp_path, sentencepiece_metadata(file, **changes)))
    original = SentencePieceTokenizer(file)
    same(ours, original, TEXTS)
    assert ours.special == original.special
    assert (ours.bos_id, ours.eos_id) == (original.bos_id, original.eos_id)
    dialog = [{"role": "user", "content": "the llama <s>"}]
    assert ours.encode_dialog(dialog) == original.encode_dialog(dialog)


def test_a_bpe_vocabulary_encodes_as_its_original(tmp_path):
    file = tiktoken_file()
    ours, original = load_tokenizer(written(tmp_path, bpe_metadata(file))), TiktokenTokenizer(file)
    same(ours, original, TEXTS)
    assert ours.special == original.special
    assert ours.bos_id == original.bos_id
    assert ours.stop_ids == (ours.special["<|eot_id|>"],)


@needs_shared
@pytest.mark.parametrize("name", ["llama2", pytest.param("llama3", marks=pytest.mark.slow)])
def test_real_vocabularies_encode_every_text_as_their_originals(tmp_path, name):
    metadata = sentencepiece_metadata if name == "llama2" else bpe_metadata
    ours = load_tokenizer(written(tmp_path, metadata(FILES[name].read_bytes())))
    stories = (SHARED / "corpora/tinystories_2M.txt").read_text().split("<|endoftext|>")[:1200]
    plays = (SHARED / "corpora/tinyshakespeare.txt").read_text()
    texts = [*TEXTS, *stories, *(plays[at : at + 500] for at in range(0, 200_000, 500))]
    original = load_tokenizer(FILES[name])
    ids = original.encode_batch(texts, bos=True, eos=False, threads=2)
    assert len(texts) > 1600
    assert ours.encode_batch(texts, bos=True, eos=False, threads=2) == ids
    for text, those in zip(texts[:100], ids, strict=False):
        assert ours.decode(those) == text


def test_digits_stand_alone_where_the_file_says_smollm(tmp_path):
    merges = (b"12", b" 1", b"it", b"'s")
    ours = load_tokenizer(written(tmp_path, bpe_metadata(tiktoken_file(merges), "smollm")))
    assert ours.encode("12", bos=False, eos=False) == [ord("1"), ord("2")]
    assert ours.encode("it's", bos=False, eos=False) == [258, 259]
    gpt2 = load_tokenizer(written(tmp_path, bpe_metadata(tiktoken_file(merges), "default")))
    assert gpt2.encode("12", bos=False, eos=False) == [256]
    assert "GPT-2's" in gpt2.notes[0]


def test_what_the_template_writes_is_a_control_token_and_no_text_is_one(tmp_path):
    metadata = bpe_metadata(tiktoken_file(), **{"chat_template": TEMPLATE, "ggml.eot_token_id": 5})
    tokens, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    tokens[-3:], kinds[-3:] = ["<|im_start|>", "<|im_end|>", "<think>"], [USER_DEFINED] * 3
    ours = load_tokenizer(written(tmp_path, metadata))
    start, end, think = range(len(tokens) - 3, len(tokens))
    spoken = ours.encode("hi <think>", bos=False, eos=False)
    assert spoken[-1] == think
    dialog = ours.encode_dialog([{"role": "user", "content": "hi"}])
    assert dialog == [ours.bos_id, start, ord("h"), ord("i"), end]
    assert start not in ours.encode("<|im_start|>", bos=False, eos=False)
    assert ours.stop_ids == (ours.special["<|eot_id|>"], 5)
    assert ours.turn_end([{"role": "user", "content": "hi"}]) == ("<|im_end|>", end)


@pytest.mark.parametrize("kind", ["sentencepiece", "bpe"])
def test_the_files_that_a_conversion_writes_are_the_same_tokenizer(tmp_path, kind):
    if kind == "bpe":
        metadata = bpe_metadata(tiktoken_file(), **{"chat_template": TEMPLATE})
    else:
        metadata = sentencepiece_metadata(sentencepiece_file(), **{"ggml.add_bos_token": False})
    source = written(tmp_path, metadata)
    made = tokenizer_files(source)
    for name, content in made.items():
        (tmp_path / name).write_bytes(content)
    direct, copied = load_tokenizer(source), load_tokenizer(tmp_path / next(iter(made)))
    same(copied, direct, TEXTS)
    assert copied.stop_ids == direct.stop_ids
    assert copied.special == direct.special
    dialog = [{"role": "user", "content": "the llama"}]
    assert copied.encode_dialog(dialog) == direct.encode_dialog(dialog)
    assert json.loads(made["tokenizer_config.json"])["add_bos_token"] is (kind == "bpe")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml.pre": "tekken"}, r"tokenizer\.ggml\.pre is 'tekken', and llama-bpe.* are read"),
        ({"ggml.model": "bert"}, r"tokenizer\.ggml\.model is 'bert', and llama .* are read"),
        ({"ggml.eos_token_id": 99999}, r"eos_token_id=99999 must be an id of its 518 tokens"),
        ({"ggml.merges": "no"}, r"merges is no list"),
        ({"ggml.token_type": [1, 2]}, r"token_type must have a number for each of its 518"),
        ({"ggml.tokens": ["a", "a"]}, r"has a token twice"),
        ({"ggml.merges": ["x y z"]}, "is broken"),
        ({"ggml.add_bos_token": 1}, r"add_bos_token=1 must be true or false"),
    ],
)
def test_a_vocabulary_that_is_not_read_is_told(tmp_path, changes, message):
    file = written(tmp_path, bpe_metadata(tiktoken_file(), **changes))
    with pytest.raises(ValueError, match=message) as caught:
        load_tokenizer(file)
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) < 700


def test_a_sentencepiece_vocabulary_needs_a_token_for_the_unknown(tmp_path):
    metadata = sentencepiece_metadata(sentencepiece_file())
    kinds = np.array(metadata["tokenizer.ggml.token_type"])
    metadata["tokenizer.ggml.token_type"] = np.where(kinds == UNKNOWN, NORMAL, kinds).tolist()
    with pytest.raises(ValueError, match="has 0 tokens for what is unknown"):
        load_tokenizer(written(tmp_path, metadata))
