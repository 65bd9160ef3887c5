import json
import os

import numpy as np
import pytest
from small_tokenizers import sentencepiece_file, tiktoken_file
from token_files import STORIES, json_lines, split_of_tokens, token_folder, tokenizer_file

from llama_jax.tokenizer import load_tokenizer
from llama_jax.train import split as split_module
from llama_jax.train import tokens as tokens_module
from llama_jax.train.rows import TextRows
from llama_jax.train.token_folder import open_tokens, vocabulary_hash
from llama_jax.train.token_writer import file_record
from llama_jax.train.tokens import tokenize


def documents_of(split, tokenizer):
    """The text of each document of a split, and its ids."""
    ends = [*split.starts[1:].tolist(), len(split)]
    found = [split.read(int(a), b) for a, b in zip(split.starts, ends, strict=True)]
    assert all((ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id) for ids in found)
    return [tokenizer.decode(ids[1:-1]) for ids in found], found


@pytest.mark.parametrize("kind", ["sentencepiece", "tiktoken"])
@pytest.mark.parametrize("shard_tokens", [7, 100, 2**28])
def test_documents_come_out_as_they_went_in(tmp_path, kind, shard_tokens):
    texts = STORIES * 8
    folder = open_tokens(
        token_folder(tmp_path, texts, kind, shard_tokens=shard_tokens), check_hashes=True
    )
    tokenizer = load_tokenizer(folder.path)
    for name, split in (("train", folder.train), ("validation", folder.validation)):
        found, ids = documents_of(split, tokenizer)
        wanted = [text for i, text in enumerate(texts) if (i % 5 == 4) == (name == "validation")]
        assert found == wanted
        assert [one.tolist() for one in ids] == [
            tokenizer.encode(text, bos=True, eos=True) for text in wanted
        ]
        assert split.text_bytes == sum(len(text.encode()) for text in wanted)
        assert max(map(len, split.shards)) <= shard_tokens


def test_ids_lie_raw_and_little_endian(tmp_path):
    folder = token_folder(tmp_path, ["the llama"] * 4, validation_every=0)
    raw = np.fromfile(folder / "train/00000.bin", "<u2")
    starts = np.load(folder / "train/starts.npy")
    assert starts.dtype == np.uint64
    assert raw[starts.astype(int)].tolist() == [1] * 4
    assert raw[-1] == 2
    assert open_tokens(folder).validation is None


def test_a_large_vocabulary_takes_uint32(tmp_path, monkeypatch):
    class Large(load_tokenizer(tokenizer_file(tmp_path / "one")).__class__):
        def __init__(self, file):
            super().__init__(file)
            self.vocab_size = 2**16 + 1

        def encode_batch(self, texts, **_):
            return [[1, 2**16, 2] for _ in texts]

    large = Large(sentencepiece_file())
    monkeypatch.setattr(split_module, "load_tokenizer", lambda path: large)
    monkeypatch.setattr(split_module, "vocabulary_hash", lambda tokenizer: "")
    folder = open_tokens(token_folder(tmp_path, ["a", "b"], validation_every=0))
    assert folder.train.shards[0].dtype == np.dtype("<u4")
    assert folder.train.read(0, 6).tolist() == [1, 2**16, 2] * 2


@pytest.mark.parametrize("block", [1, 50, 10**6])
def test_neither_threads_nor_blocks_change_a_byte(tmp_path, monkeypatch, block):
    monkeypatch.setattr(tokens_module, "BLOCK_CHARACTERS", block)
    manifests = []
    for threads in (1, 3):
        (tmp_path / str(threads)).mkdir()
        folder = token_folder(tmp_path / str(threads), threads=threads)
        manifests.append((folder / "manifest.json").read_bytes())
    assert manifests[0] == manifests[1]


def test_a_hugging_face_tokenizer_encodes_a_batch_as_one_text(shared):
    tokenizer = load_tokenizer(shared / "models/tinystories656K-hf")
    wanted = [tokenizer.encode(text, bos=True, eos=True) for text in STORIES]
    for threads in (1, 2):
        assert tokenizer.encode_batch(STORIES, bos=True, eos=True, threads=threads) == wanted


