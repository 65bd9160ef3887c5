"""bench: its processes, what they are asked, and what becomes of one that fails."""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import llama_jax
from bench import agreement, first_token, workers
from bench.contestant import Loading, Run
from bench.effort import Effort, prompts
from bench.entrants import absent, versions
from bench.models import Model
from bench.shapes import SHAPES
from bench.worker import MACHINE, TIMES, answered
from llama_jax.weights.by_outputs import ByOutputs
from llama_jax.weights.params import weight_at

BENCH = [sys.executable, "-m", "bench"]


def test_who_cannot_take_part_says_why(monkeypatch):
    c = SHAPES["tiny"]
    assert absent("llama_jax", c, "float32", "cpu", None) is None
    assert "cpu alone" in absent("llama.cpp", c, "float32", "gpu", None)
    assert "--llama2c" in absent("llama2.c", c, "float32", "cpu", None)
    assert "float32" in absent("llama2.c", c, "bfloat16", "cpu", "run")
    assert "epsilon" in absent("llama2.c", c.replace(norm_eps=1e-6), "float32", "cpu", "run")
    assert absent("llama2.c", c, "float32", "cpu", "run") is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "and torch are not installed" in absent("transformers", c, "float32", "cpu", None)


def test_a_module_without_metadata_has_no_version(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.version", missing)
    assert set(versions(["llama.cpp"]).values()) == {"of an unknown version"}


def test_our_worker_measures_what_generate_writes(tmp_path):
    from bench.ours import load

    native = tmp_path / "native"
    llama_jax.save(llama_jax.init_params(jax.random.key(0), SHAPES["tiny"]), native)
    ours = load(Loading(native, "float32", "cpu", threads=2, contexts={1: 64, 8: 64}))
    rows = prompts(Model("tiny", native, "float32", SHAPES["tiny"]), 16, 8)
    answer = answered(ours, {"do": "decode", "prompts": rows, "new": 6})
    written = llama_jax.generate(ours.params, rows, max_new_tokens=6, temperature=0, stop_ids=())
    assert answer["tokens"] == [done.tokens for done in written]
    assert answer["rate"] > 0
    wq = ("layers_0", "attention", "wq")
    assert isinstance(weight_at(ours.params.weights, wq), ByOutputs), "of a batch"
    assert answered(ours, {"do": "prefill", "prompt": rows[0]})["rate"] > 0
    assert isinstance(weight_at(ours.params.weights, wq), jax.Array), "of one row"
    assert answered(ours, {"do": "store", "rows": 8}) == {}
    assert isinstance(weight_at(ours.params.weights, wq), ByOutputs)
    assert (
        np.argmax(answered(ours, {"do": "logits", "prompt": rows[0]})["logits"])
        == (written[0].tokens[0])
    )
    with pytest.raises(ValueError, match="came at once"):
        answered(ours, {"do": "decode", "prompts": rows[:1], "new": 1})
    with pytest.raises(ValueError, match="'sing'"):
        answered(ours, {"do": "sing"})


class Unlucky:
    """A contestant whose decodings take the seconds given, one after the other."""

    def __init__(self, *seconds):
        self.seconds = list(seconds)

    def decode(self, prompts, new):
        return Run([[1] * new], new - 1, self.seconds.pop(0))


def test_a_decoding_without_a_time_is_measured_again():
    request = {"do": "decode", "prompts": [[1]], "new": 3}
    assert answered(Unlucky(0.5), request) == {"tokens": [[1] * 3], "rate": 4.0, "again": 0}
    assert answered(Unlucky(-0.1, 0.0, 0.5), request)["again"] == 2
    never = Unlucky(*[-0.1] * (TIMES + 1))
    with pytest.raises(ValueError, match="less busy"):
        answered(never, request)
    assert len(never.seconds) == 1


def played(monkeypatch, **programs):
    """Workers that run these programs in place of their own."""

    def command(name, given):
        return [sys.executable, "-c", programs[name]]

    monkeypatch.setattr(workers, "worker_command", command)
    return {name: {"device": "cpu", "threads": 1} for name in programs}


WELL = """
print("{}", flush=True)
while True:
    input()
    print('{"again": 1}', flush=True)
"""


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import os; os.kill(os.getpid(), 4)", "it ended with -4 (Illegal instruction)"),
        ("import os; os._exit(3)", "it ended with 3"),
        ("import time; time.sleep(600)", "it did not load within 0.05 minutes; its log is "),
    ],
)
def test_a_peer_that_does_not_load_is_left_out(program, reason, monkeypatch, tmp_path):
    monkeypatch.setattr(workers, "LIMIT", 3.0)
    given = played(monkeypatch, llama_jax=WELL, peer=program)
    with workers.running(given, tmp_path) as (found, failed):
        assert list(found) == ["llama_jax"]
        assert failed["peer"].startswith(reason)
        assert "\n" not in failed["peer"]


