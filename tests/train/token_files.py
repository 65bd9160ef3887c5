"""Small corpora and folders of tokens for the tests of this folder."""

from __future__ import annotations

import json

import numpy as np
from small_tokenizers import sentencepiece_file, tiktoken_file

from llama_jax.train.token_split import TokenSplit
from llama_jax.train.tokens import tokenize

STORIES = (
    "Once upon a time there was a llama.",
    " It spelled </s> and <|end_of_text|>, [INST] and <s>,\n\nand went on.",
    "Ünïcode: \N{LLAMA} \u4f60\u597d\t tabs  and  spaces \r\n",
    "x",
    "the llama was there " * 40,
)


def tokenizer_file(folder, kind="sentencepiece"):
    """A tokenizer's file in a folder of its own, which is made."""
    folder.mkdir(exist_ok=True)
    file = folder / "tokenizer.model"
    file.write_bytes(sentencepiece_file() if kind == "sentencepiece" else tiktoken_file())
    return file


def json_lines(file, texts, key="text"):
    file.write_text("".join(json.dumps({key: text}) + "\n" for text in texts), encoding="utf-8")
    return file


def token_folder(tmp_path, texts=STORIES * 8, kind="sentencepiece", **settings):
    """A folder of the tokens of some texts."""
    file = json_lines(tmp_path / "texts.jsonl", texts)
    settings = {"validation_every": 5, **settings}
    tokenize([file], tokenizer_file(tmp_path / kind, kind), tmp_path / "tokens", **settings)
    return tmp_path / "tokens"


def split_of_tokens(tokens, starts=(0,), shards=1):
    """A split of given tokens, in memory."""
    parts = np.array_split(np.asarray(tokens, np.uint16), shards)
    return TokenSplit("train", tuple(parts), np.asarray(starts, np.uint64), None, None)
