"""What a training step over fsdp sends, and beside what, where layers are as wide as those of 8B.

XLA joins what is sent of small layers, and so waits for all of it at once. The weights of such wide
ones it sends one by one. Four layers show what every further one does.
"""

import pytest
from compiled_text import ARRAY, program
from programs import LLAMA_8B, shallow
from training_programs import lowered_step, training_recipe

from llama_jax import kernels

LAYERS, TIME = 4, 4096
CONFIG = shallow(LLAMA_8B, LAYERS)
LARGE = CONFIG.dim * CONFIG.n_kv_heads * CONFIG.head_dim // 8
"""Numbers of a device's part of wk, the smallest matrix."""


@pytest.fixture(scope="module")
def step(h100s, cudnn):
    recipe = training_recipe(TIME, {"fsdp": 8}, batch=16, micro_batches=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.gpu, "has_training_kernel", lambda *_: True)
        lowered, _ = lowered_step(h100s, CONFIG, recipe)
        return program(lowered.compile().as_text())


@pytest.fixture(scope="module")
def sent(step):
    """Each collective, and whether products of matrices are multiplied while it is under way."""
    return [
        (i, any(k.multiplies or "fmha" in k.rest for k in between))
        for i, between in step.beside()
        if i.elements >= LARGE
    ]


def test_most_of_what_is_sent_is_sent_beside_products(sent):
    """Not so: what the first layer waits for, and a few weights when the backward pass begins."""
    hidden = sum(i.nbytes for i, beside in sent if beside)
    whole = sum(i.nbytes for i, _ in sent)
    print(f"{hidden / 1e6:,.0f} of {whole / 1e6:,.0f} MB beside products")
    assert hidden >= 0.8 * whole


def test_the_gradients_of_a_layer_are_added_beside_the_products_of_the_one_below(sent):
    """All large ones: also the output's, beside the last layer's."""
    added = [(i, beside) for i, beside in sent if i.op.startswith("reduce-scatter")]
    numbers = sum(i.nbytes for i, _ in added)
    assert sum(i.nbytes for i, beside in added if beside) >= 0.9 * numbers
    assert [i.shape for i, beside in added if not beside and _sends(i, CONFIG.vocab_size)] == []


def test_the_embedding_is_never_sent(step):
    """Each device looks its columns up for the tokens of all, and the devices exchange those."""
    text = [i for part in step.executed.values() for i in part]
    gathered = [i for i in text if i.op == "all-gather-start" and _sends(i, CONFIG.vocab_size)]
    assert len(gathered) == 1, "the output, once a micro-batch"
    assert [i.op for i in text if i.op.startswith("all-to-all-start")] == ["all-to-all-start"] * 2
    added = [i for i in text if i.op.startswith("reduce-scatter") and _sends(i, CONFIG.vocab_size)]
    assert len({i.name.removesuffix("done") for i in added if i.op.endswith("start")}) == 1


def _sends(instruction, size):
    return any(str(size) in sizes.split(",") for _, sizes in ARRAY.findall(instruction.shape))
