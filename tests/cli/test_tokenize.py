"""`llama-jax train-tokenizer` and `llama-jax tokenize`."""

import re

import pytest
from helpers import run

from llama_jax.tokenizer import load_tokenizer
from llama_jax.train.token_folder import open_tokens

STORY = "Once upon a time there was a llama, number {n}.\nIt went on.\n"


@pytest.fixture
def corpus(tmp_path):
    file = tmp_path / "stories.txt"
    file.write_text("<|endoftext|>\n".join(STORY.format(n=n) for n in range(50)))
    return file


def test_text_becomes_a_tokenizer_and_tokens(tmp_path, corpus):
    model, out = tmp_path / "own/tokenizer.model", tmp_path / "tokens"
    apart = "--separator", r"<|endoftext|>\n"
    done = run("train-tokenizer", corpus, "--vocab-size", 300, "--out", model, *apart)
    assert done.exit_code == 0, done.output
    assert "300 tokens, from all lines" in done.stdout
    done = run(
        "tokenize", corpus, "--tokenizer", model, "--out", out, "--validation-every", 10, *apart
    )
    assert done.exit_code == 0, done.output
    assert re.search(r"train  [\d,]+ tokens of 45 documents", done.stdout)
    assert re.search(r"validation  [\d,]+ tokens of 5 documents", done.stdout)
    tokenizer = load_tokenizer(model)
    folder = open_tokens(out, tokenizer=tokenizer)
    first = folder.train.read(0, int(folder.train.starts[1]))
    assert tokenizer.decode(first) == STORY.format(n=0).removesuffix("\n")


@pytest.mark.parametrize(
    ("content", "arguments", "error"),
    [
        (b"a\n\xff", [], "stories.txt, line 2: byte 0xFF is not UTF-8"),
        (b"", [], "the files hold no document"),
        (b"a", [], "the validation split is empty"),
        (b"a", ["--separator", ""], "--separator '' separates nothing"),
        (b"a", ["--validation", "absent.txt"], "absent.txt: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, shared, content, arguments, error):
    (tmp_path / "stories.txt").write_bytes(content)
    tokenizer = shared / "models/stories260K-meta"
    out = tmp_path / "out"
    done = run(
        "tokenize", tmp_path / "stories.txt", "--tokenizer", tokenizer, "--out", out, *arguments
    )
    assert done.exit_code == (2 if "--separator" in arguments else 1)  # which was typed
    assert error in done.stderr
    assert done.stderr.strip().count("\n") == 0
    assert not out.exists()
