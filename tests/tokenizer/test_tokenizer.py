"""Both tokenizers against Meta's ids and SentencePiece itself, and everything at the edge."""

import codecs
import functools
import io
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import sentencepiece
from dialog_kinds import byte_folder
from helpers import ROOT, SHARED
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_tokenizers import (
    FILES,
    SENTENCEPIECES,
    needs_shared,
    references,
    sentencepiece_file,
    tiktoken_file,
    tokenizer_of,
)

from llama_jax.tokenizer import (
    Detokenizer,
    detokenize,
    find_tokenizer,
    load_tokenizer,
    tokenizer_files,
)
from llama_jax.tokenizer.sentencepiece import SentencePieceTokenizer
from llama_jax.tokenizer.tiktoken import (
    MAX_RUN,
    MAX_TEXT,
    SPECIAL,
    TiktokenTokenizer,
    parts_of_text,
)

JOINING = ("tiny-joining", "stories260K")
TINY = [*SENTENCEPIECES, "tiny-tiktoken"]
REAL_SENTENCEPIECES = [pytest.param(n, marks=needs_shared) for n in ("llama2", "stories260K")]
REAL = [pytest.param(name, marks=needs_shared) for name in FILES]

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
# SentencePiece spells a space as U+2581, so that character itself comes back as a space.
SPACED = TEXT.map(lambda text: text.replace("\u2581", "_"))
many = settings(
    deadline=None, derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.too_slow]
)

AWKWARD = [
    "",
    " ",
    "  two  spaces  ",
    "\n",
    "\t\r\n x",
    "\x00\x01\x7f",
    "naïve café",
    "北京 🦙 👩‍👩‍👧‍👦",
    "\ufeffbom \ufffd \u2028",
    "<s> </s> <unk> <0x41>",
    "<|begin_of_text|><|eot_id|>",
]


def processor_of(name):
    """SentencePiece itself, on the same file."""
    file = sentencepiece_file(name) if name in SENTENCEPIECES else FILES[name].read_bytes()
    return sentencepiece.SentencePieceProcessor(model_proto=file)


def streamed(tokenizer, ids, after=()):
    stream = Detokenizer(tokenizer, after)
    return [stream.push(id) for id in ids] + [stream.finish()]


@functools.cache
def bytes_of(name):
    """What each token adds to a text that has begun."""
    tokenizer = tokenizer_of(name)
    return [tokenizer.token_bytes(id, at_start=False)[0] for id in range(tokenizer.vocab_size)]


@functools.cache
def any_ids(name):
    """Any ids, often single bytes, where characters are cut and broken, or none, or a space."""
    short = [id for id, added in enumerate(bytes_of(name)) if len(added) < 2]
    blank = [id for id in short if not bytes_of(name)[id].strip()]
    anything = st.integers(0, tokenizer_of(name).vocab_size - 1)
    return st.lists(anything | st.sampled_from(short) | st.sampled_from(blank), max_size=40)


def coming_back(name, text):
    """What decoding makes of a text's ids: the text, but that some models join spaces."""
    return " ".join(filter(None, text.split(" "))) if name in JOINING else text


def reference_cases(name):
    cases = references()[name]["encode"] if SHARED.is_dir() else [{"text": "absent"}]
    return [pytest.param(case, marks=needs_shared, id=ascii(case["text"])[:30]) for case in cases]


# --- ids and text


@pytest.mark.parametrize("case", reference_cases("llama2"))
def test_llama2_ids_and_text_are_metas(case):
    tokenizer = tokenizer_of("llama2")
    assert tokenizer.encode(case["text"], bos=True, eos=False) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["decoded"]


@pytest.mark.parametrize("case", reference_cases("llama3"))
def test_llama3_ids_are_metas(case):
    tokenizer = tokenizer_of("llama3")
    assert tokenizer.encode(case["text"], bos=True, eos=False) == case["ids"]
    assert tokenizer.decode(case["ids"]) == case["text"]


@needs_shared
def test_llama3_special_tokens_are_metas():
    tokenizer, reference = tokenizer_of("llama3"), references()["llama3"]
    assert {name: tokenizer.special[name] for name in reference["special"]} == reference["special"]
    assert list(tokenizer.stop_ids) == reference["stop"]
    assert tokenizer.vocab_size == reference["n_words"]
    assert (tokenizer.bos_id, tokenizer.eos_id) == (128000, 128001)
    assert tokenizer.special["<|reserved_special_token_245|>"] == 128255


