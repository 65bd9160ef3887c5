"""What `llama-jax train` says at its end can be typed."""

import json
import shlex

import pytest
from helpers import ROOT, run

from llama_jax.train import run as running
from llama_jax.train.token_folder import FORMAT, MANIFEST, VERSION

RECIPE = ROOT / "configs/train/shakespeare.toml"


def test_what_is_wrong_with_a_set_names_the_option(tmp_path):
    done = run("train", RECIPE, "--out", tmp_path, "--set", "model.feilds.dim=3")
    assert done.exit_code == 2
    assert "--set, [model]: the key 'feilds' is unknown; did you mean fields?" in done.stderr
    assert "shakespeare.toml" not in done.stderr


def folder_of_a_run(tmp_path, monkeypatch, *files):
    """Where the run's model is to be, with these files in it."""
    model = tmp_path / "own run/model"
    model.mkdir(parents=True)
    for name in files:
        (model / name).touch()
    monkeypatch.setattr(running, "train", lambda *_, **__: model)
    return model


@pytest.mark.parametrize("prompts", [["The model's 3 parts", "x"], [""], []])
def test_the_last_line_is_a_command_with_a_prompt(prompts, tmp_path, monkeypatch):
    model = folder_of_a_run(tmp_path, monkeypatch, "tokenizer.model")
    done = run("train", RECIPE, "--out", tmp_path / "own run", "--set", f"run.prompts={prompts}")
    assert done.exit_code == 0, done.output
    place, _, command = done.stdout.strip().partition(": ")
    assert place == f"the model is in {model}"
    assert shlex.split(command) == ["llama-jax", "generate", str(model), *[*prompts, ""][:1]]


def test_the_last_line_of_a_model_without_a_tokenizer_gives_it_ids(tmp_path, monkeypatch):
    model = folder_of_a_run(tmp_path, monkeypatch)
    done = run("train", RECIPE, "--out", model.parent)
    assert shlex.split(done.stdout)[-3:] == [str(model), "--ids", "1"]


def test_the_last_line_of_a_model_of_dialogs_begins_one(tmp_path, monkeypatch):
    model = folder_of_a_run(tmp_path, monkeypatch, "tokenizer.model")
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    manifest = {"format": FORMAT, "version": VERSION, "splits": {"train": {"packed": {}}}}
    (tokens / MANIFEST).write_text(json.dumps(manifest))
    done = run("train", RECIPE, "--out", model.parent, "--set", f"tokens={tokens}")
    assert shlex.split(done.stdout)[-3:] == ["llama-jax", "chat", str(model)]
