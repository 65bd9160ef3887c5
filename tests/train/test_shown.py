"""A batch as text: which tokens are trained is seen, on a terminal and through a pipe."""

import json

import numpy as np
import pytest
from small_tokenizers import sentencepiece_file
from token_files import token_folder, tokenizer_file

from llama_jax.cli import main
from llama_jax.tokenizer import load_tokenizer
from llama_jax.train.dialog_tokens import tokenize_dialogs
from llama_jax.train.rows import Batch
from llama_jax.train.shown import pieces_of


def test_pieces_are_text_by_whether_it_is_trained(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(sentencepiece_file())
    tokenizer = load_tokenizer(file)
    ids = tokenizer.encode("once there was a llama", bos=True, eos=True)
    tokens, targets = (np.array([[*part, 0, 0]], np.int32) for part in (ids[:-1], ids[1:]))
    weights = np.zeros(tokens.shape, np.float32)
    weights[0, 3 : len(ids) - 1] = 1
    pieces = pieces_of(Batch(tokens, targets, tokens, weights), 0, tokenizer)
    assert [piece.trained for piece in pieces] == [False, True]
    assert "".join(piece.text for piece in pieces) == "<s> once there was a llama</s>"
    assert pieces[1].text == tokenizer.decode(ids[:-1])[len(tokenizer.decode(ids[:4])) :] + "</s>"


@pytest.fixture
def dialogs(tmp_path):
    file = tmp_path / "chats.jsonl"
    lines = [
        {"prompt": "the llama was", "completion": "there once"},
        {"prompt": "once", "completion": "x"},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines * 4))
    tokenizer = tokenizer_file(tmp_path / "t", "tiktoken")
    tokenize_dialogs([file], tokenizer, tmp_path / "tokens", context=64, validation_every=0)
    return tmp_path / "tokens"


RECIPE = 'steps = 10\n[model]\nconfig = "tiny"\n[optimizer]\nwarmup = 1\n[step]\nbatch = 2\n'


def test_the_mask_of_dialogs_is_printed_without_colour_too(dialogs, tmp_path, capsys):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE + "context = 64\n")
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--show-mask", "--set", f"tokens={dialogs}"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "{+there once<|eot_id|>+}" in said
    assert "the llama was" in said
    assert "{+the llama was" not in said
    assert "\x1b" not in said


def test_all_of_a_text_is_trained(tmp_path, capsys):
    file = tmp_path / "recipe.toml"
    file.write_text(RECIPE + "context = 16\n")
    with pytest.raises(SystemExit):
        main(["train", str(file), "--show-mask", "--set", f"tokens={token_folder(tmp_path)}"])
    assert "row 1: 16 of 16 tokens trained" in capsys.readouterr().out
