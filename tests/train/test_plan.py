"""The plan of a run's memory: its parts from shapes, and what does not fit is refused first."""

import jax
import pytest
from helpers import ROOT
from token_files import token_folder

from llama_jax.config import Config
from llama_jax.model.transformer import init_params
from llama_jax.train import fits
from llama_jax.train.plan import plan
from llama_jax.train.recipe import Lora, Mesh, Model, Optimizer, Recipe, Step
from llama_jax.train.run import train
from llama_jax.train.state import new_state
from llama_jax.weights.quantize import quantize

CONFIG = Config.named("tiny")


def recipe_of(mesh=None, optimizer=None, **step):
    return Recipe(
        steps=100,
        optimizer=Optimizer(warmup=10, **(optimizer or {})),
        step=Step(**{"batch": 8, "context": 64} | step),
        mesh=Mesh(**(mesh or {})),
    )


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_state_is_what_a_state_takes(kind):
    recipe = recipe_of(optimizer={"kind": kind}, average=0.9)
    state = new_state(recipe, init_params(jax.random.key(0), CONFIG))
    real = sum(x.nbytes for x in jax.tree.leaves(state))
    planned = {name: size for name, size in plan(recipe, CONFIG).state.items() if name != "batch"}
    assert real == pytest.approx(sum(planned.values()), abs=64), "but for the counts"


def test_adapters_alone_have_moments_and_gradients():
    step = {"dtype": "bfloat16", "context": 64}
    whole = plan(recipe_of(**step), CONFIG)
    lora = Lora(rank=4, targets=("wq", "w1"))
    found = plan(recipe_of(**step).replace(lora=lora), CONFIG)
    sizes = (CONFIG.dim + CONFIG.n_heads * CONFIG.head_dim, CONFIG.dim + CONFIG.hidden_dim)
    adapters = 4 * CONFIG.n_layers * 4 * sum(sizes)
    assert found.state["weights"] == adapters
    assert found.state["the optimizer's moments"] == 2 * adapters
    assert found.state["weights that stay as they are"] == whole.state["weights"] // 2


@pytest.mark.parametrize(("kind", "width"), [("int8", 1.2), ("int4", 0.8)])
def test_beside_adapters_quantized_weights_are_counted_as_they_are(kind, width):
    config = CONFIG.replace(dim=256, hidden_dim=512, n_heads=8, head_dim=32, n_kv_heads=8)
    params = quantize(init_params(jax.random.key(0), config), kind)
    recipe = recipe_of(dtype="float32", context=16).replace(lora=Lora(rank=4))
    found = plan(recipe, config, frozen=params)
    stays = found.state["weights that stay as they are"]
    assert stays == sum(x.nbytes for x in jax.tree.leaves(params.weights))
    assert stays < width * params.size < plan(recipe, config).state["weights that stay as they are"]
    assert found.moments["the loss"]["one layer's weights, dequantised"] > 0
    cut = plan(recipe.replace(mesh=Mesh(fsdp=4)), config, frozen=params)
    assert cut.state["weights that stay as they are"] < stays / 3.5


@pytest.mark.parametrize(("lora", "fits"), [([], False), (["--set", "lora.rank=16"], True)])
def test_adapters_of_a_published_model_are_planned_without_its_checkpoint(
    lora, fits, tmp_path, capsys
):
    from llama_jax.cli import main

    file = tmp_path / "r.toml"
    file.write_text(
        'steps = 10\n[model]\nconfig = "llama-3.1-70b"\n[optimizer]\nwarmup = 1\n'
        "[step]\nbatch = 8\ncontext = 8192\n[mesh]\nfsdp = 8\n"
    )
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--plan", "--device", "h100", *lora])
    assert (not ended.value.code) == fits
    assert ("weights that stay as they are" in capsys.readouterr().out) == fits


def test_a_mesh_divides_what_it_cuts():
    alone = plan(recipe_of(), CONFIG).state["weights"]
    cut = plan(recipe_of({"fsdp": 4}), CONFIG).state["weights"]
    norms = 4 * CONFIG.dim * (2 * CONFIG.n_layers + 1)
    assert cut == (alone - norms) // 4 + norms
    assert plan(recipe_of({"data": 8}), CONFIG).state["weights"] == alone
    tokens = plan(recipe_of({"data": 8}), CONFIG).state["batch"]
    assert tokens == plan(recipe_of(), CONFIG).state["batch"] // 8


def test_each_option_that_saves_memory_does():
    large = Config.named("llama-3.2-1b")

    def total(**changes):
        return plan(recipe_of(**{"batch": 16, "context": 2048} | changes), large).total

    assert total(remat="layer") < total(remat="dots") < total(remat="none")
    assert total(micro_batches=4, remat="none") < total(remat="none")
    assert total(documents="joined", remat="none") < total(remat="none")
    assert total() < total(average=0.99)


def test_llama_8b_and_70b_with_adapters_fit_eight_h100s():
    """The tables of docs/notes/training.md."""
    rows = {"batch": 8, "context": 8192, "documents": "joined"}
    for name, lora, wanted in (
        ("llama-3.1-8b", None, 20.5e9),
        ("llama-3.1-8b", Lora(rank=16), 8.8e9),
        ("llama-3.1-70b", Lora(rank=16), 40.6e9),
        ("llama-3.1-70b", None, 147e9),
    ):
        recipe = recipe_of({"fsdp": 8}, **rows).replace(lora=lora)
        found = plan(recipe, Config.named(name))
        print(name, lora, {part: f"{size / 1e9:.2f} GB" for part, size in found.parts.items()})
        assert found.total == pytest.approx(wanted, rel=0.01)
        assert (found.total < fits.KNOWN["h100"].memory) == (wanted < 80e9)


def test_a_batch_that_the_mesh_does_not_cut_is_refused():
    with pytest.raises(ValueError, match=r"batch=8 is not a multiple of data x fsdp .*= 16"):
        plan(recipe_of({"fsdp": 8}, micro_batches=2), CONFIG)


def test_what_does_not_fit_is_refused_before_anything_is_allocated(tmp_path, monkeypatch):
    recipe = recipe_of(dtype="float32", context=16)
    recipe = recipe.replace(model=Model(config="tiny"), tokens=str(token_folder(tmp_path)))
    monkeypatch.setattr(fits, "free_memory", lambda: 2**20)
    before = len(jax.live_arrays())
    with pytest.raises(ValueError, match=r"takes .* on each device .* this machine has 1.05 MB"):
        train(recipe, tmp_path / "run")
    assert len(jax.live_arrays()) == before
    assert not (tmp_path / "run").exists()


def test_a_device_is_known_by_its_name_or_its_memory():
    assert fits.named_device("H100").memory == 84_929_347_584
    assert fits.named_device("24GB").memory == 24_000_000_000
    with pytest.raises(ValueError, match="device='h1' is unknown; it is one of h100, h200, a100"):
        fits.named_device("h1")


def test_the_command_says_the_parts_and_trains_nothing(tmp_path, capsys):
    from llama_jax.cli import main

    file = ROOT / "configs/train/shakespeare.toml"
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--plan", "--device", "h100", "--set", "mesh.data=4"])
    assert not ended.value.code
    said = capsys.readouterr().out
    assert "4 devices" in said
    assert "weights" in said
    assert "a device in all" in said
    with pytest.raises(SystemExit) as ended:
        main(["train", str(file), "--plan", "--device", "0.01GB"])
    assert ended.value.code == 1
    assert "lower step.batch" in capsys.readouterr().err
