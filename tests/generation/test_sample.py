"""Meta's sampling rule against a NumPy statement of it, and the loop around it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampling_cases import request, sampled, survivors_in_numpy

from llama_jax.generation.limits import ROUND_TOKENS
from llama_jax.generation.loop import decode, prefill
from llama_jax.generation.state import NewCache
from llama_jax.kernels import top_p_keeps
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward

LEVELS = [0.0, 0.1, 0.5, 0.9, 1.0]


def keeps(probs, p):
    return np.asarray(jax.jit(top_p_keeps)(jnp.atleast_2d(probs), jnp.array([p], jnp.float32)))[0]


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize("vocab", [1, 2, 50, 32000])
def test_top_p_keeps_what_metas_rule_keeps_of_random_probabilities(p, vocab):
    for seed in range(5):
        logits = 3 * np.random.default_rng(seed).standard_normal(vocab)
        probs = np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))
        np.testing.assert_array_equal(keeps(probs, p), survivors_in_numpy(probs, p))


@pytest.mark.parametrize("p", LEVELS)
@pytest.mark.parametrize(
    "eighths",
    [
        [1] * 8,  # all tied
        [4, 2, 2],  # a tie that crosses 0.5 and 0.9
        [2, 2, 4],
        [2, 1, 2, 1, 2],
        [8, 0, 0],  # a certain token, and tied zeros
        [0, 0, 4, 4],
    ],
)
def test_top_p_keeps_what_metas_rule_keeps_of_tied_probabilities(p, eighths):
    # Eighths are exact in float32, so a sum that equals p equals it here as there.
    probs = np.array(eighths, np.float32) / 8
    np.testing.assert_array_equal(keeps(probs, p), survivors_in_numpy(probs, p))


def test_the_token_that_crosses_p_stays_and_the_sum_may_equal_p():
    np.testing.assert_array_equal(keeps(np.float32([0.5, 0.25, 0.25]), 0.4), [True, False, False])
    np.testing.assert_array_equal(keeps(np.float32([0.5, 0.25, 0.25]), 0.5), [True, True, False])
    np.testing.assert_array_equal(keeps(np.float32([0.5, 0.25, 0.25]), 0.6), [True, True, False])


def test_top_p_one_keeps_every_token_though_sums_round():
    probs = np.asarray(jax.nn.softmax(jnp.linspace(0, 20, 128256)))
    assert keeps(probs, 1.0).all()


def test_rows_have_their_own_top_p():
    probs = jnp.broadcast_to(jnp.array([0.5, 0.25, 0.25]), (3, 3))
    kept = top_p_keeps(probs, jnp.array([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(kept.sum(axis=-1), [1, 2, 3])


@pytest.mark.parametrize(
    ("temperature", "top_p"),
    [(1.0, 1.0), (0.7, 0.9), pytest.param(1.5, 0.5, marks=pytest.mark.slow)],
)
def test_a_hundred_thousand_draws_have_the_frequencies_of_the_rule(temperature, top_p):
    logits, draws = jnp.array([2.0, 1.5, 1.0, 0.5, 0.0, -1.0]), 100_000
    asked = request(draws, 6, temperature=temperature, top_p=top_p, seed=range(draws))
    tokens = sampled(jnp.broadcast_to(logits, (draws, 6)), asked)
    probs = np.exp(np.float64(logits) / temperature)
    probs /= probs.sum()
    kept = probs * survivors_in_numpy(probs, top_p)
    kept /= kept.sum()
    found = np.bincount(tokens, minlength=6) / draws
    deviation = np.sqrt(kept * (1 - kept) / draws)
    assert (np.abs(found - kept) <= 4.5 * deviation).all()
    assert (found[kept == 0] == 0).all()


def test_one_seed_over_many_positions_draws_the_same_frequencies():
    logits, draws = jnp.array([1.0, 0.0, -1.0]), 100_000
    asked = request(draws, 3, temperature=1.0, seed=7)
    tokens = sampled(jnp.broadcast_to(logits, (draws, 3)), asked, lengths=jnp.arange(draws))
    probs = np.asarray(jax.nn.softmax(logits))
    found = np.bincount(tokens, minlength=3) / draws
    assert (np.abs(found - probs) <= 4.5 * np.sqrt(probs * (1 - probs) / draws)).all()


def test_temperature_zero_and_top_p_zero_take_the_likeliest_token():
    logits = jax.random.normal(jax.random.key(0), (4, 100))
    best = jnp.argmax(logits, axis=-1)
    np.testing.assert_array_equal(sampled(logits, request(4, 100)), best)
    cold = request(4, 100, temperature=1.0, top_p=0.0)
    np.testing.assert_array_equal(sampled(logits, cold), best)
    mixed = sampled(logits, request(4, 100, temperature=[0.0, 5.0, 0.0, 5.0]))
    np.testing.assert_array_equal(mixed[::2], best[::2])


def test_a_draw_is_a_function_of_seed_and_position_alone():
    logits = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1000,)), (6, 1000))
    seeds, lengths, count = [5, 9, 5, 5, 9, 1], np.array([3, 3, 1, 4, 2, 0]), [0, 0, 2, 0, 1, 0]
    asked = request(6, 1000, temperature=1.0, seed=seeds)
    together = sampled(logits, asked, lengths=lengths, count=np.array(count))
    assert together[0] == together[2]
    assert together[1] == together[4]
    assert len(set(together.tolist())) == 4
    for row in range(6):
        asked = request(1, 1000, temperature=1.0, seed=seeds[row])
        alone = sampled(logits[:1], asked, lengths=lengths[row] + count[row])
        assert alone[0] == together[row]


# The loop

PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 11, 12, 13], [5]]


def padded(time=8):
    rows = np.zeros((3, time), np.int32)
    for row, prompt in zip(rows, PROMPTS, strict=True):
        row[: len(prompt)] = prompt
    return rows, np.array([3, 7, 1], np.int32)


def start(params, prompts, lengths, asked, slots):
    new = NewCache(KVCache, len(prompts), slots, params.dtype)
    return _start(
        params, new, prompts, lengths, np.int32(0), asked, tokens_per_read=prompts.shape[1]
    )


_start = jax.jit(prefill, static_argnames="tokens_per_read")
go_on = jax.jit(decode, static_argnames="tokens_per_check")
NONE = np.zeros(3, np.int32)


def run(params, asked, until=10, slots=32, chunk=1, rows=slice(None)):
    """What one round decides, the prefill's token first."""
    prompts, lengths = padded()
    state = start(params, prompts[rows], lengths[rows], asked, slots=slots)
    return go_on(params, state, asked, NONE[rows], np.int32(until), tokens_per_check=chunk).buffer