@needs_shared
def test_llama2_special_tokens_are_metas():
    tokenizer = tokenizer_of("llama2")
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.stop_ids) == (1, 2, (2,))
    assert tokenizer.vocab_size == 32000


@needs_shared
def test_the_text_stories260K_is_known_to_write_is_its_own_ids():
    golden = json.loads((FILES["stories260K"].parent / "golden.json").read_text())
    tokenizer, text = tokenizer_of("stories260K"), golden["greedy_text_200_steps_from_bos"]
    ids = tokenizer.encode(text, bos=True, eos=False)
    assert ids[1:17] == golden["first_16_greedy_ids_after_bos"]
    assert tokenizer.decode(ids) == text
    assert "".join(streamed(tokenizer, ids[1:], after=ids[:1])) == text


@pytest.mark.parametrize("name", [*TINY, *REAL])
@pytest.mark.parametrize("text", AWKWARD)
def test_awkward_text_comes_back(name, text):
    tokenizer = tokenizer_of(name)
    assert tokenizer.decode(tokenizer.encode(text, bos=False, eos=False)) == coming_back(name, text)


@pytest.mark.parametrize("name", [*TINY, *REAL])
@many
@given(text=SPACED)
def test_any_text_comes_back(name, text):
    tokenizer = tokenizer_of(name)
    assert tokenizer.decode(tokenizer.encode(text, bos=False, eos=False)) == coming_back(name, text)


@pytest.mark.parametrize("name", [*SENTENCEPIECES, *REAL_SENTENCEPIECES])
@many
@given(text=TEXT)
def test_our_decoding_is_sentencepieces(name, text):
    tokenizer, processor = tokenizer_of(name), processor_of(name)
    ids = tokenizer.encode(text, bos=True, eos=True)
    assert ids == [1, *processor.encode(text), 2]
    assert tokenizer.decode(ids) == processor.decode(ids)


@pytest.mark.parametrize("name", [*SENTENCEPIECES, *REAL_SENTENCEPIECES])
@many
@given(data=st.data())
def test_our_decoding_of_any_ids_but_bytes_is_sentencepieces(name, data):
    tokenizer, processor = tokenizer_of(name), processor_of(name)
    ids = [id for id in data.draw(any_ids(name)) if not processor.is_byte(id)]
    assert tokenizer.decode(ids) == processor.decode(ids)


@pytest.mark.parametrize("name", TINY)
def test_bos_and_eos_stand_around_the_text_where_asked_for(name):
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("a llama", bos=False, eos=False)
    first, last = tokenizer.bos_id, tokenizer.eos_id
    assert tokenizer.encode("a llama", bos=True, eos=True) == [first, *ids, last]
    assert tokenizer.encode("a llama", bos=True, eos=False) == [first, *ids]
    assert tokenizer.encode("", bos=True, eos=True) == [first, last]
    assert tokenizer.encode("", bos=False, eos=False) == []


@pytest.mark.parametrize("name", [*TINY, *REAL])
def test_text_that_spells_a_control_token_stays_text(name):
    tokenizer = tokenizer_of(name)
    controls = {tokenizer.bos_id, *tokenizer.stop_ids, *getattr(tokenizer, "special", {}).values()}
    for text in ["<s>", "</s>", "<unk>", *SPECIAL]:
        assert controls.isdisjoint(tokenizer.encode(text, bos=False, eos=False))


def test_a_small_tiktoken_files_special_ids_follow_its_ranks():
    tokenizer = tokenizer_of("tiny-tiktoken")
    assert tokenizer.vocab_size == 262 + 256
    assert (tokenizer.bos_id, tokenizer.eos_id) == (262, 263)
    assert tokenizer.stop_ids == (263, 270, 271)
    assert [tokenizer.special[name] for name in ("<|eom_id|>", "<|eot_id|>")] == [270, 271]
    assert list(tokenizer.special.values()) == list(range(262, 518))


@pytest.mark.parametrize("name", [*TINY, *REAL])
def test_a_control_token_is_no_part_of_a_text_and_has_a_name(name):
    tokenizer = tokenizer_of(name)
    assert {tokenizer.bos_id, *tokenizer.stop_ids} <= set(tokenizer.special.values())
    ids = tokenizer.encode("a llama", bos=False, eos=False)
    for id in tokenizer.special.values():
        assert tokenizer.decode([id]) == ""
        assert tokenizer.decode([id, *ids, id, id]) == tokenizer.decode(ids)
        assert [tokenizer.token_bytes(id, at_start=start) for start in (True, False)] == [
            (b"", True),
            (b"", False),
        ]


