"""2 for what was typed wrongly, 1 for what went wrong with files or at work, in every command."""

import json
import os
import re

import pytest
import typer
from helpers import GOLDEN_META, ROOT, run

from llama_jax.cli import app
from llama_jax.generation.settings import SamplingSettings

MODEL = GOLDEN_META / "llama3"  # no tokenizer, 320 tokens
RECIPE = ROOT / "configs/train/shakespeare.toml"
IDS = ("generate", MODEL, "--ids")


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):  # what would say which process this is
        if name.startswith(("SLURM_", "OMPI_", "KUBERNETES_", "JAX_COORD")):
            monkeypatch.delenv(name)


TYPED = [
    ((*IDS, "1", "--stop-id", 320), "--stop-id has token 320, and the model knows 0 to 319"),
    ((*IDS, "1", "--logit-bias", "999=1"), "--logit-bias has token 999"),
    ((*IDS, "1", "--logit-bias", "x=1"), "--logit-bias 'x=1' must be"),
    ((*IDS, "1", "--logit-bias", "1=nan"), "--logit-bias '1=nan' must be"),
    ((*IDS, "1", "--logit-bias", "1=inf"), "--logit-bias '1=inf' must be"),
    ((*IDS, "1", "--logit-bias", "1=-1e39"), "--logit-bias '1=-1e39' must be"),
    ((*IDS, "1", "--seed", "-1"), "'-1'"),
    ((*IDS, "1", "--stop-id", "x"), "'x'"),
    (("serve", MODEL, "--port", 99999), "99999"),
    ((*IDS, "1", "--stop", "end"), "--stop 'end' needs a tokenizer"),
    ((*IDS, "1", "--stop", "\\U00110000"), "beyond Unicode"),
    ((*IDS, "1", "--temperature", "nan"), "--temperature"),
    ((*IDS, "1", "--presence-penalty", "inf"), "--presence-penalty inf must be"),
    ((*IDS, "1", "--repetition-penalty", 0), "--repetition-penalty 0.0 must be a number above 0"),
    ((*IDS, "1", "--logprobs", 21, "--json"), "--logprobs"),
    ((*IDS, "1", "--logprobs", 2), "--logprobs 2 is printed as JSON alone"),
    ((*IDS, "1 x"), "prompt 1: --ids takes token ids"),
    ((*IDS, "320"), "prompt 1 has token 320"),
    ((*IDS, ""), "prompt 1 has no tokens"),
    ((*IDS, "1", "--chat"), "leave one out"),
    ((*IDS,), "no prompt"),
    ((*IDS, "1", "--system", "x"), "add --chat"),
    ((*IDS, "1", "--dtype", "int7"), "--dtype 'int7' is not"),
    ((*IDS, "1", "--quantize", "int3"), "--quantize 'int3'"),
    ((*IDS, "1", "--tensor", 3, "--data", 7), "--data x --fsdp x --tensor is 21"),
    ((*IDS, "1", "--tensor", 8), "--tensor 8 does not divide n_heads=4"),
    ((*IDS, "1", "--process", 1), "add --distributed"),
    ((*IDS, "1", "--distributed"), "pass --coordinator, its host:port, "),
    ((*IDS, "1", "--distributed", "--processes", 2), "pass --coordinator, its host:port, "),
    (("generate", "stories", "hello", "--chat"), "only tells stories"),
    (("generate", MODEL, "hello"), "has no tokenizer; pass token ids, and --ids"),
    (("generate", MODEL, "hello", "--chat"), "has no tokenizer, and a dialog is text"),
    ((*IDS, "1", "--kv-cache", "int2"), "--kv-cache"),
    ((*IDS, "1", "--regex", "a", "--json-schema", "b"), "leave one out"),
    ((*IDS, "1", "--regex", "a"), "has no tokenizer"),
    (("inspect", MODEL, "--context", 9000), "--context 9000 is beyond"),
    (("inspect", MODEL, "--tensor", 3), "--tensor 3 does not divide"),
    (("convert", MODEL, "out", "--dtype", "int7"), "--dtype 'int7' is not"),
    (("convert", MODEL, "out", "--rope-factor", -2), "--rope-factor"),
    (("export", MODEL, "out", "--format", "hf", "--layout", "llama2"), "--layout 'llama2'"),
    (("export", MODEL, "out", "--format", "hf", "--base", "x"), "--base 'x'"),
    (("export", MODEL, "out", "--format", "gguf", "--shards", 2), "--shards 2"),
    (("export", MODEL, "out", "--format", "meta", "--shards", 3), "--shards 3 does not divide"),
    (("export", MODEL, "out", "--format", "gguf", "--dtype", "q9"), "--dtype 'q9'"),
    (("merge", MODEL, "out", "--dtype", "q4"), "--dtype 'q4'"),
    (("verify", MODEL, "--dtype", "q4"), "--dtype 'q4'"),
    (("train-tokenizer", "a.txt", "--vocab-size", 259, "--out", "t"), "--vocab-size"),
    (
        ("train-tokenizer", "a.txt", "--vocab-size", 300, "--out", "t", "--normalization", "no"),
        "--normalization 'no' must be",
    ),
    (("tokenize", "a.txt", "--tokenizer", MODEL, "--out", "o", "--dialogs"), "needs --context"),
    (("tokenize", "a.jsonl", "--tokenizer", MODEL, "--out", "o", "--context", 0), "--context"),
    (("train", RECIPE), "--out"),
    (("train", RECIPE, "--set", "x"), "--set 'x' must be"),
    (("train", RECIPE, "--set", "step.batch=0", "--plan"), "batch=0"),
    (("train", RECIPE, "--plan", "--device", "h1"), "--device 'h1' is unknown"),
    (("train", RECIPE, "--device", "h100"), "--device goes with --plan"),
    (("download", "no-slash"), "names no repository"),
    (("download", "./a"), "names no repository"),
    (("download", "a--b/c"), "names no repository"),
    (("download", "a/b..c@main"), "names no repository"),
    (("download", "a/b.git"), "names no repository"),
    (("download", "https://huggingface.co/org/some.name/tree/main"), "write hf:org/some.name"),
    (("download", "org/name@a", "--revision", "b"), "names a revision"),
]
WENT_WRONG = [
    (("generate", "nowhere", "a prompt"), "does not exist"),
    ((*IDS, "-f", "."), ".: Is a directory"),
    ((*IDS, "-f", "ids.txt"), "ids.txt, line 2 has token 999"),
    ((*IDS, "1", "--json-schema", "none.json"), "none.json: No such file"),
    (("chat", "nowhere"), "does not exist"),
    (("chat", MODEL), "has no tokenizer"),
    (("inspect", "nowhere"), "does not exist"),
    (("inspect", "hf:huggingface.co/org/name"), "write hf:org/name"),
    (("convert", MODEL, "."), "is there already"),
    (("export", MODEL, ".", "--format", "hf"), "is there already"),
    (("export", MODEL, "out", "--format", "peft"), "name some by --adapter, or choose another"),
    (("merge", MODEL, "out"), "has no adapters"),
    (("perplexity", MODEL, "ids.txt"), "has no tokenizer"),
    (("perplexity", "nowhere", "none.txt"), "none.txt: No such file"),
    (("train-tokenizer", "a.txt", "--vocab-size", 300, "--out", "t"), "a.txt"),
    (("tokenize", "ids.txt", "--tokenizer", "nowhere", "--out", "o"), "nowhere does not exist"),
    (("train", "none.toml", "--out", "o"), "none.toml"),
    (("train", "bad.toml", "--out", "o", "--set", "step.batch=2"), "bad.toml is no TOML"),
    (("train", RECIPE, "--plan", "--device", "0.01GB"), "lower step.batch"),
    (("plot", "nowhere"), "nowhere does not exist; name the folder of"),
    (("serve", MODEL, "--port", 0), "has no tokenizer"),
]


