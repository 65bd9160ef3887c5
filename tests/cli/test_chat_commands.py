"""What can be typed in a chat, and how a message of several lines is put together."""

import json
import locale
import os

import pytest

from llama_jax.cli.chat_commands import COMMANDS, Session, command_in, run_command
from llama_jax.cli.chat_input import as_typed, assembled, keep_history, read_history
from llama_jax.generation.chat import Conversation
from llama_jax.generation.settings import SamplingSettings

DIALOG = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one?"},
    {"role": "assistant", "content": "1 é"},
    {"role": "user", "content": "two?"},
    {"role": "assistant", "content": "2"},
]


class Talk:
    """What the commands use of a conversation."""

    undo = Conversation.undo

    def __init__(self, messages=DIALOG):
        self.messages = list(messages)
        self.settings = SamplingSettings(seed=7)
        self.tokenizer = None  # nothing that is typed asks a template

    def reset(self, system=None):
        self.messages = [] if system is None else [{"role": "system", "content": system}]


@pytest.fixture
def session():
    return Session(Talk())


def test_undo_takes_the_last_question_and_answer_back(session):
    assert run_command(session, "/undo", "") is None
    assert session.conversation.messages == DIALOG[:3]
    run_command(session, "/undo", "")
    assert session.conversation.messages == DIALOG[:1]
    with pytest.raises(ValueError, match="nothing was asked yet"):
        run_command(session, "/undo", "")


def test_retry_asks_again_with_another_seed(session):
    assert run_command(session, "/retry", "") == "two?"
    assert session.conversation.messages == DIALOG[:3]
    assert session.conversation.settings.seed == 8


def test_a_saved_conversation_is_loaded_again(session, tmp_path):
    file = tmp_path / "talk.json"
    run_command(session, "/save", str(file))
    assert json.loads(file.read_text(encoding="utf-8")) == DIALOG
    run_command(session, "/undo", "")
    run_command(session, "/save", str(file))  # over its own
    other = Session(Talk([]))
    run_command(other, "/load", str(file))
    assert other.conversation.messages == DIALOG[:3]
    assert [f.name for f in tmp_path.iterdir()] == ["talk.json"]


@pytest.mark.parametrize("place", ["nowhere/talk.json", "file/talk.json"])
def test_a_conversation_that_cannot_be_saved_names_the_file_that_was_asked_for(
    session, tmp_path, place
):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="cannot be written: No") as caught:
        run_command(session, "/save", str(tmp_path / place))
    assert str(caught.value).startswith(f"{tmp_path / place} ")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("place", ["/dev/full", "/dev/zero", "pipe", "."])
def test_save_reads_no_pipe_and_no_device_to_see_what_is_there(session, tmp_path, place):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is a folder, a pipe, a socket or a device; name a file"):
        run_command(session, "/save", str(tmp_path / place))
    assert [file.name for file in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("content", [b"years of work", b"{}", b'["a"]', b"\xff", b"[" * 100_000])
def test_save_leaves_what_is_no_conversation_alone_and_load_refuses_it(session, tmp_path, content):
    file = tmp_path / "thesis.tex"
    file.write_bytes(content)
    for name in ("/save", "/load"):
        with pytest.raises(ValueError, match=r"thesis\.tex"):
            run_command(session, name, str(file))
    assert file.read_bytes() == content
    assert session.conversation.messages == DIALOG


@pytest.mark.parametrize(
    ("message", "said"),
    [({"role": "wizard", "content": "?"}, "role 'wizard'"), ({"role": "user"}, "no 'content'")],
)
def test_what_no_model_can_be_told_is_not_loaded(session, tmp_path, message, said):
    (tmp_path / "x.json").write_text(json.dumps([message]))
    with pytest.raises(ValueError, match=rf"x\.json: message 0 has {said}"):
        run_command(session, "/load", str(tmp_path / "x.json"))
    assert session.conversation.messages == DIALOG


@pytest.mark.parametrize("dialog", [[], DIALOG[1:2], DIALOG[1:4]], ids=["none", "asked", "asking"])
def test_any_dialog_is_loaded_without_asking_a_template(session, tmp_path, dialog):
    (tmp_path / "x.json").write_text(json.dumps(dialog))
    run_command(session, "/load", str(tmp_path / "x.json"))
    assert session.conversation.messages == dialog


def test_a_file_begins_the_next_message(session, tmp_path):
    (tmp_path / "a b.txt").write_bytes(b"\xef\xbb\xbfa\r\nb\n")
    run_command(session, "/file", str(tmp_path / "a b.txt"))
    assert session.with_files("What is it?") == "a\nb\n\nWhat is it?"
    assert session.with_files("And now?") == "And now?"
    for name in ("/file", "/save", "/load"):
        with pytest.raises(ValueError, match=f"{name} needs a file"):
            run_command(session, name, "")


def test_help_lists_every_command_and_no_line_is_cut_at_80_columns(session, capsys):
    run_command(session, "/help", "")
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line.startswith("/")] == [*COMMANDS]


@pytest.mark.parametrize(
    ("text", "name", "rest"),
    [
        ("/undo", "/undo", ""),
        ("/Undo  ", "/undo", ""),
        ("/system Be\nbrief.", "/system", "Be\nbrief."),
        ("/nonsense x", "/nonsense", "x"),
        ("/etc/hosts is what?", None, ""),
        (" /undo", None, ""),
        ("/2 of it", None, ""),
        ("//", None, ""),
        ("hello", None, ""),
    ],
)
def test_a_path_is_no_command(text, name, rest):
    assert command_in(text) == (name, rest)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one", "two"], "one"),
        (["a\nb of a paste", "c"], "a\nb of a paste"),
        (["a\\", "b\\", "c"], "a\nb\nc"),
        (["C:\\\\", "b"], "C:\\\\"),
        (["a\\"], "a\n"),
        (['"""', "a", "", "  b", '"""', "c"], "a\n\n  b"),
        (['"""a', 'b"""', "c"], "a\nb"),
        (['"""a"""', "c"], "a"),
        (['"""', "a"], "a"),  # what was typed is not lost
        ([], None),
    ],
)
def test_lines_become_a_message(lines, message):
    left = iter(lines)
    assert assembled(lambda prompt: next(left, None)) == message


@pytest.mark.parametrize(
    ("encoding", "typed", "text"),
    [("latin-1", b"caf\xe9", "café"), ("cp1252", b"5 \x80", "5 €"), ("latin-1", "é".encode(), "é")],
)
def test_what_is_typed_is_utf8_or_else_what_the_terminals_locale_says(
    monkeypatch, encoding, typed, text
):
    monkeypatch.setattr(locale, "getencoding", lambda: encoding)
    assert as_typed(typed.decode(errors="surrogateescape")) == text


def test_what_is_neither_utf8_nor_of_the_locale_is_refused(monkeypatch):
    for encoding in ("utf-8", "ascii"):
        monkeypatch.setattr(locale, "getencoding", lambda found=encoding: found)
        with pytest.raises(ValueError, match="the message is not UTF-8"):
            as_typed(b"caf\xe9".decode(errors="surrogateescape"))


def test_history_is_kept_between_sessions(tmp_path):
    file = tmp_path / "state" / "history.jsonl"
    assert read_history(file) == []
    for text in ("one", "two\nlines é", "three\u2028"):
        keep_history(file, text)
    with file.open("ab") as more:
        more.write(b"\xff{\n5\n")
    assert read_history(file) == ["one", "two\nlines é", "three\u2028"]
    assert file.stat().st_mode & 0o077 == 0
    keep_history(None, "nowhere")
    assert read_history(None) == []