def greedy_without_a_cache(params, prompt, new):
    text = np.zeros((1, 32), np.int32)
    text[0, : len(prompt)] = prompt
    for end in range(len(prompt), len(prompt) + new):
        logits, _ = jax.jit(forward)(params, text, jnp.arange(32)[None])
        text[0, end] = jnp.argmax(logits[0, end - 1])
    return text[0, len(prompt) : len(prompt) + new].tolist()


def test_greedy_decoding_is_the_repeated_forward_pass(params):
    done = run(params, request(3))
    for row, prompt in enumerate(PROMPTS):
        assert done.tokens[row, :10].tolist() == greedy_without_a_cache(params, prompt, 10)
    assert done.count.tolist() == [10, 10, 10]
    assert not done.stopped.any()


@pytest.mark.parametrize("chunk", [3, 8, 16])
def test_the_chunk_changes_nothing(params, chunk):
    asked = request(3, temperature=1.0, top_p=0.9, seed=range(3), max_new_tokens=[10, 4, 7])
    one, other = run(params, asked), run(params, asked, chunk=chunk)
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.count, other.count)


def test_a_row_ends_before_its_stop_token_and_the_others_go_on(params):
    free = run(params, request(3))
    stop = int(free.tokens[1, 4])
    done = run(params, request(3, stop_ids=[stop]), chunk=4)
    for row in range(3):
        wanted = free.tokens[row, :10].tolist()
        wanted = wanted[: wanted.index(stop)] if stop in wanted else wanted
        assert done.tokens[row, : done.count[row]].tolist() == wanted
        assert bool(done.stopped[row]) == (stop in free.tokens[row, :10].tolist())


def test_the_loop_ends_when_every_row_has_stopped(params):
    free = run(params, request(3))
    done = run(params, request(3, stop_ids=np.unique(free.tokens).tolist()), chunk=1)
    assert done.count.tolist() == [0, 0, 0]
    assert done.stopped.all()


def test_each_row_keeps_to_its_budget(params):
    free = run(params, request(3))
    done = run(params, request(3, max_new_tokens=[2, 0, 10]))
    assert done.count.tolist() == [2, 0, 10]
    np.testing.assert_array_equal(done.tokens[2], free.tokens[2])
    assert done.tokens[0, :10].tolist() == [*free.tokens[0, :2].tolist(), *[0] * 8]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_decodes_alike_alone_and_in_a_batch(params, temperature):
    settings = {"temperature": temperature, "top_p": 0.9}
    together = run(params, request(3, seed=[3, 4, 5], **settings))
    for row in range(3):
        asked = request(1, seed=3 + row, **settings)
        alone = run(params, asked, rows=slice(row, row + 1))
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