@pytest.mark.parametrize("name", ["llama_jax", MACHINE])
def test_we_must_load(name, monkeypatch, tmp_path):
    given = played(monkeypatch, **{name: "raise SystemExit('no weights')"})
    with pytest.raises(RuntimeError, match=f"{name}: no weights"), workers.running(given, tmp_path):
        pass


def test_a_worker_that_hangs_is_given_up(monkeypatch, tmp_path):
    program = "import time\nprint('{}', flush=True)\ninput()\ntime.sleep(600)"
    given = played(monkeypatch, llama_jax=program)
    with workers.running(given, tmp_path) as (found, _):
        monkeypatch.setattr(workers, "LIMIT", 0.2)
        with pytest.raises(
            workers.WorkerError, match=r"llama_jax: it did not decode .*llama_jax.log"
        ):
            found["llama_jax"].ask("decode")


def test_a_repeated_decoding_is_told(monkeypatch, tmp_path, capsys):
    with workers.running(played(monkeypatch, llama_jax=WELL), tmp_path) as (found, _):
        found["llama_jax"].ask("decode")
    assert "llama_jax: decode was measured 2 times" in capsys.readouterr().err


class Scripted:
    """A worker that computes zeros, or fails at what it is asked."""

    ready, stopped = {}, False

    def __init__(self, tmp_path, fails_at=None, logits=(0.0, 1.0)):
        self.log, self.fails_at, self.logits = tmp_path / "log", fails_at, logits
        self.log.write_text("")

    def ask(self, do, prompts=(), new=0, **others):
        if do == self.fails_at:
            raise workers.WorkerError("transformers", "it ended with -4", self.log)
        return {"tokens": [[0] * new for _ in prompts], "bytes": 1, "logits": list(self.logits)}

    def stop(self):
        self.stopped = True


@pytest.mark.parametrize("fails_at", ["decode", "prefill", "logits"])
def test_a_peer_that_fails_before_it_is_timed_is_left_out(fails_at, tmp_path):
    model, effort = Model("tiny", tmp_path, "float32", SHAPES["tiny"]), Effort(1, 8, 8, 0)
    both = {"llama_jax": Scripted(tmp_path), "transformers": Scripted(tmp_path, fails_at)}
    found, failed = agreement.outputs_of_all(both, model, effort)
    assert (list(found), failed) == (["llama_jax"], {"transformers": "it ended with -4"})
    assert both["transformers"].stopped
    with pytest.raises(workers.WorkerError):
        agreement.outputs_of_all({"llama_jax": both["transformers"]}, model, effort)


def test_a_peer_that_computes_another_model_ends_the_run(tmp_path):
    model, effort = Model("tiny", tmp_path, "float32", SHAPES["tiny"]), Effort(1, 8, 8, 0)
    both = {"llama_jax": Scripted(tmp_path), "transformers": Scripted(tmp_path, logits=(1.0, 0.0))}
    found, failed = agreement.outputs_of_all(both, model, effort)
    assert failed == {}
    with pytest.raises(ValueError, match="another model"):
        agreement.agreement(found, "float32", 8)


def test_a_process_without_a_first_token_says_why(tmp_path, monkeypatch):
    program = [sys.executable, "-c", "import sys; sys.exit('no such weights')"]
    monkeypatch.setattr(first_token, "start_command", lambda *given: program)
    given = {"llama_jax": {"device": "cpu", "threads": 1, "path": tmp_path}}
    with pytest.raises(RuntimeError, match=r"(?s)no first token.*no such weights"):
        next(first_token.first_tokens(given, [1, 2, 3], 1))


