"""The lock of a directory that is being written: a failure at its very start holds nothing."""

import os
from pathlib import Path

import pytest

from llama_jax.checkpoint.files.atomic import whole_directory


def written(to, text):
    with whole_directory(to) as partial:
        (partial / "file").write_text(text)


@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_a_call_that_fails_at_the_start_leaves_nothing_and_holds_no_lock(
    call, tmp_path, monkeypatch
):
    to, failed, real = tmp_path / "model", [], getattr(os, call)

    def once(*given, **more):
        if not failed:
            failed.append(call)
            raise OSError(5, "Input/output error")
        return real(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, once)
        with pytest.raises(OSError, match="Input/output error"):
            written(to, "first")
    assert failed == [call]
    assert list(tmp_path.iterdir()) == []
    written(to, "second")  # in the same process, which would wait for itself
    assert (to / "file").read_text() == "second"
    assert [one.name for one in tmp_path.iterdir()] == ["model"]


def test_a_folder_that_vanishes_meanwhile_is_an_error(tmp_path, monkeypatch):
    real = os.mkdir

    def mkdir(path, *more):
        if str(path).endswith(".partial"):
            os.rmdir(tmp_path / "above")
        real(path, *more)

    monkeypatch.setattr(os, "mkdir", mkdir)
    with pytest.raises(FileNotFoundError, match=r"\.model\.partial"):
        written(tmp_path / "above" / "model", "first")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="this system has no /proc")
def test_a_file_system_that_makes_no_folders_is_an_error():
    with pytest.raises(OSError, match=r"/proc/\.model\.partial"):
        written(Path("/proc/model"), "first")
