"""The forward pass: cached = whole, padded = alone, and what each axis may depend on."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import llama_jax
from llama_jax.config import Config
from llama_jax.model import transformer as model
from llama_jax.model.cache import KVCache
from llama_jax.model.transformer import forward, init_params
from llama_jax.weights.params import Params

jitted = jax.jit(forward)


def tokens_of(config, batch, time, seed=1):
    tokens = jax.random.randint(jax.random.key(seed), (batch, time), 0, config.vocab_size)
    return tokens, jnp.broadcast_to(jnp.arange(time), (batch, time))


def empty(config, batch, slots, dtype=jnp.float32):
    return KVCache.empty(config, batch=batch, slots=slots, dtype=dtype)


def test_logits_are_float32_whatever_the_weights(params, config):
    tokens, positions = tokens_of(config, 2, 5)
    half = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
    logits, cache = jitted(half, tokens, positions)
    assert logits.shape == (2, 5, config.vocab_size)
    assert logits.dtype == jnp.float32
    assert cache is None
    _, cache = jitted(half, tokens, positions, empty(config, 2, 8, jnp.bfloat16))
    assert cache.k[0].dtype == jnp.bfloat16


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_no_tokens_are_refused(params, shape):
    tokens = jnp.zeros(shape, jnp.int32)
    with pytest.raises(ValueError, match=r"tokens of shape \[.*0.*\]: pass at least one"):
        forward(params, tokens, tokens)


@pytest.mark.parametrize("steps", [[12], [1] * 12, [5, 4, 3], [1, 11], [11, 1]])
def test_any_way_of_cutting_a_text_into_steps_gives_the_logits_of_the_whole(params, config, steps):
    tokens, positions = tokens_of(config, 2, 12)
    whole, _ = jitted(params, tokens, positions)
    cache, parts, start = empty(config, 2, 16), [], 0
    for step in steps:
        now = slice(start, start + step)
        logits, cache = jitted(params, tokens[:, now], positions[:, now], cache)
        parts.append(logits)
        start += step
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-6)


def test_rows_at_different_positions_share_a_step(params, config):
    tokens, positions = tokens_of(config, 2, 9)
    whole, _ = jitted(params, tokens, positions)
    # Row 0 has read 4 tokens and row 1 six; both prompts were padded to 6.
    _, cache = jitted(params, tokens[:, :6], positions[:, :6], empty(config, 2, 16))
    now = jnp.array([[4], [6]])
    step = jnp.take_along_axis(tokens, now, axis=1)
    logits, _ = jitted(params, step, now, cache)
    np.testing.assert_allclose(logits[0, 0], whole[0, 4], atol=2e-6)
    np.testing.assert_allclose(logits[1, 0], whole[1, 6], atol=2e-6)


def test_padding_on_the_right_changes_nothing_before_it_whatever_it_is(params, config):
    tokens, positions = tokens_of(config, 1, 8)
    for padding in (0, 1, config.vocab_size - 1):
        padded = tokens.at[:, 5:].set(padding)
        logits, _ = jitted(params, padded, positions)
        whole, _ = jitted(params, tokens, positions)
        np.testing.assert_array_equal(logits[:, :5], whole[:, :5])


def test_a_position_beyond_the_slots_is_dropped_and_overwrites_nothing(params, config):
    tokens, positions = tokens_of(config, 1, 6)
    _, cache = jitted(params, tokens, positions, empty(config, 1, 6))
    _, after = jitted(params, tokens[:, :1], jnp.array([[6]]), cache)
    for before_layer, after_layer in zip(cache.k, after.k, strict=True):
        np.testing.assert_array_equal(before_layer, after_layer)


def test_what_lies_in_slots_not_yet_reached_is_never_read(params, config):
    tokens, positions = tokens_of(config, 1, 6)
    _, cache = jitted(params, tokens[:, :5], positions[:, :5], empty(config, 1, 12))
    clean, _ = jitted(params, tokens[:, 5:], positions[:, 5:], cache)
    huge = jax.tree.map(lambda x: x.at[:, :, 5:].set(1e30), cache)
    dirty, _ = jitted(params, tokens[:, 5:], positions[:, 5:], huge)
    np.testing.assert_array_equal(clean, dirty)


def test_the_logits_of_chosen_time_indices_are_those_of_the_whole(params, config):
    tokens, positions = tokens_of(config, 3, 7)
    whole, _ = jitted(params, tokens, positions)
    at = jnp.array([[6], [0], [3]])
    chosen, _ = jitted(params, tokens, positions, at=at)
    assert chosen.shape == (3, 1, config.vocab_size)
    np.testing.assert_allclose(chosen[:, 0], whole[jnp.arange(3), at[:, 0]], atol=2e-6)


def test_a_tied_model_multiplies_by_its_embedding(config):
    tied = init_params(jax.random.key(0), config.replace(tie_embeddings=True))
    assert "output" not in tied.weights
    untied = Params(
        {**tied.weights, "output": {"weight": tied.weights["tok_embeddings"]["weight"].T}}, config
    )
    tokens, positions = tokens_of(config, 1, 5)
    np.testing.assert_allclose(
        jitted(tied, tokens, positions)[0], jitted(untied, tokens, positions)[0], atol=1e-6
    )


BIASES = {"bq", "bk", "bv", "bo", "b1", "b2", "b3"}


def biased(config, key=5):
    """Params of a model with biases that are not zero, as init makes them."""
    params = init_params(jax.random.key(0), config.replace(attention_bias=True, mlp_bias=True))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    noise = [0.1 * jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, [a + b for a, b in zip(leaves, noise, strict=True)])


def test_a_model_has_the_biases_its_config_says_and_zero_ones_change_nothing(params, config):
    tokens, positions = tokens_of(config, 1, 6)
    both = config.replace(attention_bias=True, mlp_bias=True)
    layer = init_params(jax.random.key(0), both).weights["layers_0"]
    assert {*layer["attention"], *layer["feed_forward"]} >= BIASES
    plain = params.weights["layers_0"]
    assert not {*plain["attention"], *plain["feed_forward"]} & BIASES
    zeros = jax.tree.map(jnp.zeros_like, init_params(jax.random.key(0), both).weights)
    for name, rooms in params.weights.items():
        for room, weights in rooms.items():
            here = zeros[name][room]
            zeros[name][room] = {**here, **weights} if isinstance(here, dict) else weights
    wanted, _ = jitted(params, tokens, positions)
    found, _ = jitted(Params(zeros, both), tokens, positions)
    np.testing.assert_allclose(found, wanted, atol=2e-6)


@pytest.mark.parametrize("steps", [[12], [1] * 12, [5, 4, 3]])
def test_biases_are_added_in_every_way_of_cutting_a_text(config, steps):
    params = biased(config)
    tokens, positions = tokens_of(config, 2, 12)
    whole, _ = jitted(params, tokens, positions)
    cache, parts, start = empty(params.config, 2, 16), [], 0
    for step in steps:
        now = slice(start, start + step)
        logits, cache = jitted(params, tokens[:, now], positions[:, now], cache)
        parts.append(logits)
        start += step
    np.testing.assert_allclose(jnp.concatenate(parts, axis=1), whole, atol=2e-5)
    gradients = jax.grad(lambda p: forward(p, tokens, positions)[0].var())(params)
    layer = gradients.weights["layers_1"]
    for name, bias in {**layer["attention"], **layer["feed_forward"]}.items():
        # A key's bias moves all scores of a query alike but for the rotation.
        assert jnp.any(bias != 0), name


def test_gradients_reach_every_weight(params, config):
    tokens, positions = tokens_of(config, 1, 6)
    gradients = jax.grad(lambda p: forward(p, tokens, positions)[0].var())(params)
    assert all(jnp.any(g != 0) for g in jax.tree.leaves(gradients))


def test_the_shapes_of_a_model_are_had_without_its_memory():
    shapes = jax.eval_shape(init_params, jax.random.key(0), Config.named("llama-3.1-405b"))
    assert shapes.size == 405_853_388_800


def test_init_gives_the_dtype_asked_for_and_other_weights_for_another_key(config):
    one, two = (init_params(jax.random.key(k), config, "bfloat16") for k in (0, 1))
    assert {w.dtype for w in jax.tree.leaves(one)} == {jnp.dtype("bfloat16")}
    assert (one.weights["output"]["weight"] != two.weights["output"]["weight"]).any()


def test_decode_never_copies_the_cache(params, config):
    """The cost model: a step of a donated cache writes in place, and no temporary is its size."""
    cache = empty(config, 1, 4096)
    step = jax.jit(forward, donate_argnames="cache")
    compiled = step.lower(params, *tokens_of(config, 1, 1), cache).compile()
    # A fresh cache is never read; the ordinary step is that of one which was committed.
    committed = jax.eval_shape(forward, params, *tokens_of(config, 1, 1), cache)[1]
    compiled = step.lower(params, *tokens_of(config, 1, 1), committed).compile()
    memory = compiled.memory_analysis()
    layer_bytes = cache.k[0].nbytes
    assert memory.alias_size_in_bytes >= 2 * config.n_layers * layer_bytes
    assert memory.temp_size_in_bytes < layer_bytes


def test_a_layer_is_traced_and_lowered_once_however_many_there_are(config, monkeypatch):
    traced = []
    plain = model.feed_forward
    monkeypatch.setattr(model, "feed_forward", lambda *x: traced.append(x) or plain(*x))
    twelve = config.replace(n_layers=12, norm_eps=1e-4)  # of its own: no test traced it before
    shapes = jax.eval_shape(init_params, jax.random.key(0), twelve)
    del traced[:]
    tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    text = jax.jit(forward).lower(shapes, tokens, tokens, empty(twelve, 1, 8)).as_text()
    assert len(traced) == 1
    assert len(re.findall(r"func\.func private @block", text)) == 1
    assert len(re.findall(r"call @block", text)) == 12


IDS = np.array([[1, 2, 3]], np.int32)
PLACES = np.arange(3, dtype=np.int32)[None]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IDS,), r"forward needs the positions of its tokens.*jnp.broadcast_to\(jnp.arange"),
        (([[1, 2, 3]], PLACES), r"tokens=\[\[1, 2, 3\]\] is a list; pass an array"),
        ((IDS, [[0, 1, 2]]), r"positions=\[\[0, 1, 2\]\] is a list; pass an array"),
        ((IDS[0], PLACES), r"tokens of shape \[3\] and dtype int32: pass integers \[batch, time\]"),
        ((IDS, PLACES[0]), r"positions of shape \[3\].*jnp.arange\(time\)\[None\]"),
        ((IDS.astype(np.float32), PLACES), "tokens of shape .* dtype float32: pass integers"),
        ((IDS, PLACES[:, :2]), r"positions of shape \[1, 2\] are not those of tokens"),
        (
            (np.ones((2, 3), np.int32), PLACES),
            r"positions of shape \[1, 3\] are not those of tokens",
        ),
    ],
)
def test_forward_refuses_what_is_no_batch_in_words(params, arguments, message):
    for run in (forward, jax.jit(forward)):
        if run is not forward and any(isinstance(x, list) for x in arguments):
            continue  # jit makes arrays of the numbers in a list
        with pytest.raises(ValueError, match=message):
            run(params, *arguments)


def test_forward_refuses_other_picks_than_one_row_each(params):
    for at in (np.array([2]), [[2]], np.array([[0], [1]])):
        with pytest.raises(ValueError, match=r"^at[ =]"):
            forward(params, IDS, PLACES, at=at)


@pytest.mark.parametrize(
    "call",
    [
        lambda wrong: forward(wrong, IDS, PLACES),
        lambda wrong: llama_jax.generate(wrong, [[1]]),
        lambda wrong: llama_jax.stream(wrong, [[1]]),
        lambda wrong: llama_jax.score(wrong, [[1]]),
        lambda wrong: next(llama_jax.perplexity(wrong, [1, 2])),
        lambda wrong: llama_jax.chat(wrong, []),
        lambda wrong: llama_jax.Conversation(wrong),
        lambda wrong: llama_jax.save(wrong, "never-written"),
        lambda wrong: llama_jax.shard_params(wrong, llama_jax.make_mesh()),
    ],
)
def test_what_is_no_params_is_refused_in_words(params, call):
    for path in ("checkpoints/demo", Path("checkpoints/demo")):
        with pytest.raises(ValueError, match=r"'checkpoints/demo' is a path; load it first: llama"):
            call(path)
    for wrong in ((params, {"step": 1}), params.weights, None):
        with pytest.raises(ValueError, match=rf"params is a {type(wrong).__name__} and must be a"):
            call(wrong)