def outcome(arguments, code):
    result = run(*arguments)
    assert result.exit_code == code, (arguments, result.output, result.exception)
    assert result.stdout == ""
    return " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(("arguments", "message"), TYPED, ids=lambda value: str(value)[-60:])
def test_what_was_typed_wrongly_ends_in_2(arguments, message):
    assert message in outcome(arguments, 2)


@pytest.mark.parametrize(("arguments", "message"), WENT_WRONG, ids=lambda value: str(value)[-60:])
def test_what_went_wrong_with_files_or_at_work_ends_in_1(tmp_path, arguments, message):
    (tmp_path / "ids.txt").write_text("\n999\n")
    (tmp_path / "bad.toml").write_text("= 1")
    result = run(*arguments)
    assert result.exit_code == 1, (arguments, result.output, result.exception)
    assert message in result.stderr


def test_a_wrong_prompt_that_was_typed_costs_no_other_and_ends_in_2():
    result = run(*IDS, "1", "999", "-n", 2, "--json")
    assert result.exit_code == 2
    good, wrong = (json.loads(line) for line in result.stdout.splitlines())
    assert len(good["tokens"]) == 2
    assert "999" in wrong["error"]


def test_the_help_of_a_setting_states_the_bounds_that_are_checked():
    command = typer.main.get_command(app).commands["generate"]
    shown = {
        one.name: (one.get_help_record(typer.Context(command)) or "")[-1] for one in command.params
    }
    bounded = 0
    for name, field in SamplingSettings.__dataclass_fields__.items():
        stated = re.search(r"(?:([\d.]+)<=)?x(?:>=([\d.]+)|<=([\d.]+))", shown.get(name, ""))
        if field.metadata and stated:
            low, high = stated[1] or stated[2], stated[3] or "inf"
            assert [float(low), float(high)] == [field.metadata["low"], field.metadata["high"]]
            bounded += 1
    assert bounded == 9
    assert "X is above 0" in shown["repetition_penalty"]
