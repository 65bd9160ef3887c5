"""What `llama-jax train` says at its end can be typed."""

import shlex

import pytest
from helpers import ROOT, run

from llama_jax.train import run as running

RECIPE = ROOT / "configs/train/shakespeare.toml"


def test_what_is_wrong_with_a_set_names_the_option(tmp_path):
    done = run("train", RECIPE, "--out", tmp_path, "--set", "model.feilds.dim=3")
    assert done.exit_code == 2
    assert "--set, [model]: the key 'feilds' is unknown; did you mean fields?" in done.stderr
    assert "shakespeare.toml" not in done.stderr


@pytest.mark.parametrize("prompts", [["The model's 3 parts", "x"], [""], []])
def test_the_last_line_is_a_command_with_a_prompt(prompts, tmp_path, monkeypatch):
    model = tmp_path / "own run/model"
    monkeypatch.setattr(running, "train", lambda *_, **__: model)
    done = run("train", RECIPE, "--out", tmp_path / "own run", "--set", f"run.prompts={prompts}")
    assert done.exit_code == 0, done.output
    place, _, command = done.stdout.strip().partition(": ")
    assert place == f"the model is in {model}"
    assert shlex.split(command) == ["llama-jax", "generate", str(model), *[*prompts, ""][:1]]
