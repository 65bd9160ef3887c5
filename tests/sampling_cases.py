"""Settings and states for tests of sampling."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from llama_jax.config import Config
from llama_jax.generation.batch import Row, batch_settings
from llama_jax.generation.sample import History, sample
from llama_jax.generation.settings import SamplingSettings, for_each


def survivors_in_numpy(probs, p):
    """Sort descending; a token goes where the sum of those before it exceeds p."""
    if p == 1:  # no sum of probabilities exceeds 1, but for rounding
        return np.ones(len(probs), bool)
    order = np.argsort(-probs, kind="stable")
    before, keeps = 0.0, np.zeros(len(probs), bool)
    for token in order:
        keeps[token] = before <= p
        before += float(probs[token])
    return keeps


def request(rows, vocab=256, **settings):
    """A request for `rows` rows; a setting is one for all, or one each."""
    settings = {"temperature": 0.0, "top_p": 1.0, "stop_ids": (), "max_new_tokens": 100} | settings
    each = for_each(SamplingSettings(), settings, rows)
    asked = [
        Row(i, [], one, [], one.max_new_tokens, tuple(one.stop_ids)) for i, one in enumerate(each)
    ]
    return batch_settings(Config.named("tiny").replace(vocab_size=vocab), asked, rows)


def state(rows, vocab=256, count=0, in_prompt=None, counts=None, lengths=0):
    """What a row looks like to `sample`: so many new tokens after so long a prompt."""
    zeros = jnp.zeros((rows, vocab))
    return History(
        prompt_lengths=jnp.broadcast_to(jnp.asarray(lengths), (rows,)),
        in_prompt=zeros.astype(bool) if in_prompt is None else jnp.asarray(in_prompt),
        counts=zeros.astype(int) if counts is None else jnp.asarray(counts),
        count=jnp.broadcast_to(jnp.asarray(count), (rows,)),
    )


def sampled(logits, asked, **written):
    logits = jnp.asarray(logits)
    return jax.jit(sample)(logits, asked, state(*logits.shape, **written))
