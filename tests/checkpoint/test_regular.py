"""A pipe, or a folder, in place of a file is refused at once, by whatever reads such a file."""

import os
import re
import shutil
import signal
import socket
from pathlib import Path

import pytest
from small_tokenizers import sentencepiece_file

import llama_jax
from llama_jax.checkpoint.files import regular, torch_archive, torch_file
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.reading import open_checkpoint
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
    monkeypatch.setattr(regular.os, "stat", lambda path, **_: looked)
    regular.open_regular(tmp_path / "file").close()


def a_pipe(place):
    os.mkfifo(place)


def a_folder(place):
    place.mkdir()


def a_device(place):
    place.symlink_to("/dev/null")


def a_link_to_nothing(place):
    place.symlink_to("gone")


def a_link_to_itself(place):
    place.symlink_to(place.name)


IN_PLACE = [a_pipe, a_folder, a_device, a_link_to_nothing, a_link_to_itself]


@pytest.mark.parametrize("put", IN_PLACE)
@pytest.mark.parametrize("name", ["tokenizer.json", *folder.FILES])
def test_what_is_no_file_of_a_tokenizer_is_named(tmp_path, name, put, at_once):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file())
    (tmp_path / name).unlink(missing_ok=True)
    if name == folder.TEMPLATES and put is a_folder:
        a_folder(tmp_path / name)
        name += "/rag.jinja"
    put(tmp_path / name)
    said = rf"{re.escape(name)} is (a folder, a pipe|a link to a file|no folder of chat)"
    with pytest.raises(ValueError, match=said):
        llama_jax.load_tokenizer(tmp_path)


@pytest.mark.parametrize("put", IN_PLACE)
@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("golden/hf/llama2", "config.json"),
        ("golden/meta/llama3", "params.json"),
        ("native", "checkpoint.json"),
        ("golden/hf/llama2", "generation_config.json"),
        ("golden/hf/llama2", "tokenizer.json"),
    ],
)
def test_what_is_no_file_of_a_checkpoint_is_named(tmp_path, folder, name, put, at_once):
    if folder == "native":
        (tmp_path / "m" / "weights").mkdir(parents=True)
    else:
        shutil.copytree(Path(__file__).parents[1] / folder, tmp_path / "m")
        (tmp_path / "m" / "tokenizer.model").write_bytes(sentencepiece_file())
    (tmp_path / "m" / name).unlink(missing_ok=True)
    put(tmp_path / "m" / name)
    said = rf"{re.escape(name)} is (a folder, a pipe|a link to a file that is not)"
    with pytest.raises(ValueError, match=said):
        open_checkpoint(tmp_path / "m")


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
