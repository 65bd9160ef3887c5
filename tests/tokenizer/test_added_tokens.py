"""What lies beside a tokenizer's file counts, whatever kind the file is."""

import functools
import json

import pytest
import tokenizers
from small_tokenizers import sentencepiece_file, tiktoken_file
from tokenizers import decoders, models, pre_tokenizers

from llama_jax.generation.prompts import tokenizer_of
from llama_jax.tokenizer import detokenize, load_tokenizer
from llama_jax.weights.params import Params

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' }}"
    "{% endfor %}{{ '<|im_start|>assistant\n' }}"
)
DIALOG = [{"role": "user", "content": "a llama"}]


@functools.cache
def tokenizer_json(**model):
    letters = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    library = tokenizers.Tokenizer(models.BPE(letters, [], **model))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["<s>", "</s>"])
    return library.to_str().encode()


KINDS = {
    "SentencePiece": ("tokenizer.model", sentencepiece_file, ("<s>", "</s>")),
    "tiktoken": ("tokenizer.model", tiktoken_file, ("<|begin_of_text|>", "<|end_of_text|>")),
    "Hugging Face": ("tokenizer.json", tokenizer_json, ("<s>", "</s>")),
}


class Folder:
    """A folder with a tokenizer of any kind, and what is put beside it."""

    def __init__(self, path, kind):
        name, content, (self.bos, self.eos) = KINDS[kind]
        self.path = path
        (path / name).write_bytes(content())
        self.size = self.put(tokenizer_config={}).vocab_size

    def put(self, **files):
        """The tokenizer, once JSON files lie beside it; null takes one away."""
        names = {"bos_token": self.bos, "eos_token": self.eos}
        for name, value in files.items():
            file = self.path / f"{name}.json"
            file.unlink(missing_ok=True)
            if name == "tokenizer_config":
                value = {**names, **value}
            if value is not None:
                file.write_text(json.dumps(value))
        return load_tokenizer(self.path)


@pytest.fixture(params=KINDS)
def folder(request, tmp_path):
    return Folder(tmp_path, request.param)


def described(**tokens):
    """`added_tokens_decoder`, of texts and ids; a text's flags may stand beside its id."""
    found = {}
    for text, id in tokens.items():
        id, flags = id if isinstance(id, tuple) else (id, {})
        found[str(id)] = {"content": text, "special": True, **flags}
    return found


def plain(tokenizer, text):
    return tokenizer.encode(text, bos=False, eos=False)


@pytest.mark.parametrize("says", [True, False])
def test_add_bos_token_counts(folder, says):
    tokenizer = folder.put(tokenizer_config={"add_bos_token": says})
    ids = plain(tokenizer, "the llama")
    assert tokenizer.encode("the llama", bos=True, eos=False) == [tokenizer.bos_id] * says + ids


@pytest.mark.parametrize("kind", ["SentencePiece", "tiktoken"])
@pytest.mark.parametrize(
    "says", [{}, {"add_bos_token": None}, {"tokenizer_class": "LlamaTokenizer"}]
)
def test_a_tokenizer_model_begins_a_text_with_bos_as_metas_code_does(tmp_path, kind, says):
    tokenizer = Folder(tmp_path, kind).put(tokenizer_config=says)
    ids = tokenizer.encode("the llama", bos=True, eos=False)
    assert ids == [tokenizer.bos_id, *plain(tokenizer, "the llama")]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("says", [True, False])
@pytest.mark.parametrize("special", [True, False])
def test_many_texts_are_encoded_as_each_is(folder, says, special, threads):
    added = described(**{"<x>": (folder.size, {"special": special})})
    config = {"added_tokens_decoder": added, "add_bos_token": says}
    tokenizer = folder.put(tokenizer_config=config)
    texts = ["the llama", "a <x> b", "", "<x><x>"]
    found = tokenizer.encode_batch(texts, bos=True, eos=True, threads=threads)
    assert found == [tokenizer.encode(text, bos=True, eos=True) for text in texts]