def test_validation_files_are_the_validation_split(tmp_path):
    files = [json_lines(tmp_path / f"{name}.jsonl", [name] * 3) for name in "abc"]
    tokenize(
        files[:2], tokenizer_file(tmp_path / "t"), tmp_path / "out", validation_files=files[2:]
    )
    folder = open_tokens(tmp_path / "out")
    tokenizer = load_tokenizer(folder.path)
    assert documents_of(folder.train, tokenizer)[0] == ["a"] * 3 + ["b"] * 3
    assert documents_of(folder.validation, tokenizer)[0] == ["c"] * 3
    assert folder.manifest["split"]["files"]["validation"] == ["c.jsonl"]


def test_documents_without_text_are_left_out(tmp_path):
    folder = open_tokens(token_folder(tmp_path, ["", "one", "", "two"], validation_every=2))
    tokenizer = load_tokenizer(folder.path)
    assert documents_of(folder.train, tokenizer)[0] == ["one"]
    assert documents_of(folder.validation, tokenizer)[0] == ["two"]


@pytest.mark.parametrize(
    ("texts", "settings", "error"),
    [
        ([], {}, "the files hold no document"),
        (["", ""], {}, "the files hold no document"),
        (
            ["a"],
            {"validation_every": 0, "validation_files": ["empty"]},
            "the validation files hold no",
        ),
        (["a"] * 4, {}, r"the validation split is empty: of every 5 documents .* the files hold 4"),
        (["a"], {"validation_every": 1}, "validation_every=1 must be at least 2, or 0"),
        (["a"], {"validation_every": True}, "validation_every=True must be"),
        (["a"], {"shard_tokens": 0}, "shard_tokens=0 must be a positive integer"),
        (["a", "b\ud800"], {}, r"texts\.jsonl, line 2: text has the lone surrogate"),
    ],
)
def test_what_cannot_be_a_folder_is_one_clear_line(tmp_path, texts, settings, error):
    if "validation_files" in settings:
        settings = {**settings, "validation_files": [json_lines(tmp_path / "e.jsonl", [""])]}
    with pytest.raises(ValueError, match=error) as raised:
        token_folder(tmp_path, texts, **settings)
    assert "\n" not in str(raised.value)
    assert not [entry for entry in tmp_path.iterdir() if "tokens" in entry.name]


def test_a_folder_is_replaced_only_where_asked_and_only_our_own(tmp_path):
    folder = token_folder(tmp_path)
    with pytest.raises(FileExistsError, match="is there already"):
        token_folder(tmp_path)
    token_folder(tmp_path, ["new"] * 5, overwrite=True)
    assert open_tokens(folder).train.starts.size == 4
    (folder / "train/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"train/notes\.txt, which was not written with"):
        token_folder(tmp_path, overwrite=True)
    assert (folder / "train/notes.txt").read_text() == "mine"


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"cannot write the tokens .*tokens: .*No space left"):
        token_folder(tmp_path)
    assert not (tmp_path / "tokens").exists()


def test_a_shard_cut_by_one_byte_is_noticed(tmp_path):
    folder = token_folder(tmp_path, shard_tokens=100)
    for name in ("train/00001.bin", "validation/starts.npy"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1])
        with pytest.raises(ValueError, match=f"{name} has .* bytes and manifest.json says .*cut"):
            open_tokens(folder)
        (folder / name).write_bytes(whole)
    open_tokens(folder, check_hashes=True)


@pytest.mark.parametrize("name", ["train/00000.bin", "train/00001.bin", "validation/starts.npy"])
def test_a_changed_byte_is_noticed_by_its_sha256(tmp_path, name):
    folder = token_folder(tmp_path, shard_tokens=100)
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    open_tokens(folder)
    with pytest.raises(ValueError, match=f"{name} was changed: its sha256 is not the one"):
        open_tokens(folder, check_hashes=True)


@pytest.mark.parametrize("positions", [[0, 90, 40], [0, 2**63, 5]])
def test_documents_start_one_after_the_other(tmp_path, positions):
    folder = token_folder(tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text())
    np.save(folder / "train/starts.npy", np.array(positions, "<u8"))
    record = manifest["splits"]["train"]
    record["starts"] |= file_record(folder / "train/starts.npy")
    record["documents"] = len(positions)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match=r"train/starts\.npy was changed: its positions do not asc"
    ):
        open_tokens(folder, check_hashes=True)


