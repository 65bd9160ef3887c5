"""A run of bench: what it keeps when it ends early, whom it does without, repeats."""

import contextlib
import json
import os
import subprocess

import pytest

from bench import against, command, lock, options, record
from bench.models import Model
from bench.shapes import SHAPES


@pytest.fixture(autouse=True)
def all_cores(monkeypatch):
    monkeypatch.setattr("os.sched_setaffinity", lambda process, cores: None)


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


def ended(
    tmp_path, monkeypatch, ends, shapes="tiny", more="", unloaded=None, unwritten=(), peers=()
):
    """What a run of nine rounds exits with, and its file, if `ends` comes at the last shape.

    Of the peers transformers alone is here: it is not loaded, or its format not written, if said.
    Otherwise `peers` are here.
    """
    prepared = []

    def prepare(name, checkpoint, dtype, formats, work):
        prepared.append(name)
        if formats & set(unwritten):
            raise RuntimeError(f"{name} as hf could not be written")
        return Model(name, tmp_path, "float32", SHAPES[name])

    @contextlib.contextmanager
    def running(given, logs):
        last, failed = prepared[-1] == shapes.split(",")[-1], unloaded or {}
        yield (
            {name: Standing(ends if last else None) for name in given if name not in failed},
            failed,
        )

    here = ("llama_jax", "transformers") if unloaded or unwritten else ("llama_jax", *peers)
    replaced = {
        "running": running,
        "prepared": prepare,
        "check_space": lambda work, needed: None,
        "absent": lambda name, *others: None if name in here else "not here",
        "versions": lambda names: {},
        "first_tokens": lambda given, prompt, rounds: iter(
            [({name: {"cold": [1.0] * (i + 1)} for name in given}, {}) for i in range(rounds)]
        ),
    }
    for name, value in replaced.items():
        monkeypatch.setattr(command, name, value)
    output = tmp_path / "result.json"
    given = f"--rounds 9 --work {tmp_path} {more}" + (
        "" if "--docs" in more else f" --shapes {shapes}"
    )
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
    assert set(measures) == {"decode 1", "decode 8", "prefill", "bandwidth 1", "bandwidth 8"}
    assert all(values == [2.0] * 2 for values in measures.values())
    assert len(result["models"]["tiny"]["rates"]["machine"]["bandwidth 1"]) == 4  # around each
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
    def full(path, result):
        raise OSError("no space left on device")

    monkeypatch.setattr(record, "keep", full)
    (tmp_path / "result.json").write_text("{}")
    code, _ = ended(tmp_path, monkeypatch, None)
    assert "no space left" in code
    assert "**tiny**" in capsys.readouterr().out


def test_a_result_is_whole_while_the_next_is_written(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    record.keep(path, {"round": 1})
    with pytest.raises(TypeError):
        record.keep(path, {"round": object()})

    def ends(partial, path):
        raise KeyboardInterrupt

    monkeypatch.setattr(record.os, "replace", ends)
    with pytest.raises(KeyboardInterrupt):
        record.keep(path, {"round": 2})
    assert json.loads(path.read_text()) == {"round": 1}


def test_a_run_goes_on_without_a_peer_that_does_not_load(tmp_path, monkeypatch, capsys):
    failed = {"transformers": "ImportError: no libtorch"}
    code, result = ended(tmp_path, monkeypatch, None, shapes="tiny,S", unloaded=failed)
    assert code == 0
    lines = [f"transformers ({name}): ImportError: no libtorch" for name in ("tiny", "S")]
    assert [line for line in result["absent"] if line.startswith("transf")] == lines
    for name, one in result["models"].items():
        assert set(one["rates"]) == {"llama_jax", "machine"}, name
        assert set(one["first_tokens"]) == {"llama_jax"}
    assert f"\nNot here: {lines[0]}.\n" in capsys.readouterr().out


def test_a_run_goes_on_without_a_peer_whose_model_is_not_written(tmp_path, monkeypatch):
    code, result = ended(tmp_path, monkeypatch, None, unwritten=["hf"])
    assert code == 0
    assert "transformers (tiny): tiny as hf could not be written" in result["absent"]


def test_models_without_room_are_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "unwritten_bytes", lambda *given: 10**18)
    more = ["--work", str(tmp_path)]
    for given in (["--shapes", "tiny", "--contestants", "llama_jax"], ["--slots"]):
        monkeypatch.setattr(options, "check_files", lambda found: None)
        with pytest.raises(SystemExit, match="make room"):
            command.main([*given, *more, "--output", str(tmp_path / "x.json")])
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_a_table_in_the_document_has_its_numbers_beside_it(tmp_path, monkeypatch, capsys):
    document = tmp_path / "bench.md"
    document.write_text("<!-- bench cpu-float32 -->\n<!-- end of bench cpu-float32 -->\n")
    for module in (command, options):
        monkeypatch.setattr(module, "DOCUMENT", document)
    monkeypatch.setattr(record, "PUBLISHED", tmp_path / "bench")
    code, result = ended(tmp_path, monkeypatch, None, shapes="S,M", more="--docs")
    assert code == 0
    assert "| llama_jax | 2.00" in document.read_text()
    published = tmp_path / "bench" / "cpu-float32.json"
    assert json.loads(published.read_text()) == result
    assert against.ratios(against.read(published)) == {}  # of one contestant
    monkeypatch.setattr(record, "LARGEST", 10)
    said = record.publish(tmp_path / "bench", "cpu-float32", result)
    assert "too many" in said
    assert not published.exists()