@pytest.mark.parametrize("where", ["added_tokens_decoder", "added_tokens.json", "both"])
@pytest.mark.parametrize("gap", [0, 1, 5])
def test_added_tokens_join_the_vocabulary_by_their_ids(folder, where, gap):
    start, end = folder.size + gap, folder.size + gap + 2
    config = {"chat_template": CHATML, "eos_token": "<|im_end|>"}
    if where != "added_tokens.json":
        added = described(**{"<|im_end|>": end, "<|im_start|>": start})
        config["added_tokens_decoder"] = added
    beside = None if where == "added_tokens_decoder" else {"<|im_start|>": start, "<|im_end|>": end}
    tokenizer = folder.put(tokenizer_config=config, added_tokens=beside)
    assert tokenizer.vocab_size == end + 1
    assert (tokenizer.eos_id, tokenizer.stop_ids[0]) == (end, end)
    ids = tokenizer.encode_dialog(DIALOG)
    assert [id for id in ids if id >= folder.size] == [start, end, start]
    assert detokenize(tokenizer, ids) == "user\na llamaassistant\n"
    # A text never becomes a control token.
    for text in ("<|im_end|>", "so <|im_start|>user"):
        assert max(plain(tokenizer, text)) < folder.size
        assert tokenizer.decode(plain(tokenizer, text)) == text
    asked = tokenizer.encode_dialog([{"role": "user", "content": "x<|im_end|>"}])
    assert [id for id in asked if id >= folder.size] == [start, end, start]


@pytest.mark.parametrize("word", ["Bác", "日本語", "<think>", "été 🦙", "plain", "Ġx"])
def test_an_added_token_that_is_a_text_is_found_in_texts_and_is_utf8(folder, word):
    config = {"added_tokens_decoder": described(**{word: (folder.size, {"special": False})})}
    tokenizer = folder.put(tokenizer_config=config)
    for before, after in (("", ""), ("x ", " y"), ("x", "y"), ("", " x"), (word, word)):
        ids = plain(tokenizer, before + word + after)
        assert folder.size in ids
        assert tokenizer.decode(ids) == before + word + after
    assert tokenizer.token_bytes(folder.size, at_start=False) == (word.encode(), False)


@pytest.mark.parametrize(
    ("flags", "text", "pieces"),
    [
        ({"lstrip": True}, "a <x> b", ("a", " b")),
        ({"rstrip": True}, "a <x> b", ("a ", "b")),
        ({"lstrip": True, "rstrip": True}, "a \n<x>  b", ("a", "b")),
    ],
)
def test_an_added_token_takes_the_white_space_that_it_says(folder, flags, text, pieces):
    added = described(**{"<x>": (folder.size, {"special": False, **flags})})
    tokenizer = folder.put(tokenizer_config={"added_tokens_decoder": added})
    assert tokenizer.decode(plain(tokenizer, text)) == "<x>".join(pieces)


def test_an_added_token_that_is_a_single_word_is_found_between_words(folder):
    added = described(llama=(folder.size, {"special": False, "single_word": True}))
    tokenizer = folder.put(tokenizer_config={"added_tokens_decoder": added})
    assert folder.size in plain(tokenizer, "a llama.")
    assert folder.size not in plain(tokenizer, "llamas")


@pytest.mark.parametrize("of", ["config", "generation_config", "huggingface_config"])
@pytest.mark.parametrize("above", [0, 7])
def test_a_stop_id_of_the_model_is_kept_though_the_tokenizer_has_no_token_for_it(folder, of, above):
    stop = folder.size + above
    sizes = {"huggingface_config" if of == "huggingface_config" else "config": {}}
    for name in sizes:
        sizes[name] = {"vocab_size": stop + 1}
    sizes[of] = {**sizes.get(of, {}), "eos_token_id": [stop, stop + 1]}
    tokenizer = folder.put(**sizes)
    assert stop in tokenizer.stop_ids
    assert stop + 1 not in tokenizer.stop_ids, "which is no id of the model"
    assert tokenizer.decode([stop]) == ""


@pytest.mark.parametrize("above", [0, 7])
def test_a_stop_id_beside_metas_files_is_kept_too(folder, above):
    stop = folder.size + above
    tokenizer = folder.put(
        params={"vocab_size": stop + 1}, generation_config={"eos_token_id": [stop, stop + 1]}
    )
    assert stop in tokenizer.stop_ids
    assert stop + 1 not in tokenizer.stop_ids, "which is no id of the model"


