"""`llama-jax train` begins again with huge pages, once."""

import os
import subprocess
import sys

import pytest

from llama_jax.cli import huge_pages


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """What is executed, on a system that offers huge pages to who asks."""
    offer = tmp_path / "enabled"
    offer.write_text("always [madvise] never\n")
    monkeypatch.setattr(huge_pages, "OFFER", offer)
    monkeypatch.delenv(huge_pages.TUNABLES, raising=False)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-X", "utf8", "-m", "llama_jax", "train", "r"])
    calls = []
    monkeypatch.setattr(os, "execve", lambda *call: calls.append(call))
    return calls


def test_the_same_command_begins_again_and_asks_for_huge_pages(begun):
    huge_pages.begin_with_huge_pages()
    [(program, arguments, environment)] = begun
    assert program == sys.executable
    assert arguments == [sys.executable, "-X", "utf8", "-m", "llama_jax", "train", "r"]
    assert environment == {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def test_tunables_that_are_set_stay_as_they_are(begun, monkeypatch):
    monkeypatch.setenv(huge_pages.TUNABLES, "glibc.malloc.arena_max=2")
    huge_pages.begin_with_huge_pages()
    assert begun == []


@pytest.mark.parametrize("offer", ["[always] madvise never", "always madvise [never]", None])
def test_where_asking_changes_nothing_nothing_begins_again(begun, monkeypatch, tmp_path, offer):
    file = tmp_path / "other"
    if offer is not None:
        file.write_text(offer)
    monkeypatch.setattr(huge_pages, "OFFER", file)
    huge_pages.begin_with_huge_pages()
    assert begun == []


def test_only_training_begins_again(begun, monkeypatch):
    from llama_jax.__main__ import main

    monkeypatch.setattr(sys, "argv", ["llama-jax", "--version"])
    with pytest.raises(SystemExit):
        main()
    assert begun == []
    monkeypatch.setattr(sys, "argv", ["llama-jax", "train", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert len(begun) == 1


def test_a_process_that_begins_again_does_what_was_asked(tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != huge_pages.TUNABLES}
    command = [sys.executable, "-m", "llama_jax", "train", str(tmp_path / "no recipe.toml")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'no recipe.toml'}: No such file or directory\n"
