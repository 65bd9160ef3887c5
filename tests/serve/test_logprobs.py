"""Log-probabilities with true bytes: characters of several tokens, control tokens, offsets."""

import math

from helpers import Letters

from llama_jax.generation.results import TokenLogprob
from llama_jax.serve.openai.logprobs import LegacyForm, Spelling, chat_form, prompt_form

EURO = "€".encode()


def entries(ids):
    return [TokenLogprob(id, -0.5, {id: -0.5, 65: -1.0, 2: -math.inf}) for id in ids]


def test_a_token_that_is_no_character_is_written_by_its_bytes():
    ids = [97, *EURO, 98]
    found = chat_form(Spelling(Letters()), entries(ids))
    assert [one.token for one in found] == ["a", "bytes:\\xe2", "bytes:\\x82", "bytes:\\xac", "b"]
    assert bytes(byte for one in found for byte in one.bytes).decode() == "a€b"
    assert found[0].top_logprobs[2].token == "</s>"
    assert found[0].top_logprobs[2].bytes is None
    assert found[0].top_logprobs[2].logprob == -9999.0  # JSON has no infinity


def test_offsets_count_characters_and_hold_through_one():
    form = LegacyForm(Spelling(Letters()))
    ids = [1, 97, *EURO, 98, 2]
    first = form.entries(ids[:3], [None, *entries(ids[1:3])])
    first.extend(form.entries(ids[3:], entries(ids[3:])))
    assert first.text_offset == [0, 0, 1, 1, 1, 2, 3]
    assert first.tokens[0] == "<s>"
    assert first.tokens[-1] == "</s>"
    assert first.top_logprobs[1] == {"a": -0.5, "A": -1.0, "</s>": -9999.0}


def test_a_token_beside_the_likeliest_is_listed_with_them():
    form = LegacyForm(Spelling(Letters()))
    (top,) = form.entries([98], [TokenLogprob(98, -3.0, {65: -0.1})]).top_logprobs
    assert top == {"A": -0.1, "b": -3.0}


def test_prompts_are_listed_by_id():
    found = prompt_form(Letters(), [1, 97], [None, *entries([97])])
    assert found[0] is None
    assert found[1]["97"] == {"logprob": -0.5, "decoded_token": "a"}
