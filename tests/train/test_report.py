"""The line that a run says of its steps: speed, the part of the peak, time left."""

import itertools
import types

import numpy as np
import pytest

from llama_jax.config import Config
from llama_jax.train import peak, report
from llama_jax.train.peak import Peak, measured_peak
from llama_jax.train.recipe import Optimizer, Recipe, Run, Step
from llama_jax.train.report import Report, flops_per_token
from llama_jax.train.step import Metrics

BATCH, TIME = 4, 16
CONFIG = Config.named("tiny")
FLOPS = flops_per_token(CONFIG, TIME)


@pytest.mark.parametrize("trained", [BATCH * TIME, 8])
def test_tokens_are_those_trained_and_the_peak_is_of_all_that_is_computed(
    trained, tmp_path, monkeypatch
):
    """Of dialogs few tokens of a row are trained, and a step takes as long as if all were."""
    seconds = itertools.count(step=2.0)
    monkeypatch.setattr(report.time, "monotonic", lambda: next(seconds))
    said = lines(tmp_path, range(5), trained)
    assert said[-1].split("  ")[-3:] == [f"{trained / 2:.0f} tokens/s", "MFU 5%", "12 s left"]


def test_a_measured_peak_is_at_least_what_the_steps_achieve(tmp_path, monkeypatch):
    """It was measured while the machine did other work: the first steps pass it fourfold."""
    clock = itertools.accumulate([0, 0, *[1.0] * 6, *[4.0] * 5])
    monkeypatch.setattr(report.time, "monotonic", lambda: next(clock))
    low = Peak(BATCH * TIME * FLOPS / 4, measured=True)
    said = lines(tmp_path, range(11), BATCH * TIME, peak=low)
    shares = [part for line in said for part in line.split("  ") if part.startswith("MFU")]
    assert shares == [f"MFU {share} of the measured peak" for share in ("100%", "36%", "25%")]


def test_a_stated_peak_stays_as_it_is(tmp_path, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(report.time, "monotonic", lambda: next(seconds))
    low = Peak(BATCH * TIME * FLOPS / 4, measured=False)
    assert "  MFU 400%  " in lines(tmp_path, range(5), BATCH * TIME, peak=low)[-1]


def test_the_measured_peak_is_the_best_of_several_products(monkeypatch):
    """Of products that take 5, 1, 3, 4 and 2 ms, the one of 1 ms."""
    clock = itertools.accumulate(x for ms in (5, 1, 3, 4, 2) for x in (0, ms / 1000))
    only_here = types.SimpleNamespace(monotonic=lambda: next(clock))  # JAX asks the time too
    monkeypatch.setattr(peak, "time", only_here)
    monkeypatch.setattr(peak, "SIZE", 64)
    found = measured_peak("float32")
    assert found.measured
    assert found.flops == pytest.approx(2 * 64**3 / 1e-3)


def test_the_first_step_is_said_also_of_a_run_that_goes_on(tmp_path):
    said = lines(tmp_path, range(6, 9), BATCH * TIME)
    assert [line.split("  ")[0] for line in said] == ["step 7/11"]


def lines(folder, steps, trained, peak=None):
    """What is said of some steps of a run of 11, each fifth of which is said."""
    said = []
    recipe = Recipe(
        steps=11,
        optimizer=Optimizer(warmup=1),
        step=Step(batch=BATCH, context=TIME),
        run=Run(print_every=5),
    )
    told = Report(
        recipe,
        CONFIG,
        folder / "metrics.jsonl",
        said.append,
        first=steps[0],
        devices=1,
        peak=peak or Peak(10 * BATCH * TIME * FLOPS, measured=False),
        bytes_per_token=None,
    )
    for step in steps:
        told.step(step, np.arange(BATCH), Metrics(2.0, 1.0, 1e-3, float(trained), True))
    told.close()
    return said


@pytest.mark.parametrize("line", ["[1]", '{"step": "1"}', '{"loss": 1.0}', "\x1b", "[" * 9999])
def test_a_line_that_is_no_record_is_named_and_stays(tmp_path, line):
    (file := tmp_path / "metrics.jsonl").write_text(text := f'{{"step": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2 is no record of a run"):
        lines(tmp_path, range(1, 2), BATCH * TIME)
    assert file.read_text() == text
