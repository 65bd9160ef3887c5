"""`llama-jax` as a person and as a program sees it."""

import dataclasses
import gc
import io
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from helpers import ROOT, run
from meta_folder import small_1b

import llama_jax
from llama_jax import completions
from llama_jax.checkpoint import native as native_format
from llama_jax.cli import main
from llama_jax.cli.prompts import Reading
from llama_jax.generation.results import Completion, TokenLogprob

LLAMA3 = ROOT / "tests/golden/meta/llama3.1"


@pytest.fixture(scope="module")
def native(tmp_path_factory):
    """Llama 3.1's small random reference model, converted."""
    folder = tmp_path_factory.mktemp("native") / "model"
    result = run("convert", LLAMA3, folder)
    assert result.exit_code == 0, result.output
    return folder


def test_convert_prints_what_a_person_wants_to_check(tmp_path):
    result = run("convert", LLAMA3, tmp_path / "out", "--dtype", "float32")
    assert result.exit_code == 0, result.output
    for shown in (
        "none of Meta's",
        "heads  3 query, 1 key-value, of 32",
        "RoPE  theta 500,000, Llama 3 scaling by 8 beyond 8,192 positions",
        "context  131,072 positions",
        "dtype  float32, from",
        "tokenizer  none found",
        "written",
    ):
        assert shown in result.stdout


