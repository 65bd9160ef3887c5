"""A training step compiled for H100s: what it keeps, what it moves, and what the plan says."""

import functools
import re

import pytest
from compiled_text import ARRAY, COLLECTIVES, program
from training_programs import lowered_step, training_recipe

from llama_jax import kernels
from llama_jax.config import Config
from llama_jax.train.plan import plan

LAYERS, TIME, VOCAB = 4, 1920, 16000  # no weight has an axis of 1920, nor of 2048
CONFIG = Config.named("llama-3.2-1b").replace(
    dim=1024,
    n_layers=LAYERS,
    n_heads=16,
    n_kv_heads=4,
    head_dim=64,
    hidden_dim=4096,
    vocab_size=VOCAB,
    tie_embeddings=False,
)
SMALLEST = CONFIG.dim * CONFIG.n_kv_heads * CONFIG.head_dim
"""Numbers of wk, the smallest matrix."""


@pytest.fixture(scope="module")
def compiled(h100s, cudnn):
    """A function from a recipe's changes to its compiled step, each compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.gpu, "has_training_kernel", lambda *_: True)

        @functools.cache
        def of(axes=(), **step):
            recipe = training_recipe(TIME, dict(axes), **step)
            lowered, state = lowered_step(h100s, CONFIG, recipe)
            return recipe, lowered.compile(), state

        yield of


DATA = {"axes": (("data", 8),), "batch": 64, "micro_batches": 4}
FSDP = {"axes": (("fsdp", 8),), "batch": 64, "micro_batches": 4}
ALL = [{"remat": "none"}, {"remat": "layer"}, {"remat": "dots"}, DATA, FSDP]


def test_what_is_computed_again_saves_memory(compiled):
    temporaries = {
        remat: compiled(remat=remat)[1].memory_analysis().temp_size_in_bytes
        for remat in ("none", "layer", "dots")
    }
    print({remat: f"{size / 1e6:,.0f} MB" for remat, size in temporaries.items()})
    assert temporaries["layer"] <= 0.45 * temporaries["none"]
    assert temporaries["dots"] <= 0.9 * temporaries["none"]


@pytest.mark.parametrize("changes", ALL, ids=str)
def test_the_plan_is_within_a_tenth_of_the_programs_memory(changes, compiled):
    recipe, step, _ = compiled(**changes)
    memory = step.memory_analysis()
    whole = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    whole += memory.output_size_in_bytes - memory.alias_size_in_bytes
    planned = plan(recipe, CONFIG).total
    print(f"planned {planned / 1e6:,.0f} MB, compiled {whole / 1e6:,.0f} MB")
    assert planned == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("changes", ALL, ids=str)
def test_every_buffer_of_the_state_is_donated(changes, compiled):
    _, step, state = compiled(**changes)
    assert step.memory_analysis().alias_size_in_bytes == state


@pytest.mark.parametrize("remat", ["none", "layer", "dots"])
def test_no_array_has_all_logits_or_all_pairs_of_tokens(remat, compiled):
    recipe, step, _ = compiled(remat=remat)
    shapes = {sizes for _, sizes in ARRAY.findall(step.as_text())}
    sizes = [[int(n) for n in shape.split(",") if n] for shape in shapes]
    logits = recipe.step.batch * TIME * VOCAB
    assert max(_product(s) for s in sizes if VOCAB in s) < logits / 3
    assert [s for s in sizes if s.count(TIME) > 1] == []


def test_separate_documents_too_never_meet_as_all_pairs(h100s):
    recipe = training_recipe(TIME, documents="separate", remat="none")
    text = lowered_step(h100s, CONFIG, recipe)[0].as_text()
    time = rf"(?:{TIME}|2048)"  # a row is padded to whole blocks
    assert re.search(rf"tensor<(?:\d+x)*{time}x\w+>", text)
    assert re.findall(rf"tensor<(?:\d+x)*{time}x(?:\d+x)*{time}x\w+>", text) == []


def test_over_data_gradients_are_added_once_after_the_micro_batches(compiled):
    text = program(compiled(**DATA)[1].as_text())
    outside = [i for i in text.executed[text.entry] if _kind(i) == "all-reduce"]
    inside = [
        i
        for name, part in text.executed.items()
        for i in part
        if name != text.entry and _kind(i) in COLLECTIVES
    ]
    assert max(i.elements for i in outside) >= CONFIG.dim * VOCAB, "the output's gradient"
    assert [f"{i.name}: {i.shape}" for i in inside if i.elements >= CONFIG.dim] == []


def test_over_fsdp_a_weight_is_whole_within_its_layer_only(compiled):
    """Each layer gathers its weights, in bfloat16, and its gradient gathers them again."""
    text = program(compiled(**FSDP)[1].as_text())
    body = max(text.executed.values(), key=lambda part: sum(map(_is_gather, part)))
    alive, most, whole = {}, 0, []
    for index, i in enumerate(body):
        if _kind(i) == "all-gather":
            found = [(bits, sizes) for bits, sizes in ARRAY.findall(i.shape)]
            whole += [s for b, s in found if b == "16" and _numbers(s) in _layers_matrices()]
            assert [s for b, s in found if b == "32" and _numbers(s) >= SMALLEST] == [], i.shape
        if i.op == "all-gather-done" and VOCAB not in map(int, re.findall(r"\d+", i.shape)):
            uses = [n for n, user in enumerate(body) if i.name in _names_in(user)]
            alive[i.name] = i.elements, max(uses, default=index)
        most = max(most, sum(size for size, last in alive.values() if last >= index))
    assert len(whole) == 2 * 7 * LAYERS
    assert most <= 2 * sum(_layers_matrices().values())


def test_over_data_gradients_are_added_beside_other_work(compiled):
    """While some are added, others are made or applied. The last to be made, the embedding's, may
    be waited for."""
    beside = program(compiled(**DATA)[1].as_text()).beside()
    large = [(i, between) for i, between in beside if i.elements >= SMALLEST]
    assert len(large) >= LAYERS, "not all at once, after the last is made"
    assert len([i.shape for i, between in large if not between]) <= 1


def test_over_fsdp_a_layer_is_gathered_while_the_one_below_multiplies(compiled):
    """Going forward. `test_overlap.py` has the way back, of a model as wide as 8B."""
    text = program(compiled(**FSDP)[1].as_text())
    beside = [(i, between) for i, between in text.beside() if i.elements >= SMALLEST]
    assert len([i.shape for i, _ in beside if i.waits]) <= 1, "the first layer's weights"
    gathers = [
        between for i, between in beside if _is_gather(i) and i.elements < CONFIG.dim * VOCAB
    ]
    assert len(gathers) == 2 * LAYERS
    assert sum(any(i.multiplies for i in between) for between in gathers) >= LAYERS - 1


def _layers_matrices():
    c = CONFIG
    query, keys = c.dim * c.n_heads * c.head_dim, SMALLEST
    return {query: 2 * query, keys: 2 * keys, c.dim * c.hidden_dim: 3 * c.dim * c.hidden_dim}


def _kind(instruction):
    return instruction.op.removesuffix("-start")


def _is_gather(instruction):
    return _kind(instruction) == "all-gather"


def _names_in(instruction):
    return instruction.operands


def _numbers(sizes):
    return _product(int(n) for n in sizes.split(",") if n)


def _product(sizes):
    total = 1
    for size in sizes:
        total *= size
    return total
