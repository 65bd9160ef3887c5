"""A run killed with -9 again and again, at random, against one that was left alone.

    export PYTHONPATH=.:tests
    python tests/train/killed_runs.py            one process, one device
    python tests/train/killed_runs.py two        two processes, fsdp = 2
    python tests/train/killed_runs.py mixed      one or two processes, another mesh at each start

After every fourth kill the newest state is cut short, too. At the end the weights must be those of
the run left alone (to the bit, and for `mixed` within 1e-6), and the log of rows must have every
step once and, in its first epoch, every row once.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from job import Job, over
from token_files import STORIES, token_folder

import llama_jax
from llama_jax.train.rows import TextRows
from llama_jax.train.token_folder import open_tokens

BATCH, TIME, SAVE_EVERY = 8, 16, 3
STARTS = {
    "one": [(1, {})],
    "two": [(2, {"fsdp": 2})],
    "mixed": [(1, {}), (2, {"data": 2}), (1, {"fsdp": 2, "tensor": 2}), (2, {"fsdp": 2})],
}
"""How many processes a start has, and its mesh."""
RECIPE = f"""
steps = {{steps}}
tokens = {{tokens}}
[model]
config = "tiny"
[optimizer]
warmup = 2
learning_rate = 3e-4
[step]
batch = {BATCH}
context = {TIME}
dtype = "float32"
remat = "none"
[run]
save_every = {SAVE_EVERY}
print_every = 1
evaluate_every = 0
sample_every = 0
peak_tflops = 1.0
log_rows = true
"""
EARLY, LATER = 6.0, 0.6
"""Seconds within which a process is killed: after its start, or after its first words."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("how", nargs="?", choices=STARTS, default="one")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--texts", type=int, default=40, help="more of them bear more kills")
    parser.add_argument("--folder", type=Path, help="kept: the same command goes on in it")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = asked.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        os.environ["LLAMA_JAX_CACHE"] = f"{folder}/programs"
        texts = STORIES * asked.texts
        print(tried(folder, asked.how, asked.kills, asked.seed, texts))


def tried(folder, how, kills, seed, texts):
    """What became of a run that was killed so often, in words; AssertionError where it differs."""
    tokens = folder / "tokens" if (folder / "tokens").exists() else token_folder(folder, texts)
    rows = TextRows(open_tokens(tokens).train, TIME, "separate").whole
    steps, starts = -(-rows // BATCH) + 1, STARTS[how]
    recipe = _recipe(folder, tokens, steps)
    if str(steps) not in _states(folder / "whole"):
        shutil.rmtree(folder / "whole", ignore_errors=True)
        with _started(recipe, folder / "whole", *starts[0]) as job:
            _end(job)
    killed, passed_over, cut = _done(folder)
    while killed < kills:
        with _started(recipe, folder / "run", *starts[killed % len(starts)]) as job:
            said = _killed(job, np.random.default_rng([seed, killed]))
        passed_over += "cannot be read" in said
        began = "going on" in said or "nothing is left" in said
        assert "cannot be read" in said or not (cut and began), said
        killed += 1
        cut = killed % 4 == 0 and _cut_short(folder / "run")
        _done(folder, killed, passed_over, cut)
    assert str(steps) not in _states(folder / "run"), f"it ended before {kills} kills; lower them"
    with _started(recipe, folder / "run", *starts[killed % len(starts)]) as job:
        passed_over += "cannot be read" in _end(job)
    _check_rows(folder / "run", rows, steps)
    apart = _apart(folder / "run", folder / "whole")
    assert apart <= (1e-6 if how == "mixed" else 0), f"weights differ by {apart}"
    return (
        f"{how}: {killed} kills, {passed_over} states cut short and passed over, {steps} steps of "
        f"{rows} rows: each row once; weights differ by {apart:.2g}"
    )


def _done(folder, *now):
    """Kills so far, states passed over, and whether the newest is cut short; kept in a file."""
    file = folder / "kills.json"
    if now:
        file.write_text(json.dumps([int(number) for number in now]))
    return json.loads(file.read_text()) if file.exists() else [0, 0, 0]


def _states(run):
    """The steps of a run's saved states."""
    found = (run / "states").iterdir() if (run / "states").exists() else ()
    return [entry.name for entry in found if entry.name.isdigit()]


def _recipe(folder, tokens, steps):
    file = folder / "recipe.toml"
    file.write_text(RECIPE.format(steps=steps, tokens=json.dumps(str(tokens))))
    return file


def _started(recipe, run, processes, mesh):
    axes = [word for axis, size in mesh.items() for word in ("--set", f"mesh.{axis}={size}")]
    devices = ["--cpu-devices", int(np.prod([*mesh.values(), 1])) // processes]
    command = ["-m", "llama_jax", "train", recipe, "--out", run, *axes, *devices]
    return Job(processes, *command, *(over(processes) if processes > 1 else ()))


def _killed(job, draw):
    """Kills one process of a job with -9; the others end by themselves. What process 0 said."""
    said = []
    if draw.random() < 0.8:
        for line in job.running[0].stdout:
            said.append(line)
            if line.startswith("step"):
                break
        time.sleep(draw.uniform(0, LATER))
    else:
        time.sleep(draw.uniform(0, EARLY))
    codes = [process.poll() for process in job.running.values()]
    assert not any(codes), f"died by itself: {codes}, {job.ended()}"
    job.running[int(draw.integers(len(job.running)))].kill()
    return "".join(said) + job.ended()[0].stdout


def _end(job):
    ended = job.ended(600)
    assert all(one.returncode == 0 for one in ended.values()), ended
    return ended[0].stdout


def _cut_short(run):
    """Halves the files of the newest state; whether there is one."""
    whole = _states(run)
    for file in (run / "states" / max(whole, key=int)).rglob("*") if whole else ():
        if file.is_file() and file.stat().st_size > 1000:
            os.truncate(file, file.stat().st_size // 2)
    return bool(whole)


def _check_rows(run, rows, steps):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = [line for line in lines if "rows" in line]
    assert [line["step"] for line in found] == list(range(1, steps + 1)), "each step once"
    read = [row for line in found for row in line["rows"]]
    assert sorted(read[:rows]) == list(range(rows)), "each row once"


def _apart(run, whole):
    one, other = (llama_jax.load(folder / "model").weights for folder in (run, whole))
    apart = jax.tree.map(
        lambda a, b: float(np.abs(np.asarray(a) - np.asarray(b)).max()), one, other
    )
    return max(jax.tree.leaves(apart))


if __name__ == "__main__":
    main()
