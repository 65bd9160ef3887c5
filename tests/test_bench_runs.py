"""A run of tools/bench.py: what it refuses, what it keeps when it ends early, its comparison."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys

import pytest
from benchmarks import against, command, first_token, lock, options, record
from benchmarks.models import Model
from benchmarks.shapes import SHAPES


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
    monkeypatch.setattr(options.subprocess, "run", lambda *given, **others: failed)
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
    assert command._effort(found, found.names[0]) == command.OTHERS[False]


def test_the_file_is_named_for_the_run(tmp_path):
    runs = "--quick", "--dtype bfloat16", f"--checkpoint {tmp_path}"
    assert [settled(*given.split()).output.name.rsplit("-", 2)[0] for given in runs] == [
        "cpu-float32-quick-S+M",
        "cpu-bfloat16-full-S+M",
        f"cpu-float32-full-checkpoint-{tmp_path.name}",
    ]


class Standing:
    """A worker that measures nothing; in its third round `ends` is raised."""

    def __init__(self, ends):
        self.ready = {"seconds": 1.0, "loaded_bytes": 5, "build": None}
        self.prefills, self.ends = 0, ends

    def ask(self, do, prompts=(), new=0, **others):
        self.prefills += do == "prefill"
        if self.prefills == 4 and self.ends:  # one was before the rounds
            raise self.ends
        tokens = [[7] * new for _ in prompts]
        return {"tokens": tokens, "rate": 2.0, "bytes": 9, "logits": [0.0, 1.0]}


def ended(tmp_path, monkeypatch, ends, shapes="tiny", more=""):
    """What a run of nine rounds exits with, and its file, if `ends` comes at the last shape."""
    prepared = []

    def prepare(name, *others):
        prepared.append(name)
        return Model(name, tmp_path, "float32", SHAPES[name])

    @contextlib.contextmanager
    def running(given, logs):
        last = prepared[-1] == shapes.split(",")[-1]
        yield {name: Standing(ends if last else None) for name in given}

    monkeypatch.setattr(command, "running", running)
    monkeypatch.setattr(command, "prepared", prepare)
    monkeypatch.setattr(command, "first_tokens", lambda given, prompt, count: {})
    output = tmp_path / "result.json"
    given = f"--shapes {shapes} --contestants llama_jax --rounds 9 --work {tmp_path} {more}"
    code = 0
    try:
        command.main([*given.split(), "--output", str(output)])
    except SystemExit as error:
        code = error.code
    return code, json.loads(output.read_text())


def test_an_interrupted_run_shows_the_rounds_that_are_whole(tmp_path, monkeypatch, capsys):
    code, result = ended(tmp_path, monkeypatch, KeyboardInterrupt())
    assert code == 130
    assert result["unfinished"] == "interrupted"
    measures = result["models"]["tiny"]["rates"]["llama_jax"]
    assert measures == {"decode 1": [2.0] * 2, "decode 8": [2.0] * 2, "prefill": [2.0] * 2}
    shown = capsys.readouterr().out
    assert shown.startswith("**Unfinished:** interrupted\n")
    assert "| llama_jax | 2.00" in shown


def test_a_peer_that_fails_at_one_model_leaves_the_models_before_it(tmp_path, monkeypatch, capsys):
    fails = RuntimeError("peer: it ended with 1\nits log")
    code, result = ended(tmp_path, monkeypatch, fails, shapes="tiny,S")
    assert code == "error: peer: it ended with 1\nits log"
    rates = {name: one["rates"]["llama_jax"] for name, one in result["models"].items()}
    assert {name: len(own["prefill"]) for name, own in rates.items()} == {"tiny": 9, "S": 2}
    assert "**tiny**" in capsys.readouterr().out


def test_a_result_that_cannot_be_written_is_still_printed(tmp_path, monkeypatch, capsys):
    def full(options, result):
        raise OSError("no space left on device")

    monkeypatch.setattr(command, "_keep", full)
    (tmp_path / "result.json").write_text("{}")
    code, _ = ended(tmp_path, monkeypatch, None)
    assert "no space left" in code
    assert "**tiny**" in capsys.readouterr().out


def contest(**prefill):
    """A result whose ratio to the peer is that of the two rates."""
    names = ("llama_jax", "transformers")
    machine = {f"bandwidth {batch}": [1e9] for batch in (1, 8)} | {"matrix float32": [1e9]}
    rates = {name: {"prefill": [prefill[name]]} for name in names} | {"machine": machine}
    held = {"loaded_bytes": 0, "peak_bytes": 4}
    one = {"config": SHAPES["tiny"].to_json(), "prefill": 64, "rates": rates, "first_tokens": {}}
    one["memory"] = dict.fromkeys(names, held)
    machine = {"device": "cpu"}
    return {"date": "today", "dtype": "float32", "machine": machine, "models": {"tiny": one}}


def test_a_repeat_is_judged_by_its_ratios(tmp_path, capsys):
    files = [tmp_path / "new.json", tmp_path / "old.json"]
    both = [contest(llama_jax=33, transformers=10), contest(llama_jax=6, transformers=2)]
    for path, result in zip(files, both, strict=True):
        path.write_text(json.dumps(result))
    command.main(["--compare", str(files[0]), "--against", str(files[1])])
    shown = capsys.readouterr().out
    assert "| tiny: llama_jax / transformers, prefill 64 | 3.00 | 3.30 | 1.10 |" in shown
    assert "| tiny: llama_jax / transformers, peak in all | 1.00 | 1.00 | 1.00 |" in shown
    assert "the largest difference is 10.0 % (tiny: llama_jax / transformers, prefill 64)" in shown


def test_a_run_shows_how_well_it_repeats_beside_its_table(tmp_path, monkeypatch, capsys):
    (tmp_path / "old.json").write_text(json.dumps(contest(llama_jax=3, transformers=1)))
    monkeypatch.setattr(against, "comparison", lambda now, before: f"{len(now)} {before['date']}")
    more = f"--against {tmp_path / 'old.json'}"
    code, result = ended(tmp_path, monkeypatch, None, more=more)
    assert code == 0
    assert "| llama_jax | 2.00" in (shown := capsys.readouterr().out)
    assert shown.endswith(f"{len(result)} today\n")


def test_runs_that_are_no_repeat_of_one_another_are_not_compared(tmp_path):
    earlier = contest(llama_jax=3, transformers=1)
    with pytest.raises(ValueError, match="gpu in bfloat16"):
        against.check_alike(earlier, "gpu", "bfloat16", ["tiny"])
    with pytest.raises(ValueError, match="no model in common"):
        against.check_alike(earlier, "cpu", "float32", ["S"])
    assert "no ratio in common" in against.comparison(earlier, {**earlier, "models": {}})
    for text in ("{", "[]", '{"milliseconds": {}}', json.dumps({**earlier, "models": {"S": {}}})):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="holds no contest"):
            against.read(tmp_path / "x.json")


def test_two_runs_do_not_share_a_folder(tmp_path):
    with lock.held(tmp_path / "work", "python tools/bench.py --quick"):
        mine = rf"process {os.getpid()} \(python tools/bench.py --quick, since \d\d:\d\d\)"
        with pytest.raises(RuntimeError, match=mine), lock.held(tmp_path / "work", "another"):
            pass
        with pytest.raises(SystemExit, match=mine):
            command.main(["--work", str(tmp_path / "work")])
    with lock.held(tmp_path / "work", "another"):
        pass


def test_a_result_names_its_commit_and_whether_the_code_is_still_that(tmp_path):
    assert record.source(tmp_path) == {"commit": None, "changed": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "tools").mkdir()
    for text, changed in (("a", False), ("b", True)):
        (tmp_path / "tools" / "x.py").write_text(text)
        if not changed:
            for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
                subprocess.run([*git, *arguments], check=True)
        found = record.source(tmp_path)
        assert (len(found["commit"]), found["changed"]) == (40, changed)
        assert record.shown(found).endswith("with changes") == changed


def test_a_process_without_a_first_token_says_why(tmp_path, monkeypatch):
    program = [sys.executable, "-c", "import sys; sys.exit('no such weights')"]
    monkeypatch.setattr(first_token, "_command", lambda *given: program)
    given = {"llama_jax": {"device": "cpu", "threads": 1}}
    with pytest.raises(RuntimeError, match=r"(?s)no first token.*no such weights"):
        first_token.first_tokens(given, [1, 2, 3], 1)
