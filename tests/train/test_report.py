"""The line that a run says of its steps: speed, the part of the peak, time left."""

import itertools

import numpy as np
import pytest

from llama_jax.config import Config
from llama_jax.train import report
from llama_jax.train.recipe import Optimizer, Recipe, Run, Step
from llama_jax.train.report import Report, flops_per_token
from llama_jax.train.step import Metrics

BATCH, TIME = 4, 16


@pytest.mark.parametrize("trained", [BATCH * TIME, 8])
def test_tokens_are_those_trained_and_the_peak_is_of_all_that_is_computed(
    trained, tmp_path, monkeypatch
):
    """Of dialogs few tokens of a row are trained, and a step takes as long as if all were."""
    seconds = itertools.count(step=2.0)
    monkeypatch.setattr(report.time, "monotonic", lambda: next(seconds))
    said = lines(tmp_path, range(5), trained)
    assert said[-1].split("  ")[-3:] == [f"{trained / 2:.0f} tokens/s", "MFU 5%", "12 s left"]


def test_the_first_step_is_said_also_of_a_run_that_goes_on(tmp_path):
    said = lines(tmp_path, range(6, 9), BATCH * TIME)
    assert [line.split("  ")[0] for line in said] == ["step 7/11"]


def lines(folder, steps, trained):
    """What is said of some steps of a run of 11, each fifth of which is said."""
    config, said = Config.named("tiny"), []
    recipe = Recipe(
        steps=11,
        optimizer=Optimizer(warmup=1),
        step=Step(batch=BATCH, context=TIME),
        run=Run(print_every=5),
    )
    peak = 10 * BATCH * TIME * flops_per_token(config, TIME)
    told = Report(
        recipe,
        config,
        folder / "metrics.jsonl",
        said.append,
        first=steps[0],
        devices=1,
        peak=peak,
        bytes_per_token=None,
    )
    for step in steps:
        told.step(step, np.arange(BATCH), Metrics(2.0, 1.0, 1e-3, float(trained), True))
    told.close()
    return said
