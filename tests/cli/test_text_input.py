"""Text comes in as UTF-8, whatever the locale says, and a wrong line costs that line."""

import io
import json
import sys
from pathlib import Path

import pytest

from llama_jax.cli.console import print_json
from llama_jax.cli.text_input import (
    STDIN,
    argument,
    piped_lines,
    prepare_streams,
    read_lines,
    read_text,
)

TEXT = "Σήμερον é 🦙\ntwo\n"
SOUND = {
    "plain": TEXT.encode(),
    "with a mark": TEXT.encode("utf-8-sig"),
    "Windows' line ends": TEXT.replace("\n", "\r\n").encode(),
    "old Macs' line ends": TEXT.replace("\n", "\r").encode(),
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-16, the other order": b"\xfe\xff" + TEXT.replace("\n", "\r\n").encode("utf-16-be"),
}


@pytest.fixture(params=["file", "stdin"])
def given(request, tmp_path, monkeypatch):
    """Bytes as a file, or as what stdin gives in a locale that knows no UTF-8."""

    def give(data):
        if request.param == "file":
            (tmp_path / "p.txt").write_bytes(data)
            return tmp_path / "p.txt"
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "latin-1"))
        return STDIN

    return give


@pytest.mark.parametrize("data", SOUND.values(), ids=SOUND.keys())
def test_the_same_text_comes_of_every_way_to_write_it(given, data):
    assert read_text(given(data)) == TEXT
    assert [line.text for line in read_lines(given(data))] == [*TEXT.split("\n")]


@pytest.mark.parametrize("text", ["a\0b", "a\u2028b\x0cc\x85d", "  a  ", "", "\n\n"])
def test_what_is_no_line_end_stays(given, text):
    assert read_text(given(text.encode())) == text


@pytest.mark.parametrize(
    ("data", "lines"),
    [
        (b"a\rb\nc", ["a", "b", "c"]),
        (b"a\r\nb\rc\n\rd", ["a", "b", "c", "", "d"]),
        (b"\r\r\n", ["", "", ""]),
    ],
)
def test_every_kind_of_line_end_ends_a_line(given, data, lines):
    assert [line.text for line in read_lines(given(data))] == lines
    if (file := given(data)) == STDIN:
        piped = list(piped_lines())
        assert [line.text for line in piped] == (lines if lines[-1] else lines[:-1])
        assert [line.number for line in piped] == list(range(1, len(piped) + 1))
    else:
        assert read_text(file) == "\n".join(lines)


@pytest.mark.parametrize(
    ("data", "number", "byte"),
    [
        (b"caf\xe9\nok\n", 1, "0xE9"),
        (b"one\r\ntwo\r\n\xff\xff\r\n", 3, "0xFF"),
        (b"\xc3", 1, "0xC3"),
    ],
)
def test_a_byte_that_is_not_utf8_is_named_with_its_line(given, data, number, byte):
    file = given(data)
    name = "stdin" if file == STDIN else str(file)
    with pytest.raises(ValueError, match=byte) as raised:
        read_text(file)
    assert str(raised.value).startswith(f"{name}, line {number}: byte ")


def test_a_wrong_line_costs_no_other(given):
    lines = read_lines(given(b"one\ncaf\xe9\nthree"))
    assert [line.error is None for line in lines] == [True, False, True]
    assert [line.text for line in lines] == ["one", "caf\ufffd", "three"]


def test_broken_utf16_is_named(given):
    with pytest.raises(ValueError, match="UTF-16 does, and is broken at byte 5"):
        read_text(given(b"\xff\xfea\0b"))


def test_a_pipe_gives_its_lines_as_they_come(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xef\xbb\xbfa\r\n\xe9\nc")))
    lines = list(piped_lines())
    assert [line.text for line in lines] == ["a", "\ufffd", "c"]
    assert lines[1].error.startswith("stdin, line 2: byte 1")


def test_an_argument_is_utf8_where_the_locale_could_not_read_it():
    assert argument("é".encode().decode("ascii", "surrogateescape"), "prompt 1") == "é"
    assert argument("🦙".encode().decode("ascii", "surrogateescape"), "prompt 1") == "🦙"
    assert argument("é", "prompt 1") == "é"
    with pytest.raises(ValueError, match="prompt 3 is not UTF-8"):
        argument("caf\udce9", "prompt 3")


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(FileNotFoundError, match=r"nothing\.txt"):
        read_text(Path("nothing.txt"))


@pytest.mark.parametrize(
    ("encoding", "out", "err"),
    [
        ("ascii", b"m/\xc3\xa9\xe9 ? ?", rb"m/" + b"\xc3\xa9\xe9" + rb" \xe9 \U0001f999"),
        ("latin-1", b"m/\xc3\xa9\xe9 \xe9 ?", rb"m/" + b"\xc3\xa9\xe9 \xe9" + rb" \U0001f999"),
        ("utf-8", b"m/\xc3\xa9\xe9 \xc3\xa9 \xf0\x9f\xa6\x99", None),
    ],
)
def test_a_path_keeps_its_bytes_on_a_stream_that_cannot_spell_it(monkeypatch, encoding, out, err):
    path = b"m/\xc3\xa9\xe9".decode("ascii", "surrogateescape")  # as a C locale reads it
    for name, expected in (("stdout", out), ("stderr", out if err is None else err)):
        written = io.BytesIO()
        monkeypatch.setattr(sys, name, io.TextIOWrapper(written, encoding, write_through=True))
        prepare_streams()
        getattr(sys, name).write(f"{path} é 🦙")
        assert written.getvalue() == expected


def test_json_tells_such_a_path_as_utf8(capsys):
    print_json({"path": "m/\udcc3\udca9 \udce9", "prompt": "\ud800"})
    assert json.loads(capsys.readouterr().out) == {"path": "m/é \ufffd", "prompt": "\ud800"}
