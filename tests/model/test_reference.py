"""Ours = Meta's: logits, log-probabilities and greedy text of Meta's own code, on its own files.

tests/golden/meta holds small random models that Meta's reference code wrote, in 1, 2 and 4 shards,
and what it computed from them in float32 (see `reference/meta` in shared/data/README.md).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN

import llama_jax
from llama_jax.model.cache import KVCache

pytestmark = pytest.mark.bits

TOLERANCE = 2e-4
forward = jax.jit(llama_jax.forward)


@pytest.fixture(scope="module", params=["llama1", "llama2-gqa", "llama3", "llama3.1"])
def model(request):
    folder = GOLDEN / "meta" / request.param
    with np.load(folder / "reference.npz") as file:
        reference = dict(file)
    return llama_jax.load(folder, dtype="float32"), reference


def positions_of(tokens):
    return jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)


def logits_through_the_cache(params, tokens, prefill):
    """One pass over the first `prefill` tokens, then token by token."""
    batch, time = tokens.shape
    cache = KVCache.empty(params.config, batch=batch, slots=time + 3, dtype=jnp.float32)
    ends = [prefill, *range(prefill + 1, time + 1)]
    parts = []
    for start, end in zip([0, *ends], ends, strict=False):
        positions = positions_of(tokens)[:, start:end]
        logits, cache = forward(params, tokens[:, start:end], positions, cache)
        parts.append(logits)
    return jnp.concatenate(parts, axis=1)


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(1, 2)], ids=["all", "0", "1"])
def test_logits_are_metas_at_every_stored_position(model, rows):
    params, reference = model
    tokens, stride = reference["tokens"][rows], int(reference["logits_stride"])
    logits, _ = forward(params, tokens, positions_of(tokens))
    np.testing.assert_allclose(
        logits[:, ::stride], reference["logits"][rows], atol=TOLERANCE, rtol=0
    )


@pytest.mark.parametrize("rows", [slice(None), slice(0, 1), slice(1, 2)], ids=["all", "0", "1"])
@pytest.mark.parametrize("prefill", [1, 50])
def test_logits_through_the_cache_are_metas(model, prefill, rows):
    params, reference = model
    tokens, stride = reference["tokens"][rows], int(reference["logits_stride"])
    logits = logits_through_the_cache(params, tokens, prefill)
    np.testing.assert_allclose(
        logits[:, ::stride], reference["logits"][rows], atol=TOLERANCE, rtol=0
    )


def test_teacher_forced_log_probabilities_are_metas(model):
    params, reference = model
    tokens = reference["greedy"]
    logits, _ = forward(params, tokens, positions_of(tokens))
    logprobs = jax.nn.log_softmax(logits[:, :-1], axis=-1)
    chosen = jnp.take_along_axis(logprobs, jnp.asarray(tokens)[:, 1:, None], axis=-1)[..., 0]
    np.testing.assert_allclose(chosen, reference["token_logprobs"], atol=TOLERANCE, rtol=0)


def prompts_of(reference):
    return [[int(token) for token in row if token >= 0] for row in reference["prompts"]]


def check_greedy(reference, row, prompt, tokens):
    wanted = reference["greedy"][row, len(prompt) :].tolist()
    gap = float(reference["min_top2_gap"])
    assert tokens == wanted, f"the two best logits are never nearer than {gap:.1e}"


def test_greedy_rows_are_metas_token_for_token_all_in_one_batch(model):
    params, reference = model
    prompts, width = prompts_of(reference), reference["greedy"].shape[1]
    longest = width - min(map(len, prompts))
    done = llama_jax.generate(params, prompts, max_new_tokens=longest, temperature=0.0)
    for row, prompt in enumerate(prompts):
        check_greedy(reference, row, prompt, done[row].tokens[: width - len(prompt)])


@pytest.mark.parametrize("row", [0, 1, 2])
def test_greedy_rows_are_metas_token_for_token_alone(model, row):
    params, reference = model
    prompt = prompts_of(reference)[row]
    new = reference["greedy"].shape[1] - len(prompt)
    (done,) = llama_jax.generate(params, [prompt], max_new_tokens=new, temperature=0.0)
    check_greedy(reference, row, prompt, done.tokens)
