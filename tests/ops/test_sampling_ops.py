"""What happens to logits before a draw, against statements of it in NumPy that sort and loop."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import request, sampled, state, survivors_in_numpy

from llama_jax import kernels
from llama_jax.generation.sample import sample
from llama_jax.kernels import argmax, max_and_argmax, select, top_k, top_k_keeps, top_p_keeps
from llama_jax.kernels.forms import FORMS
from llama_jax.ops import sampling
from llama_jax.ops.sampling import min_p_keeps, penalized, with_noise

DRAWS = 20_000


def draw(logits, seeds, positions):
    return argmax(with_noise(logits, seeds, positions))


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def penalized_in_numpy(logits, in_prompt, counts, repetition, presence, frequency):
    out = np.array(logits, np.float64)
    for token in range(len(out)):
        if in_prompt[token] or counts[token]:
            out[token] = out[token] / repetition if out[token] > 0 else out[token] * repetition
        if counts[token]:
            out[token] -= presence + frequency * counts[token]
    return out


def top_k_in_numpy(logits, k):
    keeps = np.zeros(len(logits), bool)
    keeps[np.argsort(-np.asarray(logits), kind="stable")[: k or len(logits)]] = True
    return keeps


def min_p_in_numpy(logits, min_p):
    probs = softmax(np.float64(logits))
    return probs >= min_p * probs.max()


def probabilities_in_numpy(logits, settings, in_prompt, counts):
    """What `sample` draws from, in the order that SamplingSettings states."""
    s = settings
    x = penalized_in_numpy(
        logits,
        in_prompt,
        counts,
        s.get("repetition_penalty", 1),
        s.get("presence_penalty", 0),
        s.get("frequency_penalty", 0),
    )
    for token, bias in s.get("logit_bias", {}).items():
        x[token] += bias
    for token in s.get("forbidden_ids", ()):
        x[token] = -np.inf
    if counts.sum() < s.get("min_new_tokens", 0):
        for token in s.get("stop_ids", ()):
            x[token] = -np.inf
    temperature = s.get("temperature", 1.0)
    if temperature == 0:
        return np.eye(len(x))[np.argmax(x)]
    x = x / temperature
    x = np.where(top_k_in_numpy(x, s.get("top_k", 0)), x, -np.inf)
    x = np.where(survivors_in_numpy(softmax(x), s.get("top_p", 1.0)), x, -np.inf)
    x = np.where(min_p_in_numpy(x, s.get("min_p", 0.0)), x, -np.inf)
    return softmax(x)


def drawn(logits, settings, in_prompt, counts):
    """How often each token comes, of as many rows as DRAWS: one text under so many seeds."""
    vocab = len(logits)
    asked = request(1, vocab, **({"temperature": 1.0} | settings))
    spread = lambda x: jnp.broadcast_to(x, (DRAWS, *x.shape[1:])) if x.ndim else x  # noqa: E731
    asked = jax.tree.map(spread, asked)
    seeded = asked.numbers | {"seed": jnp.arange(DRAWS, dtype=jnp.uint32)}
    asked = dataclasses.replace(asked, numbers=seeded)
    before = state(
        DRAWS,
        vocab,
        count=int(counts.sum()),
        in_prompt=np.broadcast_to(in_prompt, (DRAWS, vocab)),
        counts=np.broadcast_to(counts, (DRAWS, vocab)),
    )
    tokens = jax.jit(sample)(jnp.broadcast_to(jnp.asarray(logits), (DRAWS, vocab)), asked, before)
    return np.bincount(tokens, minlength=vocab) / DRAWS


def assert_drawn_from(found, probs):
    assert (found[probs == 0] == 0).all(), "a token came that cannot"
    assert (np.abs(found - probs) <= 4.5 * np.sqrt(probs * (1 - probs) / DRAWS) + 1e-9).all()


# Each transform alone


@pytest.mark.parametrize("repetition", [0.5, 1.0, 1.3, 4.0])
@pytest.mark.parametrize(("presence", "frequency"), [(0.0, 0.0), (0.7, 0.0), (-0.5, 1.5)])
def test_penalties_are_those_of_their_papers(repetition, presence, frequency):
    rng = np.random.default_rng(0)
    logits = np.float32(3 * rng.standard_normal((4, 60)))
    logits[0, :6] = [0.0, -0.0, -np.inf, 1e30, -1e30, 1e-30]
    in_prompt, counts = rng.random((4, 60)) < 0.3, rng.integers(0, 4, (4, 60))
    in_prompt[0, :6] = True
    same = [np.full(4, value, np.float32) for value in (repetition, presence, frequency)]
    found = jax.jit(penalized)(logits, in_prompt, counts, *same)
    for row in range(4):
        wanted = penalized_in_numpy(
            logits[row], in_prompt[row], counts[row], repetition, presence, frequency
        )
        np.testing.assert_allclose(found[row], wanted, rtol=1e-6, atol=1e-6)


def test_penalties_of_nothing_change_no_bit_though_a_neighbour_has_some():
    logits = jax.random.normal(jax.random.key(0), (2, 500)) * 10
    seen, counts = jnp.ones((2, 500), bool), jnp.full((2, 500), 3)
    one, none = jnp.array([1.5, 1.0]), jnp.array([0.5, 0.0])
    found = jax.jit(penalized)(logits, seen, counts, one, none, none)
    np.testing.assert_array_equal(found[1], logits[1])
    assert (found[0] != logits[0]).all()


CASES = {
    "random": np.random.default_rng(1).standard_normal(50),
    "all tied": np.zeros(20),
    "ties": np.repeat([1.0, 3.0, 2.0, 3.0], 4),
    "both zeros": np.array([0.0, -0.0, 0.0, -0.0, 1.0, -1.0]),
    "forbidden": np.array([-np.inf, 2.0, -np.inf, 1.0, -np.inf]),
    "huge": np.array([1e38, -1e38, 3e38, 1e-38, -1e-38, 0.0]),
    "one": np.array([0.3]),
}


@pytest.mark.parametrize("name", CASES)
def test_top_k_keeps_what_a_stable_sort_keeps(name):
    logits = np.float32(CASES[name])
    ks = sorted({0, 1, 2, 3, len(logits) // 2, len(logits) - 1, len(logits)})
    rows = np.broadcast_to(logits, (len(ks), len(logits)))
    found = np.asarray(jax.jit(top_k_keeps)(rows, np.array(ks, np.int32)))
    for k, keeps in zip(ks, found, strict=True):
        np.testing.assert_array_equal(keeps, top_k_in_numpy(logits, k), err_msg=f"k={k}")


def test_top_k_counts_a_vocabulary_of_128256_to_the_token():
    logits = np.float32(np.random.default_rng(0).standard_normal((1, 128256)))
    logits[0, 1000:90000] = 0.5  # more ties than top_k has room for
    for k in (1, 50, 40_000, 128_255, 128_256):
        keeps = np.asarray(jax.jit(top_k_keeps)(logits, np.array([k], np.int32)))[0]
        assert keeps.sum() == k
        np.testing.assert_array_equal(keeps, top_k_in_numpy(logits[0], k))


@pytest.mark.parametrize("bits", [1, 4], ids=["by halves", "by fifteen sums"])
def test_equals_are_cut_to_the_token_in_a_vocabulary_of_millions(bits):
    vocab, k = 2**20 + 8, 2**20 + 3
    logits = jnp.zeros((1, vocab))
    (keeps,) = select.leads(logits, jnp.ones_like(logits), jnp.array([k - 1.0]), bits=bits)
    np.testing.assert_array_equal(keeps, np.arange(vocab) < k)


@pytest.mark.parametrize("name", [name for name in CASES if name != "huge"])
def test_min_p_keeps_what_its_definition_keeps(name):
    logits = np.float32(CASES[name])
    for min_p in (0.0, 1e-6, 0.05, 0.3, 1.0):
        (keeps,) = np.asarray(jax.jit(min_p_keeps)(logits[None], np.float32([min_p])))
        np.testing.assert_array_equal(keeps, min_p_in_numpy(logits, min_p), err_msg=str(min_p))


def test_top_p_keeps_the_rule_where_most_of_the_vocabulary_is_cut_off():
    logits = np.full(1000, -np.inf, np.float32)
    logits[[3, 500, 999]] = [1.0, 2.0, 0.0]
    probs = np.asarray(jax.nn.softmax(logits))
    for p in (0.0, 0.3, 0.7, 0.95, 1.0):
        keeps = np.asarray(jax.jit(top_p_keeps)(probs[None], np.float32([p])))[0]
        np.testing.assert_array_equal(keeps, survivors_in_numpy(probs, p))


def test_the_likeliest_of_equals_is_the_first_in_every_platforms_form():
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 4, (50, 37)).astype(np.float32)
    logits[1], logits[2, 5:], logits[3, 7] = -np.inf, -np.inf, np.inf
    assert set(FORMS["max_and_argmax"]) == {"cpu", "default"}
    for find in (max_and_argmax, *FORMS["max_and_argmax"].values()):
        largest, ids = jax.jit(find)(logits)
        np.testing.assert_array_equal(largest, logits.max(axis=-1))
        np.testing.assert_array_equal(ids, logits.argmax(axis=-1))
    np.testing.assert_array_equal(argmax(jnp.array(logits)), logits.argmax(axis=-1))


def test_a_draw_is_jaxs_own_of_the_rows_seed_and_position():
    logits = jax.random.normal(jax.random.key(0), (3, 40))
    seeds, positions = jnp.array([0, 7, 7], jnp.uint32), jnp.array([4, 4, 5], jnp.int32)
    for row, token in enumerate(draw(logits, seeds, positions)):
        key = jax.random.fold_in(jax.random.key(seeds[row]), positions[row])
        assert token == jax.random.categorical(key, logits[row])


def test_a_draw_has_the_softmax_of_its_logits():
    logits = jnp.array([3.0, 1.0, -jnp.inf, 0.0, 2.0])
    rows = jnp.broadcast_to(logits, (DRAWS, 5))
    tokens = jax.jit(draw)(rows, jnp.arange(DRAWS, dtype=jnp.uint32), jnp.full(DRAWS, 9))
    found = np.bincount(tokens, minlength=5) / DRAWS
    assert_drawn_from(found, np.float64(jax.nn.softmax(logits)))


# All of them, in their order

VOCAB = 12
ALONE = [
    {"temperature": 0.5},
    {"temperature": 3.0},
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": VOCAB},
    {"top_k": 10**9},
    {"top_p": 0.0},
    {"top_p": 0.6},
    {"min_p": 0.2},
    {"min_p": 1.0},
    {"repetition_penalty": 1.7},
    {"presence_penalty": 1.5},
    {"frequency_penalty": 0.8},
    {"logit_bias": {2: 3.0, 5: -np.inf}},
    {"forbidden_ids": [0, 1, 4]},
    {"stop_ids": [3, 7], "min_new_tokens": 6},
    {"stop_ids": [3, 7], "min_new_tokens": 5},  # the state has 5 new tokens, so they may come
]


def text_so_far(seed):
    rng = np.random.default_rng(seed)
    logits = np.float32(2 * rng.standard_normal(VOCAB))
    counts = np.bincount(rng.integers(0, VOCAB, 5), minlength=VOCAB)
    return logits, rng.random(VOCAB) < 0.3, counts


@pytest.mark.parametrize("settings", ALONE, ids=str)
def test_a_setting_alone_draws_from_its_statement(settings):
    logits, in_prompt, counts = text_so_far(0)
    found = drawn(logits, settings, in_prompt, counts)
    assert_drawn_from(found, probabilities_in_numpy(logits, settings, in_prompt, counts))


@pytest.mark.parametrize("seed", range(16))
def test_settings_together_draw_from_their_statement_in_the_stated_order(seed):
    rng = np.random.default_rng(100 + seed)
    logits, in_prompt, counts = text_so_far(seed)
    settings = {
        "repetition_penalty": rng.uniform(0.7, 2),
        "presence_penalty": rng.uniform(-1, 1),
        "frequency_penalty": rng.uniform(-0.5, 1),
        "logit_bias": {int(rng.integers(VOCAB)): rng.uniform(-2, 4), int(rng.integers(VOCAB)): 1.0},
        "forbidden_ids": rng.integers(0, VOCAB, 2).tolist(),
        "stop_ids": rng.integers(0, VOCAB, 2).tolist(),
        "min_new_tokens": int(rng.choice([0, 9])),
        "temperature": rng.choice([0.0, 0.6, 1.0, 1.8]),
        "top_k": int(rng.choice([0, 5, 9])),
        "top_p": rng.choice([0.7, 0.95, 1.0]),
        "min_p": rng.choice([0.0, 0.05, 0.2]),
    }
    found = drawn(logits, settings, in_prompt, counts)
    assert_drawn_from(found, probabilities_in_numpy(logits, settings, in_prompt, counts))


def test_the_order_matters_and_is_the_stated_one():
    """Each pair of settings would let another set of tokens through the other way round."""
    even = np.zeros(4, bool), np.zeros(4, int)

    def support(probs, **settings):
        return set(np.flatnonzero(drawn(np.log(np.float32(probs)), settings, *even)).tolist())

    # Top-k first: of [.4 .3 | .2 .1] what is left is [.57 .43], of which top-p keeps one.
    assert support([0.4, 0.3, 0.2, 0.1], top_k=2, top_p=0.5) == {0}
    assert support([0.4, 0.3, 0.2, 0.1], top_p=0.5) == {0, 1}
    # The temperature before top-p: cold, the first alone has more than half.
    assert support([0.4, 0.3, 0.2, 0.1], temperature=0.1, top_p=0.5) == {0}
    # Forbidden before top-k: a forbidden token takes no place.
    assert support([0.4, 0.3, 0.2, 0.1], forbidden_ids=[0], top_k=2) == {1, 2}
    # Forbidden after the bias: no bias brings a token back.
    assert support([0.4, 0.3, 0.2, 0.1], forbidden_ids=[0], logit_bias={0: 99.0}, top_k=1) == {1}


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e35])
@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-3])
def test_a_tiny_temperature_takes_the_likeliest_token_of_any_logits(scale, temperature):
    logits = np.float32(scale * np.array([[1.0, -2.0, 7.0, 6.0], [-1.0, -9.0, -3.0, -0.5]]))
    for more in ({}, {"top_p": 0.9}, {"top_k": 3, "min_p": 0.1}):
        tokens = sampled(logits, request(2, 4, temperature=temperature, **more))
        if scale / temperature > 1e4:
            assert tokens.tolist() == [2, 3]


def test_a_huge_temperature_keeps_forbidden_tokens_forbidden():
    logits = jnp.zeros((200, 6))
    asked = request(200, 6, temperature=3e38, forbidden_ids=[1], seed=range(200))
    assert set(sampled(logits, asked).tolist()) == {0, 2, 3, 4, 5}


def test_a_greedy_row_obeys_what_acts_before_the_temperature_and_nothing_after():
    logits = jnp.array([[5.0, 4.0, 3.0, 2.0]])
    greedy = lambda **s: int(sampled(logits, request(1, 4, **s))[0])  # noqa: E731
    assert greedy() == 0
    assert greedy(top_k=1, top_p=0.0, min_p=1.0) == 0
    assert greedy(forbidden_ids=[0]) == 1
    assert greedy(logit_bias={3: 10.0}) == 3
    assert greedy(stop_ids=[0, 1], min_new_tokens=1) == 2
    used = {
        "counts": np.array([[1, 0, 0, 0]]),
        "in_prompt": np.array([[False, True, False, False]]),
    }
    assert int(sampled(logits, request(1, 4, presence_penalty=1.5), **used)[0]) == 1
    assert int(sampled(logits, request(1, 4, repetition_penalty=2.0), **used)[0]) == 2


def test_a_stop_id_that_no_vocabulary_has_is_never_met():
    logits = jnp.array([[1.0, 2.0, 3.0]])
    asked = request(1, 3, stop_ids=[-1, 3, 2**40], min_new_tokens=1)
    assert not np.asarray(asked.stop_id_mask).any()
    assert sampled(logits, asked).tolist() == [2]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_the_kernels_keep_what_the_plain_rules_keep(p):
    logits = jnp.round(8 * jax.random.normal(jax.random.key(0), (6, 500))) / 4  # many equals
    eighths = jnp.array([[4.0, 2, 1, 1, 0], [2, 2, 2, 1, 1]]) / 8  # exact sums
    for probs in (jax.nn.softmax(logits), eighths):
        limit = jnp.full(len(probs), p)
        ours, plain = kernels.top_p_keeps(probs, limit), sampling.top_p_keeps(probs, limit)
        np.testing.assert_array_equal(ours, plain)
    k = jnp.array([0, 1, 4, 99, 499, 500])
    np.testing.assert_array_equal(kernels.top_k_keeps(logits, k), sampling.top_k_keeps(logits, k))


def test_no_vocabulary_is_sorted():
    logits = jnp.zeros((2, 128_256))
    asked = request(2, 128_256, temperature=1.0, top_k=50, top_p=0.9, min_p=0.1)
    program = jax.jit(sample).lower(logits, asked, state(2, 128_256)).as_text()
    assert "while" in program
    assert "sort" not in program
    assert "top_k" not in program


@pytest.mark.parametrize("vocab", [7, 400, 3001])
def test_top_k_is_a_sorts_with_equals_in_the_order_of_their_ids(vocab):
    values = jnp.round(3 * jax.random.normal(jax.random.key(0), (4, vocab)))  # many equals
    for k in (1, min(20, vocab)):
        for ours, theirs in zip(top_k(values, k), jax.lax.top_k(values, k), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_search_by_fifteen_sums_keeps_what_a_search_by_halves_keeps():
    logits = jnp.round(8 * jax.random.normal(jax.random.key(0), (6, 500))) / 4
    ones, k = jnp.ones_like(logits), jnp.array([0.0, 1, 4, 99, 498, 499])
    probs, p = jax.nn.softmax(logits), jnp.array([0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
    for weights, values, limit in ((ones, logits, k), (probs, probs, p)):
        halves = select.leads(values, weights, limit, bits=1)
        fifteen = select.leads(values, weights, limit, bits=4)
        np.testing.assert_array_equal(halves, fifteen)
        assert len(set(np.sum(halves, axis=-1).tolist())) > 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "penalty",
    [{"repetition_penalty": 1e-38}, {"presence_penalty": -3e38, "frequency_penalty": -3e38}],
)
def test_penalties_without_measure_make_no_nan_and_draw_nothing_forbidden(temperature, penalty):
    asked = request(1, 4, temperature=temperature, forbidden_ids=[0], **penalty)
    counts = np.array([[3, 2, 1, 0]])
    logits = np.array([[9.0, 8.0, -7.0, 1.0]], np.float32)
    token = sampled(logits, asked, counts=counts, in_prompt=counts > 0, count=6)
    assert int(token[0]) in (1, 2)
