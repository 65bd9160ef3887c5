"""The options of bench: what they mean, and what is refused before anything runs."""

import importlib.util
import subprocess

import pytest

from bench import card, command, options


@pytest.fixture(autouse=True)
def all_cores(monkeypatch):
    monkeypatch.setattr("os.sched_setaffinity", lambda process, cores: None)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("--contestants llama_jax,vllm", "'vllm' is unknown"),
        ("--contestants llama.cpp", "add it to --contestants"),
        ("--rounds 0", "must be at least 1"),
        ("--threads 1000", "must be from 1 to"),
        ("--llama2c no/such/program", "is no program"),
        ("--llama2c /tmp", "is no program"),
        ("--shapes XXL", "'XXL' is unknown"),
        ("--shapes tiny,XXL", "'XXL' is unknown"),
        ("--checkpoint no/such/folder", "is no directory"),
        ("--output no/such/folder/result.json", "no folder no/such/folder"),
        ("--output /dev/full", "no regular file"),
        ("--docs --slots --dtype bfloat16", "bench slots-cpu-bfloat16 -->"),
        ("--slots --checkpoint .", "--checkpoint does not go with --slots"),
        ("--slots --shapes tiny", "--shapes does not go with --slots"),
        ("--slots --contestants llama_jax", "--contestants does not go with --slots"),
        ("--checkpoint . --shapes tiny", "--shapes does not go with --checkpoint"),
        ("--docs --checkpoint .", "--checkpoint does not go with --docs"),
        ("--docs --shapes tiny", "--shapes does not go with --docs"),
        ("--docs --contestants llama_jax", "--contestants does not go with --docs"),
        ("--compare a.json --against b.json --rounds 2", "--rounds does not go with --compare"),
        ("--compare a.json", "name the earlier one"),
        ("--against no/such/file.json", "no/such/file.json"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(arguments, error, tmp_path):
    with pytest.raises(SystemExit, match=error):
        command.main([*arguments.split(), "--work", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_plot_without_matplotlib_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="matplotlib"):
        command.main(["--slots", "--work", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_gpu_that_is_not_there_is_one_line(monkeypatch):
    failed = subprocess.CompletedProcess(
        [], 1, "", "Traceback\n  many lines\nRuntimeError: no cuda\n"
    )
    monkeypatch.setattr(card.subprocess, "run", lambda *given, **others: failed)
    with pytest.raises(SystemExit) as refused:
        command.main(["--device", "gpu"])
    assert "no GPU here (RuntimeError: no cuda)" in refused.value.code
    assert "\n" not in refused.value.code


def settled(*arguments):
    found = options.parser().parse_args(arguments)
    options.settle(found)
    return found


def test_names_may_stand_behind_blanks():
    found = settled("--contestants", "llama_jax, llama.cpp", "--shapes", "tiny, tiny")
    assert (found.contestants, found.names) == (["llama_jax", "llama.cpp"], ["tiny"])


def test_llama2cs_program_is_found_beside_us(tmp_path, monkeypatch):
    """A name without a slash is looked up in PATH by whoever starts it."""
    (tmp_path / "run").touch(0o755)
    monkeypatch.chdir(tmp_path)
    assert settled("--llama2c", "run").llama2c == str(tmp_path / "run")


def test_a_checkpoint_named_as_a_shape_is_none(tmp_path, monkeypatch):
    (tmp_path / "M").mkdir()
    found = settled("--checkpoint", str(tmp_path / "M"))
    assert found.names == ["checkpoint-M"]
    assert command.effort_of(found, found.names[0]) == command.OTHERS[False]


def test_the_file_is_named_for_the_run(tmp_path):
    runs = "--quick", "--dtype bfloat16", f"--checkpoint {tmp_path}"
    assert [settled(*given.split()).output.name.rsplit("-", 2)[0] for given in runs] == [
        "cpu-float32-quick-S+M",
        "cpu-bfloat16-full-S+M",
        f"cpu-float32-full-checkpoint-{tmp_path.name}",
    ]


def test_a_file_that_could_not_take_the_place_of_another_is_refused(tmp_path, monkeypatch):
    output = tmp_path / "result.json"
    output.touch()
    denied = set()
    monkeypatch.setattr(options.os, "access", lambda path, mode: path not in denied)
    assert settled("--output", str(output)).output == output
    for path in (output, tmp_path):
        denied = {path}
        with pytest.raises(ValueError, match="may not be written"):
            settled("--output", str(output))