@pytest.mark.parametrize("name", TINY)
def test_ids_may_be_numpys(name):
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("the llama", bos=False, eos=False)
    assert tokenizer.decode(np.array(ids, np.int32)) == "the llama"


# --- long text


def metas_cut(text, longest):
    """Meta's rule, character by character, as its Llama 3 tokenizer states it."""
    length, start, space = 0, 0, text[0].isspace()
    for i, character in enumerate(text):
        if character.isspace() != space:
            length, space = 1, character.isspace()
        else:
            length += 1
            if length > longest:
                yield text[start:i]
                start, length = i, 1
    yield text[start:]


@many
@given(text=st.text("ab \n\u00a0\x1c\u3000\x85", max_size=60))
def test_long_text_is_cut_where_meta_cuts_it(text):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("llama_jax.tokenizer.tiktoken.MAX_TEXT", 20)
        patch.setattr("llama_jax.tokenizer.tiktoken.MAX_RUN", 3)
        ours = list(parts_of_text(text))
    wholes = (text[i : i + 20] for i in range(0, len(text), 20))
    assert ours == [part for whole in wholes for part in metas_cut(whole, 3)]


def test_the_limits_are_metas():
    assert (MAX_TEXT, MAX_RUN) == (400_000, 25_000)
    assert [len(part) for part in parts_of_text("a" * 60_000)] == [25_000, 25_000, 10_000]
    assert [len(part) for part in parts_of_text("a " * 250_000)] == [400_000, 100_000]


@pytest.mark.parametrize("name", [*TINY, *REAL])
@pytest.mark.parametrize("text", ["a" * 100_000, " " * 100_000, "🦙" * 25_000, "a " * 250_000])
def test_long_text_comes_back(name, text):
    tokenizer = tokenizer_of(name)
    assert tokenizer.decode(tokenizer.encode(text, bos=False, eos=False)) == coming_back(name, text)


# --- streaming


@pytest.mark.parametrize("name", [*TINY, *REAL])
@many
@given(data=st.data())
def test_streamed_text_joins_to_the_decoded_text_for_any_ids(name, data):
    tokenizer, ids = tokenizer_of(name), data.draw(any_ids(name))
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def stops_inside_a_character(data):
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    return decoder.getstate()[0] != b""


@pytest.mark.parametrize("name", [*TINY, *REAL])
@many
@given(data=st.data())
def test_a_prompt_and_its_streamed_completion_join_to_the_decoded_whole(name, data):
    tokenizer = tokenizer_of(name)
    prompt, completion = data.draw(any_ids(name)), data.draw(any_ids(name))
    while stops_inside_a_character(b"".join(bytes_of(name)[id] for id in prompt)):
        prompt.pop()
    text = "".join(streamed(tokenizer, completion, after=prompt))
    assert text == detokenize(tokenizer, completion, after=prompt)
    assert tokenizer.decode(prompt + completion) == tokenizer.decode(prompt) + text


@pytest.mark.parametrize("name", [*TINY, *REAL])
def test_a_character_is_never_streamed_by_halves(name):
    tokenizer, text = tokenizer_of(name), "a 🦙, 北京, é 👩‍👩‍👧!"
    pieces = streamed(tokenizer, tokenizer.encode(text, bos=False, eos=False))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)
    assert pieces[-1] == ""


def test_a_character_appears_with_its_last_byte():
    tokenizer = tokenizer_of("tiny-tiktoken")
    assert streamed(tokenizer, "🦙".encode()) == ["", "", "", "🦙", ""]


def test_a_character_that_is_never_finished_ends_as_a_replacement():
    tokenizer = tokenizer_of("tiny-tiktoken")
    assert streamed(tokenizer, "🦙".encode()[:3]) == ["", "", "", "\ufffd"]
    assert streamed(tokenizer, [0xF0, ord("a")]) == ["", "\ufffda", ""]
    assert tokenizer.decode([0xF0, ord("a")]) == "\ufffda"


