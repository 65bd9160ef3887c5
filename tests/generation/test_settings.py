"""What `SamplingSettings` accepts, and how settings are given to many prompts."""

import dataclasses
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest

from llama_jax import generate, stream
from llama_jax.generation.settings import SamplingSettings, for_each


@pytest.mark.parametrize("kind", [np.int64, np.array, jnp.array])
def test_a_number_of_numpy_or_jax_is_a_number_of_pythons(params, kind):
    """Somebody else may change an array, and a program takes it for another constant."""
    numbers = {"max_new_tokens": kind(3), "top_k": kind(5), "seed": kind(7), "logprobs": kind(2)}
    plain = {"max_new_tokens": 3, "top_k": 5, "seed": 7, "logprobs": 2}
    settings = SamplingSettings(**numbers)
    assert settings == SamplingSettings(**plain)
    assert {type(getattr(settings, name)) for name in numbers} == {int}
    (found,), (same,) = generate(params, [[1, 2]], **numbers), generate(params, [[1, 2]], **plain)
    assert found.tokens == same.tokens
    several = generate(params, [[1, 2], [1, 2]], max_new_tokens=np.array([2, 3]))
    assert [len(done.tokens) for done in several] == [2, 3]


@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), Decimal("0.5"), Fraction(1, 2)])
def test_a_real_number_of_any_kind_is_a_float(value):
    settings = SamplingSettings(temperature=value, repetition_penalty=value)
    assert (settings.temperature, settings.repetition_penalty) == (0.5, 0.5)
    assert type(settings.temperature) is float


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_k": -1}, "top_k=-1 must be an integer of at least 0"),
        ({"top_k": 2.0}, "top_k=2.0 must be an integer"),
        ({"top_k": True}, "top_k=True must be an integer"),
        ({"max_new_tokens": None}, "max_new_tokens=None must be an integer"),
        ({"min_new_tokens": -3}, "min_new_tokens=-3"),
        ({"seed": 2**32}, "seed=4294967296 must be an integer from 0 to 4294967295"),
        ({"logprobs": 21}, "logprobs=21 must be an integer from 0 to 20"),
        ({"logprobs": -1}, "logprobs=-1"),
        ({"prompt_logprobs": 1.5}, "prompt_logprobs=1.5"),
        ({"temperature": "hot"}, "temperature='hot' must be a finite number of at least 0"),
        ({"temperature": None}, "temperature=None"),
        ({"temperature": True}, "temperature=True"),
        ({"temperature": np.True_}, "temperature=np.True_ must be a finite number"),
        ({"temperature": np.complex64(1)}, "must be a finite number of at least 0"),
        ({"temperature": np.array("x")}, "must be a finite number of at least 0"),
        ({"temperature": Decimal("NaN")}, "must be a finite number of at least 0"),
        ({"temperature": np.inf}, "temperature=inf must be a finite number of at least 0"),
        ({"top_k": np.True_}, "top_k=np.True_ must be an integer"),
        ({"repetition_penalty": 1e-46}, "repetition_penalty=1e-46 must be a number above 0"),
        ({"temperature": 1e39}, "temperature=1e.39"),
        ({"min_p": -0.1}, "min_p=-0.1 must be a finite number from 0 to 1"),
        ({"min_p": 1.01}, "min_p=1.01"),
        ({"top_p": np.nan}, "top_p=nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be a number above 0"),
        ({"repetition_penalty": -1.0}, "repetition_penalty=-1.0"),
        ({"presence_penalty": np.inf}, "presence_penalty=inf must be a finite number$"),
        ({"frequency_penalty": -1e39}, "frequency_penalty=-1e.39"),
        ({"stop": "end"}, "stop='end' must be a list of strings"),
        ({"stop": ["end", ""]}, "none of them empty"),
        ({"stop": [3]}, "must be a list of strings"),
        ({"stop": None}, "stop=None must be a list of strings"),
        ({"forbidden_ids": [1.0]}, "forbidden_ids=1.0 must be an integer"),
        ({"forbidden_ids": None}, "forbidden_ids=None must be a list"),
        ({"stop_ids": ["</s>"]}, "stop_ids='</s>' must be an integer"),
        ({"stop_ids": 2}, "stop_ids=2 must be a list"),
        ({"logit_bias": {1: np.nan}}, "logit_bias of 1 is nan"),
        ({"logit_bias": {1: np.inf}}, "logit_bias of 1 is inf"),
        ({"logit_bias": {1: 1e39}}, "logit_bias of 1 is 1e"),
        ({"logit_bias": {1: "much"}}, "logit_bias of 1 is 'much'"),
        ({"logit_bias": {"a": 1.0}}, "logit_bias has the id 'a', which must be an integer"),
        ({"logit_bias": {1: -1e39}}, "is -1e.39, which is too large; the largest number is"),
        ({"temperature": 10**400}, "is too large; the largest number is float32's, 3.40e.38"),
        ({"repetition_penalty": -1}, "repetition_penalty=-1 must be a number above 0; 1 is none"),
        ({"logit_bias": [1, 2]}, "must be a dict"),
    ],
    ids=str,
)
def test_a_wrong_value_is_named_with_the_rule(changes, message):
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**changes)
    with pytest.raises(ValueError, match=message):
        SamplingSettings().replace(**changes)
    (name,) = changes
    if name in ("stop", "forbidden_ids", "stop_ids", "logit_bias"):
        with pytest.raises(ValueError, match=message):
            for_each(SamplingSettings(), changes, 2)


