"""Ten steps of a tiny model, held against torch and transformers: losses, norms and weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import config_of

import llama_jax
from llama_jax.checkpoint.export import export
from llama_jax.model.transformer import init_params
from llama_jax.train.recipe import Optimizer, Recipe, Step
from llama_jax.train.rows import Batch
from llama_jax.train.state import new_state
from llama_jax.train.step import jitted_step

torch = pytest.importorskip("torch", reason="torch is absent; pip install -e '.[oracle]'")
transformers = pytest.importorskip(
    "transformers", reason="transformers is absent; pip install -e '.[oracle]'"
)

pytestmark = pytest.mark.filterwarnings("ignore")  # theirs
STEPS, ROWS, TIME, LARGEST, WARMUP = 10, 8, 24, 1e-2, 3


def batch_of(config, step):
    """Rows of which from 3 to all tokens are trained on."""
    ids = np.random.default_rng(step).integers(0, config.vocab_size, (ROWS, TIME + 1))
    weights = (np.arange(TIME) < 3 * np.arange(1, ROWS + 1)[:, None]).astype(np.float32)
    positions = np.broadcast_to(np.arange(TIME), (ROWS, TIME))
    return Batch(ids[:, :-1].astype(np.int32), ids[:, 1:].astype(np.int32), positions, weights)


def loaded(params, folder):
    """Our params as transformers opens them."""
    llama_jax.save(params, folder / "native")
    export(folder / "native", folder / "hf", format="hf")
    name = "dtype" if transformers.__version__ >= "5" else "torch_dtype"
    return transformers.AutoModelForCausalLM.from_pretrained(
        folder / "hf", **{name: torch.float32}, attn_implementation="eager"
    )


def rate(step):
    """The paper's schedule: a warm-up, then a cosine down to a tenth."""
    if step < WARMUP:
        return LARGEST * (step + 1) / WARMUP
    part = (step + 1 - WARMUP) / (STEPS - WARMUP)
    return LARGEST * (0.1 + 0.45 * (1 + math.cos(math.pi * part)))


def torchs_training(model, batches):
    """Each step's loss and gradient norm; the model is changed."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LARGEST, betas=(0.9, 0.95), eps=1e-5)
    found = []
    for step, batch in enumerate(batches):
        tokens, targets = (torch.tensor(x, dtype=torch.long) for x in (batch.tokens, batch.targets))
        weights = torch.tensor(batch.weights)
        logits = model(tokens).logits.float()
        each = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        )
        loss = (each * weights.flatten()).sum() / weights.sum()
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        optimizer.step()
        found.append((float(loss), float(norm)))
    return found


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_ten_steps_are_torchs(tied, tmp_path):
    config = config_of(tie_embeddings=tied)
    params = init_params(jax.random.key(0), config)
    # Larger than at the start of a training, so that attention and clipping matter.
    params = jax.tree.map(lambda w: w * 4 if w.ndim > 1 else w, params)
    batches = [batch_of(config, step) for step in range(STEPS)]
    (tmp_path / "before").mkdir()
    model = loaded(params, tmp_path / "before")
    theirs = torchs_training(model, batches)
    recipe = Recipe(
        steps=STEPS,
        optimizer=Optimizer(learning_rate=LARGEST, warmup=WARMUP),
        step=Step(batch=ROWS, context=TIME, micro_batches=4, dtype="float32", documents="separate"),
    )
    state, step, ours = new_state(recipe, params), jitted_step(recipe), []
    for batch in batches:
        state, metrics = step(state, jax.tree.map(jnp.asarray, batch))
        ours.append((float(metrics.loss), float(metrics.gradient_norm)))
    assert max(norm for _, norm in ours) > 1, "gradients are clipped"
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=0)
    (tmp_path / "after").mkdir()
    after = dict(loaded(state.params, tmp_path / "after").named_parameters())
    for name, weight in model.named_parameters():
        np.testing.assert_allclose(
            after[name].detach(), weight.detach(), atol=1e-4, rtol=0, err_msg=name
        )