def test_convert_says_that_it_supplied_the_factor_of_llama_3_2(tmp_path):
    model = small_1b(tmp_path)
    result = run("convert", model, tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "Llama 3 scaling by 32" in result.stdout
    assert "note" in result.stdout
    assert "`llama-jax convert` takes --rope-factor" in result.stdout
    result = run("convert", model, tmp_path / "other", "--rope-factor", 8)
    assert "Llama 3 scaling by 8" in result.stdout


def test_what_was_supplied_or_ignored_is_said_beside_what_a_model_writes(talker, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(talker, model)
    (model / "added_tokens.json").write_text('{"<|x|>": 7, "<|y|>": 258}')
    config = json.loads((model / "config.json").read_text())
    del config["rms_norm_eps"]
    (model / "config.json").write_text(json.dumps(config))
    (tmp_path / "text.txt").write_text("Some text.")
    few = ("-n", 1, "-t", 0)
    for arguments in (
        ("generate", model, "Hi", *few),
        ("generate", model, "Hi", *few, "--chat", "--json"),
        ("chat", model, *few),
        ("perplexity", model, tmp_path / "text.txt"),
    ):
        result = run(*arguments, input="Hi\n")
        assert result.exit_code == 0, (arguments, result.output)
        assert "note" not in result.stdout
        notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
        supplied, ignored, larger = notes
        assert "rms_norm_eps 1e-6 supplied" in supplied
        assert "'<|x|>' is added as id 7" in ignored
        assert "the tokenizer knows 259 tokens and the model 258" in larger


@pytest.mark.parametrize("name", ["a{b}", "a[bold]b", "a[/red]b", "a:smile:b", "a{0}[red]"])
def test_nothing_of_a_path_is_markup_or_a_format(tmp_path, name):
    model = tmp_path / name
    shutil.copytree(LLAMA3, model)
    for arguments in (
        ("convert", model, tmp_path / f"out-{name}", "--verify"),
        ("verify", model),
        ("verify", model, tmp_path / f"out-{name}"),
        ("inspect", model),
        ("export", model, tmp_path / f"hf-{name}", "--format", "hf"),
        ("generate", model, "--ids", "46", "-n", 1),
    ):
        result = run(*arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
    assert f"loading {model} ..." in result.stderr
    (model / "params.json").unlink()
    result = run("verify", model)
    assert result.exit_code == 2
    assert str(model) in result.stderr


def test_a_warning_of_a_conversion_is_printed_as_it_is(tmp_path, monkeypatch):
    written = native_format.write

    def write(*arguments, **options):
        return dataclasses.replace(written(*arguments, **options), warnings=("of [red]x[/b]",))

    monkeypatch.setattr(native_format, "write", write)
    result = run("convert", LLAMA3, tmp_path / "out")
    assert result.exit_code == 0
    assert "warning: of [red]x[/b]" in result.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_and_status_take_any_text(monkeypatch, terminal):
    from llama_jax.cli import console

    out = io.StringIO()
    monkeypatch.setattr(console.stderr, "_force_terminal", terminal)
    monkeypatch.setattr(console.stderr, "_file", out)
    monkeypatch.setattr(console.stderr, "_environ", {"TERM": "xterm", "COLUMNS": "100"})
    monkeypatch.setattr(console.stderr, "is_interactive", terminal)
    with console.progress_bar("a{b} [/red]"):
        pass
    with console.status("a{b} [/red] :smile:"):
        pass
    assert "a{b} [/red] :smile: ..." in out.getvalue()


def test_a_rope_factor_of_one_is_no_scaling(tmp_path):
    result = run("convert", LLAMA3, tmp_path / "out", "--rope-factor", 1)
    assert result.exit_code == 0, result.output
    config = llama_jax.load(tmp_path / "out").config
    assert config.rope_scaling is None
    assert config.max_seq_len == 8192
    assert "RoPE is not scaled, as asked" in result.stdout


def test_a_converted_checkpoint_is_the_meta_directory_itself(native):
    converted, direct = llama_jax.load(native), llama_jax.load(LLAMA3)
    assert converted.config == direct.config
    for path in (("output", "weight"), ("layers_1", "attention", "wk")):
        one, two = converted.weights, direct.weights
        for key in path:
            one, two = one[key], two[key]
        assert (one == two).all()


def test_convert_leaves_an_existing_destination_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = run("convert", LLAMA3, tmp_path)
    assert result.exit_code == 1
    assert str(tmp_path) in result.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert run("convert", LLAMA3, tmp_path, "--overwrite").exit_code == 1
    assert [f.name for f in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_mistake_is_one_line_with_the_way_out(tmp_path):
    for arguments, message, code in (
        (("convert", tmp_path / "nothing", tmp_path / "out"), "does not exist", 1),
        (("convert", tmp_path, tmp_path / "out"), "holds no checkpoint", 1),
        (("generate", LLAMA3, "hello"), "pass token ids, and --ids", 2),
        (("generate", tmp_path, "hello"), "holds no checkpoint", 1),
    ):
        result = run(*arguments)
        assert result.exit_code == code
        assert message in result.stderr
        assert "Traceback" not in result.output
        assert result.stdout == ""


def test_generate_prints_ids_for_a_checkpoint_without_a_tokenizer(native):
    result = run("generate", native, "--ids", "46 182 24", "-n", 5, "-t", 0)
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    assert line.startswith("46 182 24 ")
    assert len(line.split()) == 8
    assert "tokens/s" in result.stderr
    assert "getting the model ready" in result.stderr


def test_generate_prints_one_json_object_a_prompt(native):
    result = run("generate", native, "--ids", "46", "13 158", "-n", 4, "-t", 0, "--json")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["prompt"] for row in rows] == ["46", "13 158"]
    assert [len(row["tokens"]) for row in rows] == [4, 4]
    assert {row["finish_reason"] for row in rows} == {"length"}


def test_json_has_no_nan_and_no_infinity(native, monkeypatch):
    unlikely = TokenLogprob(5, -math.inf, {7: -0.5, 5: -math.inf})
    done = Completion(None, [5], "length", logprobs=[unlikely])
    monkeypatch.setattr(completions, "as_finished", lambda *_, **__: iter([(0, done)]))
    result = run("generate", native, "--ids", "46", "-n", 1, "-t", 0, "--json", "--logprobs", 2)
    (found,) = json.loads(result.stdout, parse_constant=pytest.fail)["logprobs"]
    assert found == {"token": 5, "logprob": None, "top": {"7": -0.5, "5": None}}


def test_prompts_come_from_a_file_or_from_stdin(native, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("46 182\n\n13\n")
    options = ("--ids", "-n", 3, "-t", 0, "--json")
    from_file = run("generate", native, "--file", prompts, *options)
    from_stdin = run("generate", native, "--file", "-", *options, input="46 182\n13\n")
    given = run("generate", native, "46 182", "13", *options)
    assert from_file.stdout == from_stdin.stdout == given.stdout
    assert len(given.stdout.splitlines()) == 2


def test_a_prompt_of_a_file_ends_at_a_newline_alone(tmp_path, monkeypatch):
    text = "one\x0ctwo\u2028three\x85\r\n\r\nfour\n"
    (tmp_path / "prompts.txt").write_bytes(text.encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8"))
    for file in (tmp_path / "prompts.txt", Path("-")):
        asked = Reading(file=file).read([])
        assert [one["prompt"] for one in asked] == ["one\x0ctwo\u2028three\x85", "four"]


def test_a_seed_gives_the_same_text_again_and_each_prompt_its_own(native):
    arguments = ("generate", native, "--ids", "46 182", "46 182", "-n", 8, "--json", "-t", 1.5)
    one, two = run(*arguments, "--seed", 3), run(*arguments, "--seed", 3)
    assert one.stdout == two.stdout
    first, second = (json.loads(line)["tokens"] for line in one.stdout.splitlines())
    assert first != second
    assert run(*arguments, "--seed", 4).stdout != one.stdout


@pytest.mark.parametrize("script", ["convert", "generate"])
def test_a_script_runs_from_a_clone_that_is_not_installed(script, tmp_path):
    arguments = {
        "convert": [LLAMA3, tmp_path / "out"],
        "generate": [LLAMA3, "--ids", "46 182", "-n", "3"],
    }[script]
    command = [sys.executable, ROOT / "tools" / f"{script}.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_a_reader_that_leaves_early_gets_no_traceback(native):
    command = f"{sys.executable} -m llama_jax generate {native} --ids 46 -n 200 | head -c 1"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, shell=True, capture_output=True, text=True, check=False, env=environment
    )
    assert "Traceback" not in done.stderr


def test_stories260k_converts_and_writes_its_known_text(shared, tmp_path):
    model = shared / "models/stories260K-meta"
    golden = json.loads((model / "golden.json").read_text())["greedy_text_200_steps_from_bos"]
    assert run("convert", model, tmp_path / "out").exit_code == 0
    for checkpoint in (tmp_path / "out", model, shared / "models/stories260K-meta-2shards"):
        result = run("generate", checkpoint, "", "-n", 200, "-t", 0, "--dtype", "float32")
        assert result.stdout == golden + "\n"


def test_the_collector_leaves_what_imports_and_traces_make_alone(native):
    before, collected = gc.get_threshold(), []
    count = lambda phase, _: collected.append(gc.get_threshold())  # noqa: E731
    jax.clear_caches()
    gc.callbacks.append(count)
    try:
        with pytest.raises(SystemExit) as ended:
            main(["generate", str(native), "--ids", "1 2", "-n", "2"])
    finally:
        gc.callbacks.remove(count)
    assert not ended.value.code
    assert set(collected) <= {
        before
    }  # none but those before the command begins and once it is over
    assert gc.get_threshold() == before
