"""A cache of another layout runs under the unchanged loop."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from helpers import Letters
from jax.sharding import PartitionSpec as P

import llama_jax
from llama_jax.model.cache import KVCache
from llama_jax.model.cache_protocol import Checked
from llama_jax.model.int8_paged import Int8Paged
from llama_jax.model.memory import memory
from llama_jax.model.paged import Paged
from llama_jax.ops.attention import attention
from llama_jax.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class StackedLayer:
    keys_and_values: jax.Array

    def attend(self, q, k, v, positions):
        past = tuple(self.keys_and_values.transpose(1, 2, 3, 0, 4))
        return attention(q, k, v, past, positions[:, 0]), jnp.stack([k, v])


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Stacked:
    """Keys and values of all layers in one array: [slots, layers, 2, batch, kv_heads, head_dim]."""

    data: jax.Array

    fresh = False

    @classmethod
    def empty(cls, config, *, batch, slots, dtype):
        shape = slots, config.n_layers, 2, batch, config.n_kv_heads, config.head_dim
        return cls(jnp.zeros(shape, dtype))

    @classmethod
    def bytes(cls, config, *, batch, slots, dtype):
        return KVCache.bytes(config, batch=batch, slots=slots, dtype=dtype)

    @property
    def slots(self):
        return self.data.shape[0]

    def fits(self, positions):
        return positions < self.slots

    def grown(self, slots):
        more = [(0, slots - self.slots)] + [(0, 0)] * 5
        return Stacked(jnp.pad(self.data, more))

    def continued(self):
        return self

    def specs(self):
        return Stacked(P(None, None, None, ("data", "fsdp"), "tensor", None))

    def layer(self, layer):
        return StackedLayer(self.data[:, layer])

    def commit(self, steps, positions, after):
        # [layers, 2, batch, time, kv_heads, head_dim] -> [time, layers, 2, batch, ...] of each row
        new = jnp.stack(steps).transpose(3, 0, 1, 2, 4, 5).astype(self.data.dtype)
        rows = jnp.arange(positions.shape[0])
        data = self.data.transpose(3, 0, 1, 2, 4, 5)
        data = data.at[rows[:, None], positions].set(new.transpose(3, 0, 1, 2, 4, 5), mode="drop")
        return Stacked(data.transpose(1, 2, 3, 0, 4, 5))


PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 11], [5] * 40]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_generate_and_stream_run_with_a_cache_of_another_layout(params, temperature):
    asked = {"temperature": temperature, "max_new_tokens": 40, "seed": 3, "logprobs": 2}
    ours = llama_jax.generate(params, PROMPTS, cache=Stacked, **asked)
    wanted = llama_jax.generate(params, PROMPTS, **asked)
    assert [done.tokens for done in ours] == [done.tokens for done in wanted]
    streamed = [[] for _ in PROMPTS]
    for delta in llama_jax.stream(params, PROMPTS, cache=Stacked, **asked):
        streamed[delta.row] += delta.tokens
    assert streamed == [done.tokens for done in wanted]


def test_it_grows_as_it_fills(params, monkeypatch):
    monkeypatch.setattr("llama_jax.generation.limits.MIN_SLOTS", 16)
    monkeypatch.setattr("llama_jax.generation.limits.HEADROOM", 1)
    asked = {"temperature": 0.0, "max_new_tokens": 40}
    ours = llama_jax.generate(params, PROMPTS[:2], cache=Stacked, **asked)
    assert [d.tokens for d in ours] == [
        d.tokens for d in llama_jax.generate(params, PROMPTS[:2], **asked)
    ]


@pytest.mark.parametrize("sizes", [{"tensor": 2}, {"data": 2}], ids=str)
def test_it_lies_on_a_mesh_as_its_specs_say(params, sizes):
    split = llama_jax.shard_params(params, llama_jax.make_mesh(**sizes))
    asked = {"temperature": 0.0, "max_new_tokens": 6}
    ours = llama_jax.generate(split, PROMPTS, cache=Stacked, **asked)
    assert [d.tokens for d in ours] == [
        d.tokens for d in llama_jax.generate(params, PROMPTS, **asked)
    ]


def test_a_conversation_keeps_its_past_in_it(params):
    class Dialogs(Letters):
        def encode_dialog(self, messages):
            text = "".join(f"{m['role'][0]}:{m['content']}\x02" for m in messages)
            return [1, *text.encode()]

    asked = {"temperature": 0.0, "max_new_tokens": 8, "tokenizer": Dialogs()}
    talks = [llama_jax.Conversation(params, cache=kind, **asked) for kind in (Stacked, KVCache)]
    for question in ("hello", "and then?"):
        ours, wanted = ([t for delta in talk.ask(question) for t in delta.tokens] for talk in talks)
        assert ours == wanted
    assert talks[0].prefilled == talks[1].prefilled < len(talks[0].ids)
    for talk in talks:  # back to the first answer, where the new text parts from what was read
        talk.messages[1]["content"] = "no"
        ids = Dialogs().encode_dialog([*talk.messages, {"role": "user", "content": "so?"}])
        ours = [token for delta in talk.ask("so?") for token in delta.tokens]
        (afresh,) = llama_jax.generate(params, [ids], **asked)
        assert ours == afresh.tokens
        assert len("u:so?\x02") < talk.prefilled < len(ids)


def test_memory_counts_a_cache_by_its_own_arrays_and_specs(config):
    sizes = {"dtype": "float32", "batch": 4, "context": 32, "tensor": 2}
    ours = memory(config, **sizes, cache=Stacked)
    assert ours == memory(config, **sizes)
    assert ours.cache == Stacked.bytes(config, batch=4, slots=32, dtype="float32")


def cache_for(config, kind, rows=1, **sizes):
    heads = {"n_heads": 4 * config.n_heads}
    other = dataclasses.replace(config, **heads | sizes)
    if kind.__name__.endswith("Paged"):
        return kind.empty(other, pages=2, rows=rows, width=1, dtype="float32")
    return kind.empty(other, batch=rows, slots=8, dtype="float32")


@pytest.mark.parametrize("kind", [KVCache, llama_jax.Int8KVCache, Paged, Int8Paged])
def test_a_cache_of_another_model_or_batch_is_refused_in_words(params, config, kind):
    tokens = jnp.zeros((1, 2), int)
    calls = [llama_jax.forward, jax.jit(llama_jax.forward)]
    assert llama_jax.forward(params, tokens, tokens + jnp.arange(2), cache_for(config, kind))[1]
    for name in ("n_layers", "n_kv_heads", "head_dim"):
        sizes = {name: getattr(config, name) * 2}
        for forward in calls:
            with pytest.raises(ValueError, match=rf"cache is .*{kind.__name__} of .*make it by"):
                forward(params, tokens, tokens, cache_for(config, kind, **sizes))
    for forward in calls:
        with pytest.raises(ValueError, match=r"cache is .*\[2, .*batch=1|has 2 rows, and tokens"):
            forward(params, tokens, tokens, cache_for(config, kind, rows=2))


@pytest.mark.parametrize("kind", [KVCache, llama_jax.Int8KVCache, Paged, Int8Paged])
def test_more_tokens_than_a_cache_has_slots_are_refused(params, config, kind):
    cache = cache_for(config, kind)
    tokens = jnp.zeros((1, cache.slots), int)
    positions = jnp.arange(cache.slots)[None]
    assert llama_jax.forward(params, tokens, positions, cache)[1]
    tokens, positions = (jnp.pad(array, ((0, 0), (0, 1))) for array in (tokens, positions))
    for forward in (llama_jax.forward, jax.jit(llama_jax.forward)):
        with pytest.raises(ValueError, match=rf"no room in a cache of {cache.slots} slots"):
            forward(params, tokens, positions, cache)


def test_a_cache_need_not_check_what_it_is_given_to(config):
    """`Stacked` has no `check`, which the other tests of it never miss."""
    kinds = [KVCache, llama_jax.Int8KVCache, Paged, Int8Paged, Stacked]
    checked = [isinstance(cache_for(config, kind), Checked) for kind in kinds]
    assert checked == [True, True, True, True, False]


@pytest.mark.parametrize("held", [((), ()), (None, None), (("a", "b"), ("c", "d"))], ids=str)
def test_a_cache_filled_by_hand_with_something_else_is_refused_in_words(params, held):
    tokens = jnp.zeros((1, 2), int)
    with pytest.raises(ValueError, match=r"cache is a KVCache of . layers.*make it by"):
        llama_jax.forward(params, tokens, tokens, KVCache(*held))


@pytest.mark.parametrize("dtype", ["int32", "int8", bool])
def test_keys_and_values_are_not_cut_to_whole_numbers(config, dtype):
    with pytest.raises(ValueError, match=r"cut keys and values to whole numbers; pass float32"):
        KVCache.empty(config, batch=1, slots=8, dtype=dtype)
