"""What foreign code raises comes in as one short line, and tokenizers go to other processes."""

import json
import pickle

import pytest
from dialog_kinds import KINDS, byte_folder
from small_tokenizers import sentencepiece_file, tiktoken_file

from llama_jax.tokenizer import SentencePieceTokenizer, TiktokenTokenizer, load_tokenizer
from llama_jax.tokenizer.foreign import MAX_ERROR, MAX_SAID, in_short, in_words, plain
from llama_jax.tokenizer.hf_decoder import spelling_of


class Panic(BaseException):
    """As pyo3's: no Exception."""


class Mute(Exception):
    def __str__(self):
        raise RuntimeError


@pytest.mark.parametrize("error", [Panic("oh"), MemoryError(), RecursionError("deep"), Mute()])
def test_whatever_foreign_code_raises_is_a_value_error(error):
    with (
        pytest.raises(ValueError, match=r"^it failed: \w+, so mend it$"),
        in_words("it failed: ", ", so mend it"),
    ):
        raise error


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, OSError])
def test_what_ends_a_process_passes_and_what_is_asked_to(end):
    with pytest.raises(end), in_words("it failed: ", but=(OSError,)):
        raise end


@pytest.mark.parametrize("text", ["a" * 10**6, "\x1b" * 10**6, "a\nb\x00\u202e", "\ud800" * 99])
def test_a_strangers_words_are_short_and_plain(text):
    said = plain(ValueError(text))
    assert len(said) <= MAX_SAID
    assert said.isprintable()
    assert plain("as it is: ümlaut 🦙") == "as it is: ümlaut 🦙"


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken", "huggingface"])
def test_a_pickled_tokenizer_is_the_same_one(tmp_path, kind):
    made = {
        "sentencepiece": lambda: SentencePieceTokenizer(sentencepiece_file()),
        "tiktoken": lambda: TiktokenTokenizer(tiktoken_file()),
        "huggingface": lambda: load_tokenizer(byte_folder(tmp_path, KINDS["plain"][0])),
    }[kind]()
    made.encode("a</s>b", bos=True, eos=False)  # what it keeps for texts is made by now
    other = pickle.loads(pickle.dumps(made))
    dialog = [{"role": "user", "content": "there was a llama</s>"}]
    assert other.encode_dialog(dialog) == made.encode_dialog(dialog)
    text = "Once </s> upon"
    assert other.encode(text, bos=True, eos=True) == made.encode(text, bos=True, eos=True)
    assert (other.special, other.notes) == (made.special, made.notes)


def test_a_templates_error_names_its_file(tmp_path):
    tokenizer = load_tokenizer(byte_folder(tmp_path, "{{ nothing.here }}"))
    with pytest.raises(ValueError, match=r"is undefined.*that of .*tokenizer_config\.json$"):
        tokenizer.encode_dialog([{"role": "user", "content": "a"}])


def test_a_tokenizers_error_does_not_repeat_its_file(tmp_path):
    folder = byte_folder(tmp_path, "")
    said = json.loads((folder / "tokenizer.json").read_text())
    said["model"]["type"] = "x" * 10**6
    (folder / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"tokenizer\.json is a broken tokenizer") as refused:
        load_tokenizer(folder)
    assert len(str(refused.value)) <= 500 + len(str(folder))


def test_a_decoder_that_doubles_is_refused():
    doubling = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    spell = spelling_of({"type": "Sequence", "decoders": [doubling] * 60})
    with pytest.raises(ValueError, match="a token of over 1,048,576"):
        spell("a", False)


def test_our_own_errors_quote_no_whole_file_and_no_control_characters():
    @in_short()
    def fail(said):
        raise ValueError(said)

    for said in ("a" * 10**5, "r\x00=2 is not supported"):
        with pytest.raises(ValueError, match=r"^[ -~]+$") as refused:
            fail(said)
        assert len(str(refused.value)) <= MAX_ERROR