@pytest.mark.parametrize("name", ["train/00001.bin", "train/starts.npy"])
def test_a_file_that_shrinks_during_training_is_an_error(tmp_path, name):
    folder = token_folder(tmp_path, shard_tokens=100)
    rows = TextRows(open_tokens(folder).train, 30, "separate")
    rows.read(np.arange(rows.whole))
    os.truncate(folder / name, 10)
    with pytest.raises(ValueError, match=rf"{name} had [0-9,]* bytes when it was opened and has 1"):
        rows.read(np.arange(rows.whole))


def test_a_missing_shard_and_a_damaged_manifest_are_clear(tmp_path):
    folder = token_folder(tmp_path, shard_tokens=100)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "train/00001.bin").rename(tmp_path / "away")
    with pytest.raises(ValueError, match=r"train/00001\.bin is missing; copy the folder again"):
        open_tokens(folder)
    (tmp_path / "away").rename(folder / "train/00001.bin")
    for change, error in (
        ({"format": "other"}, "was not written by `llama-jax tokenize`"),
        ({"version": 2}, "has version 2, and this llama_jax reads version 1; upgrade it"),
        ({"dtype": "float32"}, 'has dtype="float32"; it is uint16 or uint32'),
        ({"dtype": "uint32"}, "shards hold .* tokens and manifest.json says"),
        ({"splits": {}}, r"is damaged \(KeyError\('train'\)\)"),
        ({"splits": 3}, "is damaged"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(ValueError, match=error):
            open_tokens(folder)


SHARD = ("shards", 0, "file"), ("shards", 0, "bytes"), ("starts", "file"), ("starts", "bytes")
WORDS = "x", "a\x1b[31m\nb", "a\0b", "\ud800", "a" * 5000, "/etc/passwd", "../train/00000.bin"


@pytest.mark.parametrize("where", [*SHARD, ("tokens",), ("documents",), ("text_bytes",)])
def test_what_a_manifest_says_of_a_split_has_a_form(tmp_path, where):
    folder = token_folder(tmp_path)
    for value in (*WORDS, -1, 1.5, True, [1], {"a": 1}):
        manifest = json.loads((folder / "manifest.json").read_text())
        *way, last = ("splits", "train", *where)
        record = manifest
        for key in way:
            record = record[key]
        record[last], stated = value, record[last]
        (file := folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ValueError, match=rf"manifest\.json is damaged .*{last}=") as found:
            open_tokens(folder)
        assert len(str(found.value)) <= 500
        assert str(found.value).isprintable()
        record[last] = stated
        file.write_text(json.dumps(manifest))
    open_tokens(folder)


@pytest.mark.parametrize(
    "starts",
    [np.array(0, "u8"), np.zeros((5, 2), "u8"), np.array([0, 1.5]), np.array([0, -5]), []],
)
def test_starts_are_positions_one_after_the_other(tmp_path, starts):
    folder = token_folder(tmp_path)
    np.save(folder / "train/starts.npy", starts)
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["splits"]["train"]
    record["documents"] = np.size(starts)
    record["starts"]["bytes"] = (folder / "train/starts.npy").stat().st_size
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"starts\.npy holds no positions of tokens"):
        open_tokens(folder)


@pytest.mark.parametrize("at", [20, 30, 60, 90, 127])
def test_a_header_of_numpys_that_is_damaged_is_said_in_words(tmp_path, at):
    folder = token_folder(tmp_path, STORIES)
    file = folder / "train/starts.npy"
    content = bytearray(file.read_bytes())
    for byte in b"({'\\[#\0\n":
        content[at] = byte
        file.write_bytes(content)
        said = ""  # some change nothing, as in the spaces at its end
        try:
            open_tokens(folder)
        except ValueError as error:
            said = str(error)
        assert said.isprintable()


def test_nothing_outside_a_folder_is_read(tmp_path):
    folder = token_folder(tmp_path)
    (folder / "train/00000.bin").rename(tmp_path / "outside.bin")
    (folder / "train/00000.bin").symlink_to(tmp_path / "outside.bin")
    with pytest.raises(ValueError, match="is a link out of the folder"):
        open_tokens(folder)


def test_a_folder_of_another_tokenizer_is_refused(tmp_path):
    folder = token_folder(tmp_path)
    same = load_tokenizer(tokenizer_file(tmp_path / "same"))
    assert open_tokens(folder, tokenizer=same).train.vocab_size == same.vocab_size
    other = load_tokenizer(tokenizer_file(tmp_path / "other", "tiktoken"))
    with pytest.raises(ValueError, match=r"made with another tokenizer \(304 tokens\) .*\(518\)"):
        open_tokens(folder, tokenizer=other)


def test_the_vocabulary_decides_and_not_its_file(tmp_path):
    (tmp_path / "a").write_bytes(tiktoken_file((b" t", b"he")))
    (tmp_path / "b").write_bytes(tiktoken_file((b"he", b" t")))
    (tmp_path / "c").write_bytes(tiktoken_file((b" t", b"he")) + b"\n")
    a, b = (vocabulary_hash(load_tokenizer(tmp_path / name)) for name in "ab")
    assert a != b
    assert a == vocabulary_hash(load_tokenizer(tmp_path / "a"))


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_a_read_goes_over_the_ends_of_shards(shards):
    split = split_of_tokens(range(23), shards=shards)
    for begin in range(23):
        for end in range(begin, 30):
            assert split.read(begin, end).tolist() == list(range(begin, min(end, 23)))


def llm_c(file, magic, version, dtype, tokens, count=None):
    """A file of llm.c's: 256 int32, of which three mean something, and the tokens."""
    header = np.zeros(256, "<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    file.write_bytes(header.tobytes() + np.asarray(tokens, dtype).tobytes())
    return file


def test_nanogpts_files_are_read_as_they_are(tmp_path):
    np.arange(50_000, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.arange(7, dtype=np.uint16).tofile(tmp_path / "val.bin")
    folder = open_tokens(tmp_path)
    assert folder.train.read(49_998, 50_010).tolist() == [49_998, 49_999]
    assert folder.validation.read(0, 10).tolist() == list(range(7))
    assert folder.train.starts is None
    assert folder.tokenizer is None
    assert len(open_tokens(tmp_path / "val.bin").train) == 7


@pytest.mark.parametrize(
    ("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")]
)
def test_llm_cs_files_are_read_as_they_are(tmp_path, magic, version, dtype):
    top = np.iinfo(dtype).max >> 1
    llm_c(tmp_path / "fineweb_train_000001.bin", magic, version, dtype, [5, 6, top])
    llm_c(tmp_path / "fineweb_train_000002.bin", magic, version, dtype, [7])
    llm_c(tmp_path / "fineweb_val_000000.bin", magic, version, dtype, [8, 9])
    folder = open_tokens(tmp_path)
    assert folder.train.read(0, 10).tolist() == [5, 6, top, 7]
    assert folder.validation.read(0, 10).tolist() == [8, 9]


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("train.bin", b"\0" * 7, r"train\.bin has 7 bytes, which are no uint16 tokens"),
        ("train.bin", b"", r"train\.bin has 0 bytes"),
        ("val.bin", b"\0\0", "holds no tokens to train on"),
        ("train.bin", (20240520).to_bytes(4, "little"), "ends within llm.c's header"),
        ("train.bin", (20240522).to_bytes(4, "little"), "questions for llm.c's evaluation"),
    ],
)
def test_foreign_files_that_are_none_are_clear(tmp_path, name, content, error):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=error):
        open_tokens(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda file: os.symlink("/dev/zero", file)])
def test_what_is_no_file_is_not_waited_for(tmp_path, make):
    make(tmp_path / "train.bin")
    with pytest.raises(ValueError, match=r"train\.bin is a folder, a pipe, a socket or a device"):
        open_tokens(tmp_path)


def test_llm_cs_header_is_checked(tmp_path):
    llm_c(tmp_path / "train.bin", 20240520, 2, "<u2", [1])
    with pytest.raises(ValueError, match=r"is llm\.c's version 2 of magic 20240520; 1 is read"):
        open_tokens(tmp_path)
    llm_c(tmp_path / "train.bin", 20240520, 1, "<u2", [1, 2, 3], count=4)
    with pytest.raises(ValueError, match="has 1,030 bytes, and its header says 4 tokens"):
        open_tokens(tmp_path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        open_tokens(tmp_path / "absent")


def test_a_token_beyond_the_models_is_an_error(tmp_path):
    np.arange(100, dtype=np.uint16).tofile(tmp_path / "train.bin")
    split = open_tokens(tmp_path, vocab_size=50).train
    assert split.read(0, 50).tolist() == list(range(50))
    with pytest.raises(ValueError, match=r"train split has the token 60 .* 0 to 49"):
        split.read(40, 61)