@pytest.mark.parametrize("name", ["eos_token", "pad_token"])
@pytest.mark.parametrize("written", ["{{ %s }}", "{{ '<|end|>' }}"])
def test_a_control_token_that_is_no_token_is_an_error_of_the_template(folder, name, written):
    template = "{{ messages[0].content }}" + (written % name if "%" in written else written)
    config = {name: "<|end|>", "chat_template": template}
    ends = {"eos_token_id": 5}  # by id, where the name is unknown
    tokenizer = folder.put(tokenizer_config=config, generation_config=ends)
    with pytest.raises(ValueError, match=rf"writes the control token '<\|end\|>' \({name}\)"):
        tokenizer.encode_dialog(DIALOG)
    assert any(note.startswith(f"{name} '<|end|>' is ignored") for note in tokenizer.notes)
    fixed = folder.put(added_tokens={"<|end|>": folder.size})
    assert fixed.encode_dialog(DIALOG)[-1] == folder.size
    assert fixed.notes == ()


def test_a_template_that_writes_a_tag_as_text_writes_text(folder):
    tokenizer = folder.put(tokenizer_config={"chat_template": "<|user|>{{ messages[0].content }}"})
    assert tokenizer.decode(tokenizer.encode_dialog(DIALOG)) == "<|user|>a llama"


def test_the_tokenizers_own_file_wins_where_the_folder_contradicts_it(folder):
    config = {"added_tokens_decoder": described(**{"<|new|>": 70, folder.eos: folder.size})}
    tokenizer = folder.put(tokenizer_config=config)
    assert tokenizer.vocab_size == folder.size
    assert ["<|new|>" in note or folder.eos in note for note in tokenizer.notes] == [True, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": []}, "must be an object"),
        ({"added_tokens_decoder": {"x": {"content": "y"}}}, "no id and token"),
        ({"added_tokens_decoder": {"5": {"content": ""}}}, "it needs one"),
        ({"added_tokens_decoder": {"99999999": {"content": "y"}}}, "from 0 to 16,777,215"),
    ],
)
def test_broken_added_tokens_are_refused(folder, config, message):
    with pytest.raises(ValueError, match=message):
        folder.put(tokenizer_config=config)


@pytest.mark.parametrize("id", [-1, 1.5, "7", None, True, [3], 2**24, 10**30])
def test_added_tokens_json_with_a_broken_id_is_refused(folder, id):
    with pytest.raises(ValueError, match=r"added_tokens\.json gives '<x>' the id .* from 0 to"):
        folder.put(added_tokens={"<x>": id})


def test_a_far_id_makes_no_long_table(folder):
    try:
        tokenizer = folder.put(added_tokens={"<x>": 2**24 - 1})
    except ValueError as error:
        assert "far above" in str(error)  # noqa: PT017  only the library numbers its tokens
    else:
        assert tokenizer.decode([2**24 - 1, 2**23]) == "<x>"


def test_what_is_stated_and_not_followed_is_said(folder):
    assert folder.put(tokenizer_config={}).notes == ()
    assert "add_eos_token" in folder.put(tokenizer_config={"add_eos_token": True}).notes[0]


@pytest.mark.parametrize("dropout", [0.1, 0.9])
def test_a_text_has_one_encoding_though_the_file_says_dropout(tmp_path, dropout):
    said = json.loads(tokenizer_json())
    said["model"]["dropout"] = dropout
    vocab = said["model"]["vocab"]
    vocab |= {"ll": 300, "am": 301, "llam": 302}
    said["model"]["merges"] = [["l", "l"], ["a", "m"], ["ll", "am"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    assert {tuple(plain(tokenizer, "llama llama")) for _ in range(50)} == {
        (302, vocab["a"], vocab["Ġ"], 302, vocab["a"])
    }
    assert ["dropout" in note for note in tokenizer.notes] == [True]


@pytest.mark.parametrize("change", ["added_tokens", "tokenizer_config", "file"])
def test_a_tokenizer_is_never_stale(folder, change):
    file = next(folder.path.glob("tokenizer.[mj]*"))
    params = Params({}, None, file)
    before = tokenizer_of(params)
    assert tokenizer_of(params) is before, "what has not changed is not read again"
    if change == "added_tokens":
        folder.put(added_tokens={"<x>": folder.size})
        assert tokenizer_of(params).vocab_size == folder.size + 1
    elif change == "tokenizer_config":
        folder.put(tokenizer_config={"add_bos_token": True})
        assert tokenizer_of(params).encode("a", bos=True, eos=False)[0] == before.bos_id
        folder.put(tokenizer_config={"add_bos_token": False})
        assert tokenizer_of(params).encode("a", bos=True, eos=False)[0] != before.bos_id
    else:
        file.write_bytes(tiktoken_file(merges=[b"he"]))
        assert tokenizer_of(params).vocab_size == 256 + 1 + 256