def test_the_ends_of_every_range_are_allowed():
    for changes in (
        {"temperature": 0, "top_p": 0, "top_k": 0, "min_p": 0, "seed": 0, "max_new_tokens": 0},
        {"top_p": 1, "min_p": 1, "seed": 2**32 - 1, "logprobs": 0, "prompt_logprobs": 20},
        {"top_k": 10**12, "max_new_tokens": 10**12, "min_new_tokens": 10**12},
        {"logit_bias": {0: -np.inf}, "stop_ids": (), "stop": (), "forbidden_ids": ()},
        {"logprobs": None, "prompt_logprobs": None, "stop_ids": None},
    ):
        SamplingSettings(**changes)


def test_settings_are_a_value_that_what_they_were_made_from_cannot_change():
    bias, stop, ids = {1: 2.0}, ["a"], [3]
    settings = SamplingSettings(logit_bias=bias, stop=stop, stop_ids=ids, forbidden_ids=iter([4]))
    bias[1], stop[0], ids[0] = np.nan, "", -5
    assert settings == SamplingSettings(
        logit_bias={1: 2.0}, stop=("a",), stop_ids=(3,), forbidden_ids=(4,)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.top_k = 3


@pytest.mark.parametrize("number", [np.float32, np.float64, np.array, jnp.float32])
@pytest.mark.parametrize("integer", [np.int32, np.uint8, np.array, jnp.int32])
def test_numbers_of_numpy_and_jax_are_numbers(number, integer):
    (settings,) = for_each(
        SamplingSettings(),
        {
            "temperature": number(0.5),
            "top_k": integer(5),
            "seed": integer(7),
            "logit_bias": {int(integer(3)): number(0.5)},
            "stop_ids": np.array([1, 2]),
            "forbidden_ids": np.array([4], np.uint8),
        },
        1,
    )
    plain = SamplingSettings(
        temperature=0.5, top_k=5, seed=7, logit_bias={3: 0.5}, stop_ids=[1, 2], forbidden_ids=[4]
    )
    assert settings == plain


def test_one_settings_serves_all_prompts_and_a_list_gives_each_its_own():
    one, other = SamplingSettings(temperature=0.1), SamplingSettings(temperature=0.9)
    assert for_each(one, {}, 2) == [one, one]
    assert for_each([one, other], {}, 2) == [one, other]
    assert for_each([one, other], {"top_k": 3}, 2) == [one.replace(top_k=3), other.replace(top_k=3)]
    with pytest.raises(ValueError, match="2 settings for 3 prompts; give one, or one each"):
        for_each([one, other], {}, 3)
    with pytest.raises(ValueError, match="give SamplingSettings, or keywords"):
        for_each({"temperature": 0.0}, {}, 1)


@pytest.mark.parametrize("kind", [list, tuple, np.array, jnp.array])
def test_a_number_given_as_a_list_is_one_for_each(kind):
    rows = for_each(SamplingSettings(), {"top_k": kind([1, 2]), "seed": range(5, 7)}, 2)
    assert [(row.top_k, row.seed) for row in rows] == [(1, 5), (2, 6)]
    rows = for_each(SamplingSettings(), {"logprobs": [None, 3]}, 2)
    assert [row.logprobs for row in rows] == [None, 3]
    with pytest.raises(ValueError, match="top_k has 3 values for 2 prompts"):
        for_each(SamplingSettings(), {"top_k": kind([1, 2, 3])}, 2)


def test_what_is_a_list_anyway_is_the_same_for_all():
    changes = {"stop": ["a", "b"], "stop_ids": [1, 2], "forbidden_ids": [3, 4]}
    rows = for_each(SamplingSettings(), changes, 2)
    assert rows[0] == rows[1] == SamplingSettings(**changes)


def test_an_unknown_keyword_is_told_the_known_ones(params):
    for call in (generate, stream):
        with pytest.raises(TypeError, match=r"'temprature' is no setting; .*temperature.*top_p"):
            call(params, [[1]], temprature=0.5)


def test_a_mistake_is_one_though_there_are_no_prompts(params):
    with pytest.raises(ValueError, match="top_k=-1"):
        generate(params, [], top_k=-1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"forbidden_ids": [256]},
            "forbidden_ids= has token 256, and the model knows 0 to 255",
        ),
        ({"logit_bias": {-1: 1.0}}, "logit_bias= has token -1"),
        ({"forbidden_ids": range(256)}, "every token is forbidden"),
        ({"logit_bias": dict.fromkeys(range(256), -np.inf)}, "every token is forbidden"),
        (
            {"forbidden_ids": range(255), "stop_ids": [255], "min_new_tokens": 1},
            "leave at least one that is no stop id",
        ),
        ({"n": 0}, "n=0 must be a positive integer"),
        ({"n": True}, "n=True"),
        ({"stop": ["end"]}, "stop='end' needs a tokenizer; use stop ids"),
    ],
    ids=str,
)
def test_what_a_model_cannot_obey_is_refused_at_once(params, settings, message):
    for call in (generate, stream):
        with pytest.raises(ValueError, match=message):
            call(params, [[1]], **settings)


