"""Runs of a few steps of the tiny model, and what their folders say."""

import json
import re
import signal

import llama_jax
from llama_jax.train.recipe import Mesh, Model, Optimizer, Recipe, Run, Step
from llama_jax.train.run import train

STEPS = 8


def recipe_of(tokens, steps=STEPS, mesh=None, run=None, **step):
    step = {"batch": 8, "context": 16, "dtype": "float32", "remat": "none"} | step
    usual = {"save_every": 2, "evaluate_every": 4, "sample_every": 0, "peak_tflops": 1.0}
    run = {**usual, "log_rows": True, **(run or {})}
    return Recipe(
        steps=steps,
        model=Model(config="tiny"),
        tokens=str(tokens),
        optimizer=Optimizer(warmup=2, learning_rate=1e-2),
        step=Step(**step),
        mesh=Mesh(**(mesh or {})),
        run=Run(**run),
    )


def trained(recipe, folder):
    said = []
    return llama_jax.load(train(recipe, folder, say=said.append)).weights, said


def losses(folder):
    """Each step's loss, as often as it was taken."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "loss" in record:
            found.setdefault(record["step"], []).append(record["loss"])
    return found


def validations(folder):
    """The validation loss of each step that has one."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    found = {record["step"]: record.get("validation_loss") for record in map(json.loads, lines)}
    return {step: loss for step, loss in found.items() if loss is not None}


def end_after(steps, recipe, folder, evaluate_every=0):
    """Trains until a step, and asks to stop there, as SIGTERM does."""

    def say(line):
        if line.startswith(f"step {steps}/"):
            signal.raise_signal(signal.SIGTERM)

    every = {"print_every": 1, "save_every": 100, "evaluate_every": evaluate_every}
    run, said = Run(**vars(recipe.run) | every), []
    train(recipe.replace(run=run), folder, say=lambda line: (said.append(line), say(line)))
    assert any("stopping after this step" in line for line in said)
    last = re.match(r"stopped after step (\d+) of 8, which is saved: start it again", said[-1])
    assert (int(last[1]) if last else STEPS) >= steps
