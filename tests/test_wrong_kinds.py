"""A value of a kind that is not taken is one clear TypeError, in every public function."""

import jax
import jax.numpy as jnp
import pytest

import llama_jax
from llama_jax import SamplingSettings

TOKENS = jnp.array([[1, 2]])
TEXTS = ["Once"]
CASES = {
    "load(5)": (lambda p: llama_jax.load(5), "5 is no path, which is a str or"),
    "load(bytes)": (lambda p: llama_jax.load(b"x"), "decode it"),
    "load(list)": (lambda p: llama_jax.load(["x"]), "is no path"),
    "its adapter": (lambda p: llama_jax.load(adapter=5), "5 is no path"),
    "its rule": (lambda p: llama_jax.load(quantize=5), "quantize=5 is .*; pass int8"),
    "save to 5": (lambda p: llama_jax.save(p, 5), "5 is no path"),
    "save to None": (lambda p: llama_jax.save(p, None), "None is no path"),
    "save what": (lambda p: llama_jax.save((p, 1), "x"), "a tuple .* pass the Params alone"),
    "load_tokenizer(5)": (lambda p: llama_jax.load_tokenizer(5), "5 is no path"),
    "load_tokenizer(bytes)": (lambda p: llama_jax.load_tokenizer(b"x"), "decode it"),
    "generate with no params": (lambda p: llama_jax.generate("x", TEXTS), "load it first"),
    "prompts 5": (lambda p: llama_jax.generate(p, 5), "prompts=5 is .*pass a list of prompts"),
    "prompts None": (lambda p: llama_jax.stream(p, None), "prompts=None is .*NoneType"),
    "prompts bytes": (lambda p: llama_jax.generate(p, b"ab"), "prompts=b'ab' is .*bytes"),
    "prompts a dict": (lambda p: llama_jax.generate(p, {"a": 1}), "prompts={'a': 1} is .*dict"),
    "settings": (lambda p: llama_jax.generate(p, TEXTS, 5), "settings=5 .*give SamplingSettings"),
    "a cache": (lambda p: llama_jax.generate(p, TEXTS, cache=5), "cache=5 is .*pass a class"),
    "the protocol": (
        lambda p: llama_jax.generate(p, TEXTS, cache=llama_jax.Cache),
        "pass a class, such as",
    ),
    "a cache made": (
        lambda p: llama_jax.Conversation(p, cache=llama_jax.Int8KVCache((), True)),
        "is of the kind Int8KVCache; pass a class, such as",
    ),
    "tokenizer": (
        lambda p: llama_jax.generate(p, TEXTS, tokenizer="x"),
        "tokenizer='x' is .*load",
    ),
    "chat's": (lambda p: llama_jax.chat(p, TEXTS, tokenizer=5), "tokenizer=5 is of the kind int"),
    "Conversation": (lambda p: llama_jax.Conversation(5), "params is a int and must be a Params"),
    "its cache": (lambda p: llama_jax.Conversation(p, cache="int8"), "cache='int8' is .*a class"),
    "score": (lambda p: llama_jax.score(p, 5), "texts=5 is .*pass a list of prompts"),
    "context": (
        lambda p: [*llama_jax.perplexity(p, [1, 2], context="a")],
        "'a' is .*an int",
    ),
    "quantize": (lambda p: llama_jax.quantize(p, 5), "quantize=5 is .*or a function"),
    "merge": (lambda p: llama_jax.merge(None), "params is a NoneType"),
    "the key": (lambda p: llama_jax.init_params(5, p.config), r"key=5 is .*jax.random.key\(0\)"),
    "the config": (lambda p: llama_jax.init_params(jax.random.key(0), 5), "config=5 is .*a Config"),
    "KVCache.empty": (
        lambda p: llama_jax.KVCache.empty(5, batch=1, slots=8, dtype="float32"),
        "config=5 is .*pass a Config",
    ),
    "Int8KVCache.bytes": (
        lambda p: llama_jax.Int8KVCache.bytes(p, batch=1, slots=8, dtype="float32"),
        "config=.* is of the kind Params; pass a Config, such as params.config",
    ),
    "forward": (lambda p: llama_jax.forward(p, [1], TOKENS), "tokens=.* is a list; pass an array"),
    "its cache too": (
        lambda p: llama_jax.forward(p, TOKENS, TOKENS, llama_jax.KVCache),
        "a cache",
    ),
}


@pytest.mark.parametrize(("call", "said"), CASES.values(), ids=CASES)
def test_a_wrong_kind_is_named_with_what_to_pass(params, call, said):
    with pytest.raises(TypeError, match=said) as told:
        call(params)
    assert "\n" not in str(told.value)


def test_a_wrong_kind_of_ours_is_a_wrong_value_too():
    with pytest.raises(ValueError, match="settings=5"):
        llama_jax.generation.settings.for_each(5, {}, 1)
    assert llama_jax.generation.settings.for_each(SamplingSettings(), {}, 2)[1].top_k == 0
