import json
import sys

import pytest

from llama_jax.train import corpus
from llama_jax.train.corpus import check_files, read_documents


def texts(*files, **settings):
    return [document.text for document in read_documents(files, **settings)]


def written(folder, name, content):
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_a_text_file_is_one_document_byte_for_byte(tmp_path):
    text = "\n one\r\ntwo \N{LLAMA}\n\n"
    assert texts(written(tmp_path, "a.txt", text)) == [text]
    assert texts(written(tmp_path, "a.md", text)) == [text]
    assert texts(written(tmp_path, "a.txt", b"\xef\xbb\xbf" + text.encode())) == [text]


@pytest.mark.parametrize("block", [1, 2, 3, 5, 7, 1000])
def test_a_separator_ends_documents_wherever_a_block_ends(tmp_path, monkeypatch, block):
    monkeypatch.setattr(corpus, "BLOCK", block)
    file = written(tmp_path, "a.txt", "one\ntwo\n<|end|>\nthree<|end|><|end|>\n\nfour\n")
    found = list(read_documents([file], separator="<|end|>"))
    assert [document.text for document in found] == ["one\ntwo", "three", "", "\nfour"]
    lines = [document.place.rpartition(" ")[2] for document in found]
    assert lines == ["1", "4", "4", "5"]


@pytest.mark.parametrize("block", [1, 2, 1000])
def test_a_line_end_beside_a_separator_may_be_of_windows(tmp_path, monkeypatch, block):
    monkeypatch.setattr(corpus, "BLOCK", block)
    file = written(tmp_path, "a.txt", "one\r\ntwo\r\n<|end|>\r\nthree\r<|end|>\r\n\r\nfour\r\n")
    found = list(read_documents([file], separator="<|end|>"))
    assert [document.text for document in found] == ["one\r\ntwo", "three\r", "\r\nfour"]
    assert [document.place.rpartition(" ")[2] for document in found] == ["1", "4", "5"]


@pytest.mark.parametrize("block", [1, 4, 1000])
def test_a_separator_may_be_line_ends(tmp_path, monkeypatch, block):
    monkeypatch.setattr(corpus, "BLOCK", block)
    assert texts(written(tmp_path, "a.txt", "one\ntwo\n\nthree\n"), separator="\n\n") == [
        "one\ntwo",
        "three",
    ]


def test_json_lines_hold_a_document_each(tmp_path):
    lines = [{"text": "one\ntwo"}, {"text": "\N{LLAMA}", "id": 3}]
    file = written(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    found = list(read_documents([file]))
    assert [document.text for document in found] == ["one\ntwo", "\N{LLAMA}"]
    assert found[1].place == f"{file}, line 2"
    assert texts(written(tmp_path, "b.jsonl", '{"story": "a"}'), key="story") == ["a"]


def test_parquet_files_hold_a_document_a_row(tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="pyarrow is absent; pip install pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    table = pyarrow.table({"text": ["one", "two\n", None], "id": [1, 2, 3]})
    parquet.write_table(table.slice(0, 2), file)
    assert check_files([file]) == file.stat().st_size
    assert texts(file) == ["one", "two\n"]
    with pytest.raises(ValueError, match=r"a\.parquet has no column 'story'; it has 'text', 'id'"):
        texts(file, key="story")
    parquet.write_table(table, file)
    with pytest.raises(ValueError, match=r"a\.parquet, row 3 has a NoneType under 'text'"):
        texts(file)
    with pytest.raises(ValueError, match=r"b\.parquet is no parquet file .*download it again"):
        check_files([written(tmp_path, "b.parquet", "no")])
    parquet.write_table(pyarrow.table({"text": [f"document {n} " * 20 for n in range(2000)]}), file)
    content = bytearray(file.read_bytes())
    content[200:2000] = b"\xff" * 1800
    with pytest.raises(ValueError, match=r"b\.parquet is damaged after row 0 .*download it again"):
        texts(written(tmp_path, "b.parquet", bytes(content)))
    parquet.write_table(
        pyarrow.table({"text": pyarrow.array([b"a\xff"]).cast("string", safe=False)}), file
    )
    with pytest.raises(ValueError, match=r"a\.parquet is damaged after row 0 .*utf-8"):
        texts(file)


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"a\.parquet needs pyarrow; .*pip install pyarrow"):
        check_files([written(tmp_path, "a.parquet", "PAR1")])


@pytest.mark.parametrize(
    ("name", "content", "separator", "error"),
    [
        ("a.txt", b"one\ntwo\nth\xffree", None, r"a\.txt, line 3: byte 0xFF is not UTF-8"),
        ("a.txt", b"one\n--\ntwo\n\xc3(", "--", r"a\.txt, line 4: byte 0xC3 is not UTF-8"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xe4"}', None, r"a\.jsonl, line 2: byte 0xE4"),
        ("a.jsonl", b'{"text": "a"}\n{"text"', None, r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b"[" * 100_000, None, r"a\.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'\n["a"]', None, r"a\.jsonl, line 2 holds a list; it must be an object"),
        ("a.jsonl", b'{"story": "a"}', None, r"line 1 has no 'text'; its keys are 'story'"),
        ("a.jsonl", b'{"text": 3}', None, r"line 1 has a int under 'text'; it must be a text"),
    ],
)
def test_an_error_names_file_and_line(tmp_path, name, content, separator, error):
    with pytest.raises(ValueError, match=error):
        texts(written(tmp_path, name, content), separator=separator)


def test_files_that_are_no_documents_are_refused_beforehand(tmp_path):
    with pytest.raises(ValueError, match="no file to read"):
        check_files([])
    with pytest.raises(ValueError, match=r"is a directory; name the files in it"):
        check_files([tmp_path])
    with pytest.raises(
        ValueError, match=r"ends in '\.csv'; text is read from \.txt, \.md, \.jsonl"
    ):
        check_files([written(tmp_path, "a.csv", "")])
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        check_files([tmp_path / "absent.txt"])
    with pytest.raises(ValueError, match="separator='' separates nothing"):
        texts(written(tmp_path, "a.txt", "a"), separator="")


@pytest.mark.parametrize(
    ("name", "separator"), [("a.txt", None), ("a.txt", "<|end|>"), ("a.jsonl", None)]
)
def test_a_document_longer_than_memory_is_refused(tmp_path, monkeypatch, name, separator):
    monkeypatch.setattr(corpus, "free_memory", lambda: 640_000)
    content = '{"text": "' + "a" * 10_000 + '"}'
    with pytest.raises(ValueError, match=r"one document of .* too long .* by a separator"):
        texts(written(tmp_path, name, content), separator=separator)


def test_progress_ends_at_the_bytes_of_all_files(tmp_path):
    files = [
        written(tmp_path, "a.txt", "one"),
        written(tmp_path, "b.jsonl", '{"text": "a"}\n' * 9),
        written(tmp_path, "c.txt", ""),
    ]
    told = []
    texts(*files, progress=told.append)
    assert told == sorted(told)
    assert told[-1] == check_files(files)


@pytest.mark.parametrize("name", ["nowhere", "nowhere.csv", "nowhere.txt"])
def test_a_file_that_is_not_there_is_said_so_whatever_its_suffix(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=name):
        check_files([tmp_path / name])
