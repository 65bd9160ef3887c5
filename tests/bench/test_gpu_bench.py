"""The prepared minutes on a GPU: what ends a step leaves the others, and the dry run is whole."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from bench import gpu
from bench.gpu_steps import exact, report, runner, trace
from bench.gpu_steps.compiling import made_together
from bench.gpu_steps.plan import STEPS, Step, chosen
from bench.gpu_steps.sizes import heads_of_the_family, sizes_of
from llama_jax.config import Config
from llama_jax.ops import attention

TELLS = "import json, os, sys, time; print(json.dumps(['a', 1]), flush=True); "
CODES = {
    "killed": TELLS + "os.kill(os.getpid(), 9)",
    "fails": TELLS + "raise ValueError('why it fails')",
    "sleeps": TELLS + "time.sleep(60)",
    "in-part": TELLS + f"sys.exit({runner.IN_PART})",
    "works": TELLS + "print(json.dumps(['b', {'c': 2}]))",
}
STATES = {
    "killed": "ended by SIGKILL",
    "fails": "failed with 1",
    "sleeps": "ended at its limit of 1 s",
    "in-part": "done in part",
    "works": "done",
}


def ran(tmp_path, codes, *, seconds=600.0, limit=60.0, keep=lambda record: None):
    """The record of steps that run these programs; a step named `sleeps` has a second."""
    steps = [Step(name, "", 1.0 if name == "sleeps" else limit, "") for name in codes]
    record = {}
    runner.run_steps(
        steps,
        record,
        seconds=seconds,
        log=tmp_path / "log",
        keep=keep,
        command=lambda step, limit: [sys.executable, "-c", codes[step.name]],
        env=dict(os.environ),
    )
    return record["steps"]


def test_a_step_that_ends_badly_leaves_the_others_and_what_it_told(tmp_path):
    steps = ran(tmp_path, CODES)
    assert {name: step["status"] for name, step in steps.items()} == STATES
    assert all(step["found"]["a"] == 1 for step in steps.values())
    assert steps["works"]["found"] == {"a": 1, "b": {"c": 2}}
    assert "error" not in steps["works"]
    assert steps["fails"]["error"][-1] == "ValueError: why it fails"
    assert not any("=== " in line for step in steps.values() for line in step.get("error", ()))


def test_what_a_step_tells_is_kept_while_it_runs(tmp_path):
    seen = []
    keep = lambda record: seen.append(json.dumps(record["steps"]["works"]))  # noqa: E731
    ran(tmp_path, {"works": CODES["works"]}, keep=keep)
    running = [one for one in map(json.loads, seen) if one["status"] == "running"]
    assert [one["found"] for one in running] == [{}, {"a": 1}, {"a": 1, "b": {"c": 2}}]


def test_steps_for_which_no_time_is_left_are_recorded_as_not_run(tmp_path, monkeypatch):
    monkeypatch.setattr(runner, "LEAST", 0.5)
    steps = ran(tmp_path, {"sleeps": CODES["sleeps"], "works": CODES["works"]}, seconds=1.2)
    assert steps["sleeps"]["status"] == "ended at its limit of 1 s"
    assert steps["works"]["status"] == "not run"
    assert steps["works"]["found"] == {}


def test_what_a_step_started_ends_with_it(tmp_path):
    child = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', "
    child += "'import time; time.sleep(60)'], stdout=subprocess.DEVNULL); "
    child += "print('[\"pid\", %d]' % p.pid, flush=True); import time; time.sleep(60)"
    steps = ran(tmp_path, {"sleeps": child})
    end = time.monotonic() + 5
    while _runs(steps["sleeps"]["found"]["pid"]):
        assert time.monotonic() < end, "it still runs"


def _runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_the_parent_holds_no_card():
    code = "import sys; import bench.gpu; print({'jax', 'torch', 'numpy'} & {*sys.modules})"
    env = {**os.environ, "PYTHONPATH": str(runner.ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_steps_are_chosen_by_name_in_the_order_of_their_worth():
    assert [step.name for step in chosen(["golden", "card"])] == ["card", "golden"]
    assert chosen(None) == list(STEPS)
    with pytest.raises(ValueError, match="there is no step 'gold'; choose of card, "):
        chosen(["gold"])


def test_eight_minutes_begin_every_kind_of_result_but_the_engines_at_the_longest():
    modules = [step.module for step in STEPS]
    last = max(modules.index(module) for module in modules if module != "engine")
    assert sum(step.limit for step in STEPS[: last + 1]) <= 8 * 60


def test_what_is_made_together_fails_alone():
    gate = threading.Barrier(2)  # which no one passes alone

    def fails():
        gate.wait(60)
        raise ValueError("why it fails")

    made = made_together({"fails": fails, "works": lambda: gate.wait(60) is not None})
    assert made["works"].result()
    with pytest.raises(ValueError, match="why it fails"):
        made["fails"].result()


def test_every_step_is_a_module():
    names = [f"bench.gpu_steps.{step.module}" for step in STEPS]
    assert all(map(importlib.util.find_spec, names))


def test_the_table_of_a_whole_run_fits_a_screen():
    text = report.table(_whole_record())
    assert len(text.splitlines()) <= report.LINES
    assert max(map(len, text.splitlines())) <= report.WIDTH
    for wanted in ("8b 1 x 512", "1b 8 x 8192", "16384 tokens", "WRONG: a step", "0.80", "0.60"):
        assert wanted in text
    for wanted in (
        "int4 1 x 512 1,561 tokens/s (1.00 of bfloat16)",
        "51,000 tokens/s, 0.50 of",
        "256 x 256 + 256 3,210 tokens/s (aim 3,000), first token 4.5 s",
    ):
        assert wanted in text
    assert "more errors: see gpu.json" in text


def test_a_table_of_nothing_is_a_table():
    record = {"dry": False, "began": "now", "seconds": 0.0, "steps": {}}
    assert report.table(record).startswith("# no card, now")


def test_a_mistake_of_the_table_ends_nothing():
    assert "gpu.json has all" in gpu.shown({})


def _whole_record():
    """Of a run in which every part told all it can, and many failed."""
    ms = {"median": 5.123, "min": 5.012, "max": 5.456}
    memory = {"held": 16 << 30, "peak": 17 << 30, "predicted": 16 << 30}
    kernel = {"kernel": "k" * 70, "us": 1234.5, "launches": 32.0, "share": 0.5}
    gaps = {"launches": 712.5, "small_gaps_us": 812.3, "host_gaps_us": 123.4}
    decoded = {"step_ms": ms, "tokens/s": 1561.2, "bytes/s": 2.5e12, "memory": memory}
    read = {"ms": ms, "tokens/s": 1e5, "flop/s": 4e14, "flop/s of all that is read": 8e14}
    cases = [f"{rows} x {used}" for rows in (1, 8) for used in (512, 8192)]
    lengths = [f"{n} tokens" for n in (512, 2048, 16384)]
    found = {name: {f"{i}: error": "e" * 300 for i in "ab"} for name in (s.name for s in STEPS)}
    found["card"] |= {"card": "NVIDIA H100", "copy bytes/s": {"median": 3e12}}
    found["card"] |= {"bfloat16 flop/s of 8192": {"median": 8e14}, "versions": {"jax": "0.11.2"}}
    found["attention"] |= {"a step": {"kernel": True, "right": False}}
    found["first-token"] |= {"cold": {"first token s": 9.5}}
    found["quantized-8b"] |= {
        f"{kind} 1 x 512": decoded for kind in ("int8_channel", "int4", "fp8")
    }
    trained = {"ms": ms, "tokens/s": 5.1e4, "flop/s": 4e14, "memory": memory}
    found["train-1b"] |= {f"8 x 2048 {remat}": trained for remat in ("dots", "layer")}
    served = {"tokens/s": 3210.0, "first token s": {"median": 4.5, "max": 9.0}}
    found["engine-8b"] |= {"256 x 256 + 256": served, "128 x 512 + 128": served}
    for size in report.SIZES:
        found[f"decode-{size}"] |= dict.fromkeys(cases, decoded)
        trace_ = {**gaps, "longest": [kernel] * 10}
        found[f"decode-{size}"] |= {f"{case} trace": trace_ for case in cases}
        found[f"prefill-{size}"] |= {n: {**read, "memory": memory} for n in lengths}
        found[f"torch-{size}"] |= {case: {"tokens/s": 700.0} for case in cases}
        found[f"torch-{size}"] |= {n: {"ms": ms} for n in lengths}
    steps = {s.name: {"status": "done", "seconds": 99.0, "found": found[s.name]} for s in STEPS}
    return {"dry": False, "began": "2026-11-27T14:05:13", "seconds": 480.0, "steps": steps}


def _events():
    """As JAX writes them of a GPU: its streams, and a line that repeats their time."""
    named = lambda what, name, **where: dict(  # noqa: E731
        ph="M", name=what, args={"name": name}, **where
    )
    event = lambda name, tid, ts, dur, pid=1: dict(  # noqa: E731
        ph="X", name=name, pid=pid, tid=tid, ts=ts, dur=dur
    )
    return [
        named("process_name", "/device:GPU:0", pid=1),
        named("process_name", "/host:CPU", pid=2),
        named("thread_name", "Stream #13(Compute)", pid=1, tid=13),
        named("thread_name", "XLA Modules", pid=1, tid=3),
        event("fusion_1", 13, 100, 10),
        event("fusion_2.1", 13, 111, 10),
        event("gemm", 13, 150, 30),
        event("jit_decode", 3, 100, 80),
        event("python", 13, 0, 500, pid=2),
        {"ph": "E", "name": "no duration", "pid": 1, "tid": 13, "ts": 1},
    ]


def test_a_trace_is_the_launches_of_the_streams_alone():
    kernels = trace.kernels_of(_events())
    assert [kernel.name for kernel in kernels] == ["fusion_1", "fusion_2.1", "gemm"]
    found = trace.summary(kernels, 2)
    longest = found.pop("longest")
    assert found == {
        "launches": 1.5,
        "span_us": 40.0,
        "busy_us": 25.0,
        "small_gaps_us": 0.5,
        "host_gaps_us": 14.5,
        "host_gaps": 1,
        "longest_gap_us": 29.0,
    }
    assert [one["kernel"] for one in longest] == ["gemm", "fusion"]
    assert longest[1] == {"kernel": "fusion", "us": 10.0, "launches": 1.0, "share": 0.4}


def test_kernels_that_overlap_leave_no_gap():
    spans = [(0, 10), (2, 30), (12, 20), (31, 40)]
    assert trace.gaps([trace.Kernel("k", *span) for span in spans]) == [1]


@pytest.mark.parametrize("given", [exact.a_prompt, exact.a_step])
def test_the_reference_in_float64_is_attentions(given):
    arrays = given(np.random.default_rng(0), 16, 2)
    given = {name: jnp.asarray(x) for name, x in arrays.items()}
    past = (given["past_k"], given["past_v"]) if "past_k" in given else None
    wanted = attention.attention(*(given[name] for name in "qkv"), past, given["lengths"])
    np.testing.assert_allclose(exact.in_float64(arrays, arrays), wanted, atol=1e-5)


def test_the_sizes_are_the_configs():
    config = Config.named("llama-3.1-8b")
    assert sizes_of("llama-3.1-8b", dry=False)["intermediate_size"] == config.hidden_dim
    assert sizes_of("llama-3.1-8b", dry=True)["hidden_size"] == 64
    assert (config.head_dim, config.n_heads // config.n_kv_heads) in heads_of_the_family()
    assert {head_dim for head_dim, _ in heads_of_the_family()} == {64, 128}


HAS_TORCH = importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")


@pytest.mark.slow
def test_the_dry_run_is_whole(tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "bench/gpu.py", "--out", str(out), "--dry", "--minutes", "20"]
    done = subprocess.run(
        [*command, "--scratch", str(tmp_path / "scratch")],
        cwd=runner.ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == (out / "gpu.md").read_text()
    assert len(done.stdout.splitlines()) <= report.LINES
    steps = json.loads((out / "gpu.json").read_text())["steps"]
    assert list(steps) == [step.name for step in STEPS]
    ends = {name: step["status"] for name, step in steps.items()}
    peers = [name for name in ends if name.startswith("torch-") and not HAS_TORCH]
    assert {name: end for name, end in ends.items() if end != "done"} == dict.fromkeys(
        peers, "failed with 1"
    ), (out / "gpu.log").read_text()
    judged = [x for step in steps.values() for x in step["found"].values() if report.is_judged(x)]
    assert len(judged) >= 15
    assert all(one["right"] for one in judged)


def test_a_machine_without_jaxtyping_has_a_stand_in(tmp_path, monkeypatch):
    """It is what annotates alone, so that no step fails for want of it."""
    path = lambda: gpu.environment(tmp_path, dry=True)["PYTHONPATH"].split(os.pathsep)  # noqa: E731
    assert path() == [str(runner.ROOT)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert path() == [str(runner.ROOT), str(gpu.STAND_INS)]


def test_the_model_runs_on_the_stand_in():
    code = """
import jaxtyping
assert "stand_ins" in jaxtyping.__file__
import jax, llama_jax.cli.generate, llama_jax.serve.engine, llama_jax.train.step
from llama_jax import Config, forward, init_params
config = Config.named("tiny")
tokens, positions = jax.numpy.array([[1, 2]]), jax.numpy.array([[0, 1]])
logits, _ = forward(init_params(jax.random.key(0), config), tokens, positions)
print(logits.shape)
"""
    path = os.pathsep.join([str(gpu.STAND_INS), str(runner.ROOT)])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("(1, 2, "), done.stderr
