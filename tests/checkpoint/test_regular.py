"""A pipe, or a folder, in place of a file is refused at once, by whatever reads such a file."""

import os
import signal
import socket

import pytest

import llama_jax
from llama_jax.checkpoint.files import regular, torch_archive, torch_file
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.tokenizer import folder

READERS = {
    "a state dict": torch_file.read_state_dict,
    "its kind": torch_file.is_torch_file,
    "its sums": torch_archive.check_sums,
    "safetensors": read_safetensors,
    "a tokenizer": llama_jax.load_tokenizer,
    "a model": llama_jax.load,
    "what lies beside a tokenizer": folder.read_bounded,
}


@pytest.fixture
def at_once():
    """What is in this test fails where it waits for five seconds."""

    def late(*_):
        raise AssertionError("it waits for a pipe's other end")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_pipe_is_refused_and_not_opened(tmp_path, reader, at_once):
    os.mkfifo(tmp_path / "file")
    with pytest.raises((ValueError, FileNotFoundError), match=r"file is (a|no) .*(pipe|regular)"):
        reader(tmp_path / "file")


def test_a_pipe_that_takes_a_files_place_meanwhile_is_not_waited_for(
    tmp_path, monkeypatch, at_once
):
    (tmp_path / "file").write_bytes(b"")
    looked = os.stat(tmp_path / "file")
    (tmp_path / "file").unlink()
    os.mkfifo(tmp_path / "file")
    monkeypatch.setattr(regular.os, "stat", lambda path: looked)
    regular.open_regular(tmp_path / "file").close()


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model"])
def test_a_tokenizer_is_no_pipe_whatever_it_is_called(tmp_path, name, at_once):
    os.mkfifo(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        llama_jax.load_tokenizer(tmp_path)


def test_a_socket_is_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as here:
        here.bind("socket")
        with pytest.raises(ValueError, match="socket is a pipe, a socket or a device; pass"):
            llama_jax.load("socket")


def test_a_tokenizer_has_a_size(tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_bytes(b"{")
    os.truncate(file, folder.MAX_TOKENIZER_BYTES + 1)
    with pytest.raises(ValueError, match="more than 67,108,864 bytes; it is not a tokenizer's"):
        llama_jax.load_tokenizer(file)