def test_a_completions_first_space_is_kept_after_a_prompt_and_dropped_after_none():
    tokenizer = tokenizer_of("tiny-sentencepiece")
    prompt = tokenizer.encode("Once upon a time", bos=True, eos=False)
    there = tokenizer.encode("there", bos=False, eos=False)
    assert "".join(streamed(tokenizer, there, after=prompt)) == " there"
    assert "".join(streamed(tokenizer, there, after=[tokenizer.bos_id])) == "there"
    assert "".join(streamed(tokenizer, there)) == "there"
    assert "".join(streamed(tokenizer, [tokenizer.bos_id, *there])) == "there"


def test_only_one_space_is_dropped():
    tokenizer = tokenizer_of("tiny-sentencepiece")
    space = tokenizer.model.piece_to_id("\u2581")
    assert tokenizer.decode([space] * 3) == "  "
    assert streamed(tokenizer, [space] * 3) == ["", " ", " ", ""]
    assert streamed(tokenizer, [space], after=[tokenizer.bos_id, space]) == [" ", ""]


def test_a_model_trained_without_a_leading_space_drops_none():
    tokenizer = tokenizer_of("tiny-no-prefix")
    assert tokenizer.decode(tokenizer.encode(" there", bos=True, eos=False)) == " there"


def test_a_space_spelled_as_a_byte_is_kept():
    tokenizer = tokenizer_of("tiny-sentencepiece")
    assert tokenizer.decode([3 + ord(" "), 3 + ord("a")]) == " a"


# --- what is refused


@pytest.mark.parametrize("name", TINY)
def test_a_negative_id_is_refused(name):
    tokenizer = tokenizer_of(name)
    with pytest.raises(ValueError, match="id -1 is no token; ids count from 0"):
        tokenizer.decode([5, -1])
    with pytest.raises(ValueError, match="id -1 is no token"):
        Detokenizer(tokenizer).push(-1)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("above", [0, 1, 10**6])
def test_an_id_that_spells_nothing_adds_no_text(name, above):
    """A model may have more rows than its tokenizer has tokens."""
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode("there was", bos=False, eos=False)
    beyond = tokenizer.vocab_size + above
    for at in range(len(ids) + 1):
        between = [*ids[:at], beyond, *ids[at:]]
        assert tokenizer.decode(between) == tokenizer.decode(ids)
        stream = Detokenizer(tokenizer)
        assert "".join([stream.push(id) for id in between]) + stream.finish() == "there was"


@pytest.mark.parametrize("name", TINY)
def test_text_that_is_none_is_refused(name):
    tokenizer = tokenizer_of(name)
    with pytest.raises(ValueError, match=r"lone surrogate '\\ud800' at position 2"):
        tokenizer.encode("ab\ud800", bos=True, eos=False)
    for other in (b"bytes", None, ["a"]):
        with pytest.raises(ValueError, match=f"a str, not {type(other).__name__}"):
            tokenizer.encode(other, bos=True, eos=False)


BROKEN = {
    "empty": (b"", "is empty"),
    "LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 499723\n",
        "git lfs pull",
    ),
    "HTML": (b"<!DOCTYPE html><p>Sign in</p>", "is neither a SentencePiece model"),
    "binary": (bytes(range(200, 256)), "is neither a SentencePiece model"),
    "binary like a protobuf": (b"\n" + bytes(range(200, 256)), "SentencePiece cannot read it"),
    "text like a protobuf": (b"\n\nhello\n", "SentencePiece cannot read it"),
    "rank missing": (tiktoken_file().replace(b"AA== 0\n", b"AA==\n"), "neither"),
    "rank cut": (tiktoken_file()[:-2], "line 262 has rank 26 where 261 is due"),
    "line cut": (tiktoken_file()[:-5], "line 262, .* is not a token"),
    "bad base64": (tiktoken_file() + b"A 262\n", "line 263, .* is not a token"),
    "rank no number": (tiktoken_file() + b"AAAA x\n", "line 263, .* is not a token"),
    "blank line": (tiktoken_file() + b"\n", "line 263, b'', is not a token"),
    "gap": (tiktoken_file() + b"AAAA 263\n", "line 263 has rank 263 where 262 is due"),
    "rank twice": (tiktoken_file() + b"AAAA 261\n", "line 263 has rank 261 where 262 is due"),
    "token twice": (tiktoken_file() + b"AA== 262\n", "lines 1 and 263 hold the same token"),
    "few": (b"IQ== 0\nIg== 1\n", "254 of the 256 single bytes are no tokens, the first 0x00"),
}


