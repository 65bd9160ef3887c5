"""Small models that can be talked with, or not."""

import json

import pytest
import tokenizers
from hf_folder import write_folder

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"


def write_tokenizer(folder, template=None):
    """A tokenizer.json whose ids are bytes, 256 for <s> and 257 for </s>."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[])
    made = tokenizers.Tokenizer(bpe)
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(["<s>", "</s>"])
    made.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="session")
def talker(tmp_path_factory):
    """A random model with a tokenizer and a chat template; its context has 256 tokens."""
    folder = write_folder(
        tmp_path_factory.mktemp("talker") / "model", vocab_size=258, max_position_embeddings=256
    )
    write_tokenizer(folder, TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def writer(tmp_path_factory):
    """The same without a chat template."""
    folder = write_folder(
        tmp_path_factory.mktemp("writer") / "model", vocab_size=258, max_position_embeddings=256
    )
    write_tokenizer(folder)
    return folder