def test_a_seed_of_none_is_a_new_one_for_each_prompt_and_each_call(params):
    asked = {"temperature": 1.0, "max_new_tokens": 24, "stop_ids": ()}
    found = [generate(params, [[1, 2]] * 3, seed=None, **asked) for _ in range(2)]
    texts = {tuple(done.tokens) for each in found for done in each}
    assert len(texts) == 6
    given = generate(params, [[1, 2]] * 3, seed=[None, 5, None], **asked)
    assert given[1] == generate(params, [[1, 2]], seed=5, **asked)[0]
    assert len({tuple(done.tokens) for done in given}) == 3
    for seed in (0, 7):  # as `generate` says of prompts given alike
        one, other = generate(params, [[1, 2]] * 2, seed=seed, **asked)
        assert one == other
    assert "seed=None" in generate.__doc__


def test_the_completions_of_a_new_seed_count_up_from_it(params, monkeypatch):
    drawn = iter([5, 2**32 - 1])
    monkeypatch.setattr("llama_jax.generation.batch.secrets.randbits", lambda bits: next(drawn))
    asked = {"temperature": 1.0, "max_new_tokens": 9, "stop_ids": (), "n": 2}
    found = generate(params, [[1, 2], [3]], seed=None, **asked)
    assert found == generate(params, [[1, 2], [3]], seed=[5, 2**32 - 1], **asked)