def test_a_command_is_shown_as_anybody_can_repeat_it():
    inside = f"--against={record.PUBLISHED / 'x.json'}"
    shown = record.command(["--docs", "--llama2c", "/tmp/llama2c/run", inside, "--shapes", "S,M"])
    expected = "--docs --llama2c run --against=docs/notes/bench/x.json --shapes S,M"
    assert shown == f"python -m bench {expected}"


def contest(**prefill):
    """A result whose ratio to the peer is that of the two rates."""
    names = ("llama_jax", "transformers")
    machine = {f"bandwidth {batch}": [1e9] for batch in (1, 8)} | {"matrix float32": [1e9]}
    rates = {name: {"prefill": [prefill[name]]} for name in names} | {"machine": machine}
    one = {"config": SHAPES["tiny"].to_json(), "prefill": 64, "rates": rates}
    one["memory"] = {name: {"loaded_bytes": 0, "peak_bytes": 4} for name in names}
    one["first_tokens"] = {name: {"cold": [1.0], "peak": [4]} for name in names}
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
    peak = "peak resident, first token"
    assert f"| tiny: llama_jax / transformers, {peak} | 1.00 | 1.00 | 1.00 |" in shown
    worst = "rates differ by at most 10.0 % (tiny: llama_jax / transformers, prefill 64)"
    assert f"Against the run of today {worst}, first tokens by at most 0.0 % (" in shown
    assert "), memory by at most 0.0 % (" in shown


def test_a_run_shows_how_well_it_repeats_beside_its_table(tmp_path, monkeypatch, capsys):
    (tmp_path / "old.json").write_text(json.dumps(contest(llama_jax=3, transformers=1)))
    monkeypatch.setattr(against, "comparison", lambda now, before: f"{len(now)} {before['date']}")
    more = f"--against {tmp_path / 'old.json'}"
    code, result = ended(tmp_path, monkeypatch, None, more=more, peers=["transformers"])
    assert code == 0
    assert "| llama_jax | 2.00" in (shown := capsys.readouterr().out)
    assert shown.endswith(f"{len(result)} today\n")


@pytest.mark.parametrize(
    ("more", "peers", "why"),
    [
        ("", [], "transformers: not here"),
        ("--contestants llama_jax,llama.cpp", ["llama.cpp"], "none of these models"),
    ],
    ids=["not installed", "left out"],
)
def test_a_repeat_without_the_earlier_runs_peers_is_refused_before_it_is_measured(
    tmp_path, monkeypatch, more, peers, why
):
    (tmp_path / "old.json").write_text(json.dumps(contest(llama_jax=3, transformers=1)))
    monkeypatch.setattr(command, "absent", lambda name, *of: None if name in peers else "not here")
    given = f"--against {tmp_path}/old.json --shapes tiny --work {tmp_path}/work {more}"
    with pytest.raises(SystemExit, match=f"no peer of the earlier run takes part .*{why}"):
        command.main(given.split())
    assert not list((tmp_path / "work").glob("*.json"))


def test_runs_that_are_no_repeat_of_one_another_are_not_compared(tmp_path):
    earlier = contest(llama_jax=3, transformers=1)
    with pytest.raises(ValueError, match="gpu in bfloat16"):
        against.check_alike(earlier, "gpu", "bfloat16", ["tiny"])
    with pytest.raises(ValueError, match="no model in common"):
        against.check_alike(earlier, "cpu", "float32", ["S"])
    assert "no ratio in common" in against.comparison(earlier, {**earlier, "models": {}})
    with pytest.raises(ValueError, match="is not there; pass the JSON"):
        against.read(tmp_path / "x.json")
    for text in ("{", "[]", '{"milliseconds": {}}', json.dumps({**earlier, "models": {"S": {}}})):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ValueError, match="holds no contest"):
            against.read(tmp_path / "x.json")


def test_two_runs_do_not_share_a_folder(tmp_path):
    with lock.held(tmp_path / "work", "python -m bench --quick"):
        mine = rf"process {os.getpid()} \(python -m bench --quick, since \d\d:\d\d\)"
        with pytest.raises(RuntimeError, match=mine), lock.held(tmp_path / "work", "another"):
            pass
        with pytest.raises(SystemExit, match=mine):
            command.main(["--work", str(tmp_path / "work")])
    with lock.held(tmp_path / "work", "another"):
        pass


def test_a_result_names_its_commit_and_whether_the_code_is_still_that(tmp_path):
    assert record.source(tmp_path) == {"commit": None, "changed": None}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "bench").mkdir()
    for text, changed in (("a", False), ("b", True)):
        (tmp_path / "bench" / "x.py").write_text(text)
        if not changed:
            for arguments in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "x"]):
                subprocess.run([*git, *arguments], check=True)
        found = record.source(tmp_path)
        assert (len(found["commit"]), found["changed"]) == (40, changed)
        assert record.shown(found).endswith("with changes") == changed