def test_decoding_piece_by_piece_is_decoding_at_once(params):
    asked = request(3, temperature=1.0, seed=range(3), max_new_tokens=[10, 5, 8])
    whole = run(params, asked)
    prompts, lengths = padded()
    state = start(params, prompts, lengths, asked, slots=32)
    for until in (1, 2, 6, 10):
        state = go_on(params, state, asked, NONE, np.int32(until), tokens_per_check=3)
        assert (state.buffer.count <= until).all()
    np.testing.assert_array_equal(state.buffer.tokens, whole.tokens)


def test_a_round_begins_where_the_host_has_taken_the_last(params):
    asked = request(3, temperature=1.0, seed=range(3), max_new_tokens=[10, 5, 8])
    whole = run(params, asked)
    prompts, lengths = padded()
    state, taken = start(params, prompts, lengths, asked, slots=32), NONE
    got = [[], [], []]
    for until in (1, 2, 6, 10):
        state = go_on(params, state, asked, taken, np.int32(until), tokens_per_check=3)
        for row in range(3):
            size = state.buffer.count[row] - taken[row]
            got[row] += state.buffer.tokens[row, :size].tolist()
        taken = state.buffer.count
    assert got == [whole.tokens[row, : whole.count[row]].tolist() for row in range(3)]


def test_a_round_ends_where_it_is_full_and_where_the_cache_is(params):
    asked = request(3, max_new_tokens=2000)
    done = run(params, asked, until=2000, slots=12)
    assert done.count.tolist() == [6, 6, 6], "the second prompt has 7 tokens: 5 slots are left"
    tiny = params.replace(config=params.config.replace(max_seq_len=2048))
    done = run(tiny, asked, until=2000, slots=1024, chunk=8)
    assert done.count.tolist() == [ROUND_TOKENS] * 3


@pytest.mark.parametrize("chunk", [1, 8])
def test_a_cache_that_grows_changes_no_token(params, chunk):
    asked = request(3, temperature=1.0, seed=range(3), max_new_tokens=20)
    whole = run(params, asked, until=20)
    prompts, lengths = padded()
    state = start(params, prompts, lengths, asked, slots=8)
    for slots in (8, 16, 32):
        if slots > 8:
            state = dataclasses.replace(state, cache=state.cache.grown(slots))
        state = go_on(params, state, asked, NONE, np.int32(20), tokens_per_check=chunk)
    np.testing.assert_array_equal(state.buffer.tokens, whole.tokens)


def test_what_a_user_turns_compiles_nothing(params):
    _start.clear_cache()
    go_on.clear_cache()
    for asked in (
        request(3),
        request(3, temperature=0.7, top_k=5, min_p=0.1),
        request(3, temperature=1.3, top_p=0.5, repetition_penalty=1.2, presence_penalty=0.5),
        request(3, temperature=1.0, seed=99, frequency_penalty=1.0, min_new_tokens=3),
        request(3, temperature=[0.0, 1.0, 2.0], max_new_tokens=3, stop_ids=[5, 6]),
        request(3, logit_bias={3: 2.0}, forbidden_ids=[4], logprobs=5),
    ):
        run(params, asked)
    assert _start._cache_size() == go_on._cache_size() == 1


def test_prefill_computes_logits_of_one_position_a_row(params, config):
    prompts, lengths = np.zeros((2, 64), np.int32), np.array([5, 64], np.int32)
    asked = jax.tree.map(jnp.asarray, request(2))
    new = NewCache(KVCache, 2, 68, params.dtype)
    read = lambda p, t, n: prefill(p, new, t, n, jnp.array(0), asked, tokens_per_read=64)  # noqa: E731
    last = jax.jit(lambda *given: read(*given).last)
    program = last.lower(params, prompts, lengths)
    for all_of_them in (f"2x64x{config.vocab_size}", f"128x{config.vocab_size}"):
        assert all_of_them not in program.as_text()
    assert f"2x1x{config.vocab_size}" in program.as_text()


def test_the_token_loop_copies_no_cache(params, config):
    """No copy of a layer's cache inside the loop: only zeros are copied, before it starts."""
    prompts, lengths = padded()
    state = start(params, prompts, lengths, request(3), slots=512)
    program = go_on.lower(params, state, request(3), NONE, np.int32(10), tokens_per_check=1)
    text = program.compile().as_text()
    cache_shape = f"f32[3,{config.n_kv_heads},512,{config.head_dim}]"
    loop = text[: text.index("ENTRY")]
    assert cache_shape in loop
    copies = [line for line in loop.splitlines() if cache_shape in line and " copy(" in line]
    assert not copies
