"""A run: it resumes exactly, on any mesh, after any end, and its result is a checkpoint."""

import json
import math
import os
import re
import shutil
import signal
import threading
import time
from types import SimpleNamespace

import jax
import killed_runs
import numpy as np
import pytest
from helpers import ROOT
from job import Job, over
from short_runs import STEPS, end_after, losses, recipe_of, trained, validations
from token_files import STORIES, token_folder

import llama_jax
from llama_jax.train import model, phases, report
from llama_jax.train.recipe import Model, Optimizer
from llama_jax.train.recipe_file import read_recipe, to_json
from llama_jax.train.rows import TextRows
from llama_jax.train.run import train
from llama_jax.train.stops import asked_anywhere
from llama_jax.train.token_folder import open_tokens


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    return token_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return trained(recipe_of(tokens), folder / "run")[0], losses(folder / "run")


def test_a_run_that_stops_and_goes_on_has_the_same_weights(tokens, whole, tmp_path):
    for steps in (3, 5, STEPS):
        # The schedule is that of all steps: the process ends early, not the run.
        recipe = recipe_of(tokens)
        end_after(steps, recipe, tmp_path / "run")
    weights, _ = trained(recipe_of(tokens), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, weights, whole[0])
    assert losses(tmp_path / "run") == whole[1], "each step once, with the same loss"
    check_rows(tmp_path / "run", tokens, STEPS)