@pytest.mark.parametrize(("content", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_tokenizer_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        load_tokenizer(file)
    assert str(file) in str(raised.value)


def test_a_truncated_sentencepiece_model_is_refused(tmp_path):
    file, whole = tmp_path / "tokenizer.model", sentencepiece_file()
    last = whole.rindex(b"\x1a")  # a model that lacks its whole last field is one that never had it
    for end in itertools.chain(
        range(1, last, 7), range(last - 50, last), range(last + 1, len(whole))
    ):
        file.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="SentencePiece cannot read it"):
            load_tokenizer(file)


def test_a_sentencepiece_model_without_bos_is_refused(tmp_path):
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a llama"] * 5),
        model_writer=written,
        model_type="char",
        bos_id=-1,
        vocab_size=7,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="its bos id is -1"):
        SentencePieceTokenizer(written.getvalue())


# --- where it lies


def test_what_the_file_holds_decides_not_its_name(tmp_path):
    for name in ("tokenizer.model", "any.thing"):
        (tmp_path / name).write_bytes(tiktoken_file())
        assert isinstance(load_tokenizer(tmp_path / name), TiktokenTokenizer)
        (tmp_path / name).write_bytes(sentencepiece_file())
        assert isinstance(load_tokenizer(str(tmp_path / name)), SentencePieceTokenizer)


def test_a_replaced_file_is_read_anew(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(tiktoken_file())
    assert load_tokenizer(tmp_path).vocab_size == 262 + 256
    file.write_bytes(tiktoken_file(merges=[b"he"]))
    assert load_tokenizer(tmp_path).vocab_size == 257 + 256


def test_windows_line_ends_are_read(tmp_path):
    file = tmp_path / "tokenizer.model"
    file.write_bytes(tiktoken_file().replace(b"\n", b"\r\n"))
    assert load_tokenizer(file).vocab_size == 262 + 256


@pytest.mark.parametrize("marker", ["params.json", "consolidated.00.pth"])
def test_metas_directory_finds_the_tokenizer_one_level_up(tmp_path, monkeypatch, marker):
    folder = tmp_path / "7B"
    folder.mkdir()
    above = tmp_path / "tokenizer.model"
    above.write_bytes(tiktoken_file())
    assert find_tokenizer(folder) is None
    (folder / marker).write_text("{}")
    assert find_tokenizer(folder).samefile(above)
    monkeypatch.chdir(folder)
    assert load_tokenizer(".").vocab_size == 262 + 256
    own = folder / "tokenizer.model"
    own.write_bytes(sentencepiece_file())
    assert find_tokenizer(folder) == own
    assert find_tokenizer(above) == above


def test_a_missing_tokenizer_says_where_it_was_looked_for(tmp_path):
    folder = tmp_path / "7B"
    with pytest.raises(FileNotFoundError, match="7B does not exist"):
        load_tokenizer(folder)
    folder.mkdir()
    assert find_tokenizer(folder) is None
    with pytest.raises(FileNotFoundError, match=r"7B/tokenizer\.model; copy .* or pass its path"):
        load_tokenizer(folder)
    (folder / "params.json").touch()
    with pytest.raises(FileNotFoundError) as raised:
        load_tokenizer(folder)
    assert str(folder / "tokenizer.model") in str(raised.value)
    assert str(tmp_path / "tokenizer.model") in str(raised.value)


def test_importing_the_room_imports_neither_library():
    program = (
        "import sys, llama_jax.tokenizer;"
        "sys.exit(any(name in sys.modules for name in ('sentencepiece', 'tiktoken', 'tokenizers')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


@pytest.mark.parametrize(("kind", "name"), [("sentencepiece", "stories.model"), ("tiktoken", "x")])
def test_a_copy_of_a_file_with_a_name_of_its_own_is_found_in_its_folder(tmp_path, kind, name):
    content = sentencepiece_file() if kind == "sentencepiece" else tiktoken_file()
    (tmp_path / name).write_bytes(content)
    (tmp_path / "tokenizer.model").write_bytes(b"another's")
    copies = tokenizer_files(tmp_path / name)
    assert next(iter(copies.items())) == ("tokenizer.model", tmp_path / name)


def test_a_copy_of_hugging_faces_file_is_called_tokenizer_json(tmp_path):
    file = byte_folder(tmp_path, "").joinpath("tokenizer.json").rename(tmp_path / "bytes.json")
    assert next(iter(tokenizer_files(file))) == "tokenizer.json"
    file.write_text("no tokenizer")  # it stays what it is, for the error to name
    assert next(iter(tokenizer_files(file))) == "bytes.json"