def test_first_tokens_come_in_rounds_and_without_a_peer_that_has_none(tmp_path, monkeypatch):
    program = "import sys; sys.exit('no such weights') if sys.argv[1] == 'peer' else print(7)"
    monkeypatch.setattr(
        first_token, "start_command", lambda name, *others: [sys.executable, "-c", program, name]
    )
    given = {
        name: {"device": "cpu", "threads": 1, "path": tmp_path}
        for name in ("llama_jax", "other", "peer")
    }
    rounds = [*first_token.first_tokens(given, [1, 2, 3], 3)]
    assert [len(times["other"]["cold"]) for times, _ in rounds] == [1, 2, 3]
    times, failed = rounds[-1]
    assert {name: set(own) for name, own in times.items()} == {
        "llama_jax": {"cold", "cached", "peak"},
        "other": {"cold", "peak"},
    }
    assert failed.keys() == {"peer"}
    assert "ended with 1" in failed["peer"]
    assert all(0 < seconds < 60 for seconds in times["other"]["cold"])
    assert all(2**20 < peak < 2**40 for peak in times["llama_jax"]["peak"])


def test_a_process_that_counts_follows_one_of_its_own_kind(monkeypatch):
    caches = []

    def started(name, given, prompt, here):
        caches.append(here)
        return first_token.Start(float(len(caches)), 4)

    monkeypatch.setattr(first_token, "started", started)
    found = first_token.one_round("llama_jax", {}, [1, 2, 3])
    assert found == {"cold": [2.0], "peak": [4], "cached": [3.0]}
    before, cold, cached = caches
    assert before != cold == cached, "and finds no programs of that one's"
    assert first_token.one_round("transformers", {}, [1, 2, 3]) == {"cold": [5.0], "peak": [4]}


def test_on_a_gpu_neither_we_nor_the_measure_of_the_machine_take_it_from_the_others():
    for name, wanted in (("llama_jax", "false"), (MACHINE, "false"), ("transformers", None)):
        found = workers.environment(name, "gpu", 2).get("XLA_PYTHON_CLIENT_PREALLOCATE")
        assert found == wanted


def test_a_process_that_hangs_before_its_first_token_is_ended(tmp_path, monkeypatch):
    program = [sys.executable, "-c", "import time; time.sleep(600)"]
    monkeypatch.setattr(first_token, "start_command", lambda *given: program)
    monkeypatch.setattr(first_token, "LIMIT", 0.2)
    given = {"llama_jax": {"device": "cpu", "threads": 1, "path": tmp_path}}
    with pytest.raises(RuntimeError, match="ended with -9"):
        next(first_token.first_tokens(given, [1, 2, 3], 1))


@pytest.mark.slow
def test_a_tiny_contest_from_end_to_end(tmp_path):
    """Ours alone, which is what a clone without the extra `bench` has."""
    output = tmp_path / "result.json"
    options = f"--quick --shapes tiny --contestants llama_jax --work {tmp_path} --output {output}"
    done = subprocess.run([*BENCH, *options.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rates = json.loads(output.read_text())["models"]["tiny"]["rates"]
    assert {len(values) for values in rates["llama_jax"].values()} == {2}
    read = {"bandwidth 1", "bandwidth 8"}
    assert set(rates["llama_jax"]) == {"decode 1", "decode 8", "prefill", *read}
    assert set(rates[MACHINE]) == {"matrix float32", *read}
    assert "| llama_jax |" in done.stdout
    assert "GFLOP/s" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama.cpp", "transformers"])
def test_a_peer_agrees_with_us_to_the_last_token(name, tmp_path):
    if reason := absent(name, SHAPES["tiny"], "float32", "cpu", None):
        pytest.skip(f"{name}: {reason}")
    output = tmp_path / "result.json"
    options = f"--quick --shapes tiny --contestants llama_jax,{name} --work {tmp_path}"
    subprocess.run([*BENCH, *options.split(), "--output", str(output)], check=True)
    found = json.loads(output.read_text())["models"]["tiny"]
    agreement = found["agreement"][name]
    assert agreement["tokens"] == agreement["of"]
    assert agreement["logits"] < 1e-4
    assert name != "llama.cpp" or found["memory"][name]["build"].startswith("ggml ")