def check_rows(run, tokens, steps):
    """The log has each step once, with the rows that are due: each row once an epoch."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    found = [(line["step"], line["rows"]) for line in lines if "rows" in line]
    order = TextRows(open_tokens(tokens).train, 16, "separate").order(8, seed=0)
    assert found == [(step + 1, order.at(step).tolist()) for step in range(steps)]
    read = [row for _, rows in found for row in rows]
    assert len(set(read)) == min(len(read), order.rows)


@pytest.mark.parametrize("axes", [{"data": 4}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_a_run_goes_on_on_another_mesh(axes, tokens, whole, tmp_path):
    end_after(4, recipe_of(tokens), tmp_path / "run")
    weights, said = trained(recipe_of(tokens, mesh=axes), tmp_path / "run")
    assert any("going on after step" in line for line in said)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights, whole[0])


def test_a_state_that_was_cut_short_is_passed_over_and_that_is_said(tokens, whole, tmp_path):
    run = tmp_path / "run"
    end_after(4, recipe_of(tokens), run)
    end_after(6, recipe_of(tokens), run)
    newest = max((run / "states").iterdir(), key=lambda folder: int(folder.name))
    cut = 0
    for file in newest.rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            cut += 1
    assert cut
    weights, said = trained(recipe_of(tokens), run)
    assert f"step {newest.name} cannot be read" in said[0]
    assert "going on after step" in said[1]
    jax.tree.map(np.testing.assert_array_equal, weights, whole[0])


def test_a_run_that_lost_its_model_writes_it_again(tokens, whole, tmp_path):
    """As one does that was killed after its last state and before the model."""
    train(recipe_of(tokens), tmp_path / "run", say=lambda line: None)
    shutil.rmtree(tmp_path / "run" / "model")
    weights, _ = trained(recipe_of(tokens), tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, weights, whole[0])


def test_the_best_model_is_kept_and_not_a_later_one_that_is_worse(tokens, tmp_path):
    """At such a rate the loss rises again; a run that goes on knows what it had."""
    run = {"evaluate_every": 1, "save_every": 2, "keep_best": True}
    recipe = recipe_of(tokens, steps=6, run=run)
    fast = Optimizer(warmup=2, learning_rate=3.0, schedule="constant")
    recipe = recipe.replace(optimizer=fast)
    end_after(4, recipe, tmp_path / "run", evaluate_every=1)
    best = llama_jax.load(tmp_path / "run/model")
    found = validations(tmp_path / "run")
    assert min(found, key=found.get) < max(found), "it did not get worse"
    weights, _ = trained(recipe, tmp_path / "run")
    assert min(validations(tmp_path / "run").values()) == min(found.values())
    jax.tree.map(np.testing.assert_array_equal, weights, best.weights)


def test_what_takes_long_is_said_and_a_silent_step_too(tokens, tmp_path, monkeypatch):
    said = []
    with phases.phase(said.append, "soon done"):
        pass
    monkeypatch.setattr(phases, "PATIENCE", 0.01)
    with phases.phase(said.append, "hashing"):
        time.sleep(0.2)
    assert said == ["hashing ..."]
    monkeypatch.setattr(report, "SILENCE", -1.0)
    _, said = trained(recipe_of(tokens, run={"print_every": 100, "evaluate_every": 0}), tmp_path)
    assert "compiling the step ..." in said
    assert [f"step {n}/8" in "\n".join(said) for n in (1, 2, 7, 8)] == [True] * 4


@pytest.mark.parametrize("axes", [{}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_first_weights_are_init_params_from_a_program_for_each_shape(axes, tokens):
    recipe = recipe_of(tokens, mesh=axes)
    model.drawing.cache_clear()
    like, begin = model.model_of(recipe, open_tokens(tokens), model.mesh_for_recipe(recipe))
    params = begin()
    whole = llama_jax.init_params(jax.random.key(0), like.config).weights
    here = jax.tree.map(lambda w, full: w[tuple(map(slice, full.shape))], params.weights, whole)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), here, whole)
    for made, told in zip(*map(jax.tree.leaves, (params, like)), strict=True):
        assert made.shape == told.shape
        assert made.sharding.is_equivalent_to(told.sharding, made.ndim)
    assert model.drawing.cache_info().misses < len(jax.tree.leaves(whole))


@pytest.mark.parametrize("every", [0, 5])
def test_bits_per_byte_are_all_nats_over_all_bytes(every, tmp_path):
    """Of the text of its own split: a step has them where there is no validation too."""
    texts = [*STORIES, "x " * 50] * 8  # the last of each five is of other bytes a token
    folder = token_folder(tmp_path, texts, validation_every=every)
    split = open_tokens(folder)
    _, said = trained(recipe_of(folder, run={"evaluate_batches": 0}), tmp_path / "run")

    def bits(loss, of):
        return loss * (len(of) - 1) / of.text_bytes / math.log(2)

    loss = losses(tmp_path / "run")[STEPS][0]
    assert f"loss {loss:.3f}  {bits(loss, split.train):.3f} bits/byte" in "\n".join(said)
    found = validations(tmp_path / "run")
    assert bool(found) == bool(every)
    for step, loss in found.items():
        wanted = (
            f"step {step:,}: validation loss {loss:.4f}, {bits(loss, split.validation):.4f} bits"
        )
        assert wanted in "\n".join(said)


def test_the_best_of_no_evaluations_is_refused(tokens):
    with pytest.raises(ValueError, match=r"keep_best=True .* raise evaluate_every"):
        recipe_of(tokens, run={"evaluate_every": 0, "keep_best": True})


@pytest.mark.slow
@pytest.mark.parametrize("how", ["one", "two", "mixed"])
def test_a_run_killed_again_and_again_ends_with_the_same_weights(how, tmp_path):
    assert "4 kills" in killed_runs.tried(tmp_path, how, 4, seed=1, texts=STORIES * 20)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "heard", "again"),
    [(signal.SIGTERM, [1], 1), (signal.SIGINT, [0, 1], 2)],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_job_asked_to_stop_saves_in_all_and_goes_on(number, heard, again, tokens, tmp_path):
    """SIGTERM reaches one process, and Ctrl-C all that a terminal has; then one or two go on."""
    steps, run, recipe = 60, tmp_path / "run", tmp_path / "recipe.toml"
    text = killed_runs.RECIPE.format(steps=steps, tokens=json.dumps(str(tokens)))
    recipe.write_text(text.replace("save_every = 3", "save_every = 0"))
    command = ["-m", "llama_jax", "train", recipe, "--out", run, "--set", "mesh.fsdp=2"]
    with Job(2, *command, *over(2)) as job:
        job.wait_for("step 2/60")
        for process in heard:
            job.running[process].send_signal(number)
        ended = job.ended()
    assert [one.returncode for one in ended.values()] == [0, 0], ended
    last = re.search(r"stopped after step (\d+) of 60, which is saved", ended[0].stdout)
    assert [entry.name for entry in (run / "states").iterdir()] == [last[1]]
    alone = read_recipe(recipe)
    if again == 1:
        said = trained(alone, run)[1]
    else:
        with Job(2, *command, *over(2)) as job:
            said = job.ended()[0].stdout.splitlines()
    assert said[0] == f"going on after step {last[1]}"
    weights, (wanted, _) = llama_jax.load(run / "model").weights, trained(alone, tmp_path / "whole")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights, wanted)
    check_rows(run, tokens, steps)


@pytest.mark.slow
def test_two_processes_go_on_with_ones_run_and_one_with_theirs(tokens, whole, tmp_path):
    """Each dies by a signal that no process hears."""
    run, recipe = tmp_path / "run", tmp_path / "recipe.json"
    end_after(2, recipe_of(tokens), run)
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    often = {"save_every": 1, "print_every": 1, "evaluate_every": 0}
    recipe.write_text(to_json(recipe_of(tokens, mesh=mesh, run=often)))
    arguments = ["127.0.0.1:{port}", "{process}", str(recipe), str(run)]
    with Job(2, "tests/train/run_program.py", *arguments) as job:
        job.wait_for("going on after step")
        job.wait_for("step 6/8")
    assert not (run / "states/8").exists()
    weights, said = trained(recipe_of(tokens), run)
    assert int(re.search(r"going on after step (\d+)", said[0])[1]) >= 4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), weights, whole[0])
    assert {step: len(found) for step, found in losses(run).items()} == dict.fromkeys(
        range(1, STEPS + 1), 1
    )


def test_the_result_generates_and_knows_its_tokenizer(tokens, tmp_path):
    samples = []

    def sample(params, prompts):
        samples.append(llama_jax.generate(params, list(prompts), max_new_tokens=4)[0].text)
        return samples[-1:]

    recipe = recipe_of(tokens, run={"sample_every": 4, "prompts": ("once",)})
    folder = train(recipe, tmp_path / "run", say=lambda line: None, sample=sample)
    assert len(samples) == 2, "in the middle and at the end"
    params = llama_jax.load(folder)
    assert llama_jax.generate(params, ["once"], max_new_tokens=4)[0].tokens


def test_a_run_on_tokens_without_a_tokenizer_draws_no_samples_and_says_so(tokens, tmp_path):
    bare = shutil.copytree(tokens, tmp_path / "bare")
    (bare / "tokenizer.model").unlink()
    said = []
    recipe = recipe_of(bare, steps=3, run={"sample_every": 2})
    model = Model(config="tiny", fields={"vocab_size": 384})
    train(recipe.replace(model=model), tmp_path / "run", say=said.append, sample=generate_nothing)
    (line,) = [line for line in said if "no samples are drawn" in line]
    assert str(bare) in line


def test_a_file_where_a_run_is_to_be_is_refused_and_stays(tokens, tmp_path):
    file = tmp_path / "r.toml"
    file.write_text("steps = 8")
    with pytest.raises(ValueError, match=r"r\.toml is a file, and a run is a folder"):
        train(recipe_of(tokens), file, say=lambda line: None)
    assert file.read_text() == "steps = 8"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"{", "is not JSON"), (b"[1]", "holds a list"), (b"\xff", "is not JSON"), (None, "a pipe")],
)
def test_a_damaged_recipe_of_a_run_is_named(tokens, tmp_path, content, said):
    file = tmp_path / "recipe.json"
    os.mkfifo(file) if content is None else file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"recipe\.json .*{said}"):
        train(recipe_of(tokens), tmp_path, say=lambda line: None)


def test_sample_every_0_is_never(tokens, tmp_path):
    recipe = recipe_of(tokens, steps=3, run={"sample_every": 0})
    train(recipe, tmp_path / "run", say=lambda line: None, sample=generate_nothing)


def generate_nothing(params, prompts):
    raise AssertionError("no sample was to be drawn")


def test_a_checkpoint_is_trained_on(tokens, whole, tmp_path):
    first = train(recipe_of(tokens), tmp_path / "run", say=lambda line: None)
    again = recipe_of(tokens).replace(model=Model(checkpoint=str(first)))
    train(again, tmp_path / "more", say=lambda line: None)
    before, after = losses(tmp_path / "run"), losses(tmp_path / "more")
    assert after[1][0] < before[1][0]


def test_a_run_of_bad_steps_ends_and_names_rows(tokens, tmp_path):
    recipe = recipe_of(tokens, run={"bad_steps": 3})
    recipe = recipe.replace(optimizer=Optimizer(warmup=2, learning_rate=1e30))
    said = []
    with pytest.raises(RuntimeError, match=r"3 steps in a row .* read rows \d+, ") as ended:
        train(recipe, tmp_path / "run", say=said.append)
    bad = [line for line in said if "changed nothing" in line]
    assert len(bad) == 3
    assert f" {bad[-1].split(' changed')[0]}, read rows" in str(ended.value), "by the same number"
    assert all(re.search(r"rows \d+, \d+", line) for line in bad)


def test_a_process_hears_one_step_later_that_one_of_its_job_was_asked_to_stop():
    """Of all devices here, as of those of all processes."""
    asked = threading.Event()
    stops = asked_anywhere(asked)
    assert [stops(), stops()] == [False, False]
    asked.set()
    assert [stops(), stops()] == [False, True]


@pytest.mark.parametrize("change", ["texts", "as many others"])
def test_other_tokens_under_a_runs_name_are_refused_and_the_same_made_again_are_not(
    change, tmp_path
):
    texts = [f"{n:03} llama" for n in range(200)]
    folder = token_folder(tmp_path, texts, validation_every=0)
    recipe = recipe_of(folder, run={"save_every": 0})
    end_after(2, recipe, tmp_path / "run")
    others = texts * 2 if change == "texts" else texts[::-1]
    token_folder(tmp_path, others, validation_every=0, overwrite=True)
    with pytest.raises(ValueError, match=r"is a run on other tokens than .*tokens holds now"):
        trained(recipe, tmp_path / "run")
    token_folder(tmp_path, texts, validation_every=0, overwrite=True)
    _, said = trained(recipe, tmp_path / "run")
    assert any("going on after step" in line for line in said)


def test_another_recipe_in_a_runs_folder_is_refused(tokens, tmp_path):
    train(recipe_of(tokens), tmp_path / "run", say=lambda line: None)
    with pytest.raises(ValueError, match="is a run with seed=0, and the recipe has seed=1"):
        train(recipe_of(tokens).replace(seed=1), tmp_path / "run")
    other = recipe_of(tokens, batch=16)
    with pytest.raises(ValueError, match=r"is a run with step.batch=8, and the recipe has .*=16"):
        train(other, tmp_path / "run")
    trained(recipe_of(tokens, steps=STEPS + 2), tmp_path / "run")
    assert max(losses(tmp_path / "run")) == STEPS + 2, "more steps are no other recipe"


TOML = """
steps = 10
tokens = "tokens"
[model]
config = "tiny"
[model.fields]
n_layers = 1
[optimizer]
warmup = 2
[run]
prompts = ["a", "b"]
"""


def test_a_recipe_file_is_read_with_changes_and_written_as_it_runs(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(TOML)
    recipe = read_recipe(file, ["optimizer.learning_rate=1e-3", "model.config=llama-3.2-1b"])
    assert recipe.optimizer.learning_rate == 1e-3
    assert recipe.model.config == "llama-3.2-1b"
    assert recipe.model.fields == {"n_layers": 1}
    assert recipe.run.prompts == ("a", "b")
    file.write_text(json.dumps({"x": 1}))
    from llama_jax.train.recipe_file import recipe_of

    assert recipe_of(json.loads(to_json(recipe)), "json") == recipe


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["optimizer.lerning_rate=1"], "'lerning_rate' is unknown; did you mean learning_rate?"),
        (["optimizer.lr=1"], "'lr' is unknown; did you mean learning_rate?"),
        (["step.lr=1"], r"'lr' is unknown; did you mean \[optimizer\] learning_rate?"),
        (["step.max_iters=1"], r"'max_iters' is unknown; did you mean steps, before the first"),
        (["batch=8"], r"'batch' is unknown; did you mean \[step\] batch?"),
        (["step.dtype=float16"], "dtype='float16' is unknown; it is one of 'float32', 'bfloat16'"),
        (["steps=no"], "steps='no' must be a positive integer"),
        (["run=3"], r"\[run\] must be a table of keys, not 3"),
        (["tokens=7"], "tokens=7 must be a string in quotes"),
        (["step"], "--set 'step' must be KEY=VALUE"),
        (["model.checkpoint=x"], r"\[model\] takes either config = or checkpoint ="),
        (["mesh.tensor=0"], "tensor=0 must be a positive integer"),
        (
            ["mesh.model=2"],
            r"\[mesh\]: the key 'model' is unknown; the keys are data, fsdp, tensor",
        ),
        (
            ["model.fields.dimm=2"],
            r"\[model.fields\]: the key 'dimm' is unknown; did you mean dim?",
        ),
    ],
)
def test_a_mistake_in_a_recipe_names_the_way_out(changes, words, tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text(TOML)
    with pytest.raises(ValueError, match=words):
        read_recipe(file, changes)


RECIPES = sorted((ROOT / "configs/train").glob("*.toml"))


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_the_recipes_of_the_clone_are_recipes(file):
    recipe = read_recipe(file)
    assert recipe.model is not None
    assert recipe.tokens


def test_a_recipe_may_begin_with_a_mark_and_have_line_ends_of_windows(tmp_path):
    text = RECIPES[0].read_text(encoding="utf-8")
    file = tmp_path / "recipe.toml"
    file.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert read_recipe(file) == read_recipe(RECIPES[0])


def test_what_is_no_toml_is_said(tmp_path):
    file = tmp_path / "recipe.toml"
    file.write_text("steps: 10")
    with pytest.raises(ValueError, match=r"recipe.toml is no TOML: .*line 1"):
        read_recipe(file)


def test_text_that_leaves_no_row_is_refused_before_training(tmp_path):
    folder = token_folder(tmp_path, texts=["a few words"] * 5)
    with pytest.raises(ValueError, match="choose a shorter context, or add text"):
        train(recipe_of(folder, context=4096), tmp_path / "run")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


def test_tokens_that_were_changed_are_refused(tokens, tmp_path):
    changed = tmp_path / "tokens"
    shutil.copytree(tokens, changed)
    shard = changed / "train/00000.bin"
    shard.write_bytes(shard.read_bytes()[::-1])
    with pytest.raises(ValueError, match=r"00000.bin was changed: its sha256 is not the one"):
        train(recipe_of(changed), tmp_path / "run")
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(ValueError, match="it was cut short or changed"):
        train(recipe_of(changed), tmp_path / "run")


def test_a_full_disk_ends_the_run_with_one_line_and_leaves_the_states_before(
    tokens, whole, tmp_path, monkeypatch
):
    import orbax.checkpoint as ocp

    run, save = tmp_path / "run", ocp.CheckpointManager.save

    def full(manager, step, **arguments):
        if step == 4:
            raise ValueError('RESOURCE_EXHAUSTED: Error writing "params" in OCDBT database')
        return save(manager, step, **arguments)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10_000))
        with pytest.raises(OSError, match=r"cannot be written .* MB, and the disk has less free"):
            train(recipe_of(tokens), run, say=lambda line: None)
    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(OSError, match=r"states: the disk is full. The states written before stay"):
        train(recipe_of(tokens), run, say=lambda line: None)
    monkeypatch.undo()
    weights, said = trained(recipe_of(tokens), run)
    assert said[0] == "going on after step 2"
    jax.tree.map(np.testing.assert_array_equal, weights, whole[0])
