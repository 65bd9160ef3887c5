"""What a user of `generate` and `stream` may count on."""

import json

import jax
import numpy as np
import pytest
from helpers import Letters

import llama_jax
from llama_jax.completions import generate, stream
from llama_jax.generation.driver import decode, prefill
from llama_jax.generation.limits import bucket
from llama_jax.generation.results import Completion

GREEDY = {"temperature": 0.0, "max_new_tokens": 12}
PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 11], [5]]


def test_a_prompt_gives_one_completion_in_order(params):
    done = generate(params, PROMPTS, **GREEDY)
    assert [len(c.tokens) for c in done] == [12, 12, 12]
    assert {c.finish_reason for c in done} == {"length"}
    assert {c.text for c in done} == {None}
    again = generate(params, PROMPTS[::-1], **GREEDY)
    assert again[::-1] == done


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_completes_alike_alone_and_in_a_batch(params, temperature):
    settings = {"temperature": temperature, "max_new_tokens": 12}
    together = generate(params, PROMPTS, seed=[4, 5, 6], **settings)
    for row, prompt in enumerate(PROMPTS):
        assert generate(params, [prompt], seed=4 + row, **settings) == [together[row]]


def test_the_same_prompt_under_the_same_seed_is_the_same_text_in_any_row(params):
    one, two, three = generate(
        params, [[1, 2]] * 3, temperature=1.0, max_new_tokens=12, seed=[7, 7, 8]
    )
    assert one == two
    assert one != three


def test_text_is_encoded_with_bos_and_completions_are_spelled(params):
    letters = Letters()
    (text,) = generate(params, ["hi"], tokenizer=letters, **GREEDY)
    (ids,) = generate(params, [[1, *b"hi"]], tokenizer=letters, **GREEDY)
    assert text == ids
    assert text.text == bytes(t for t in text.tokens if t not in (1, 2)).decode(errors="replace")


def test_a_completion_ends_before_the_first_stop_token(params):
    (free,) = generate(params, PROMPTS[:1], **GREEDY)
    stop = free.tokens[5]
    (cut,) = generate(params, PROMPTS[:1], stop_ids=[stop], **GREEDY)
    assert cut.tokens == free.tokens[: free.tokens.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_completion_ends_where_the_context_ends(params, config):
    prompt = [1] * (config.max_seq_len - 3)
    (done,) = generate(params, [prompt], **GREEDY)
    assert (len(done.tokens), done.finish_reason) == (3, "length")
    (full,) = generate(params, [[1] * config.max_seq_len], **GREEDY)
    assert full == Completion(None, [], "length")


def test_no_prompts_and_no_tokens_are_answered_in_kind(params):
    assert generate(params, []) == []
    assert list(stream(params, [])) == []
    assert generate(params, [[1]], max_new_tokens=0) == [Completion(None, [], "length")]
    (delta,) = stream(params, [[1]], max_new_tokens=0)
    assert (delta.tokens, delta.finish_reason) == ([], "length")


def test_what_a_user_turns_compiles_nothing_within_a_bucket(params):
    prefill.clear_cache()
    decode.clear_cache()
    generate(params, [[1, 2, 3]], max_new_tokens=5)
    for settings in (
        {"temperature": 0.0},
        {"temperature": 1.7, "top_p": 0.3},
        {"seed": 123},
        {"stop_ids": []},
    ):
        generate(params, [list(range(1, bucket(3) + 1))], max_new_tokens=5, **settings)
    assert (prefill._cache_size(), decode._cache_size()) == (1, 1)
    generate(params, [[1] * (bucket(3) + 1)], max_new_tokens=5)
    assert (prefill._cache_size(), decode._cache_size()) == (2, 1), "the cache is as long"


def test_buckets_are_powers_of_two():
    assert [bucket(n) for n in (1, 16, 17, 32, 33, 4096, 4097)] == [16, 16, 32, 32, 64, 4096, 8192]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_joins_to_what_generate_gives(params, temperature):
    settings = {"temperature": temperature, "max_new_tokens": 12, "tokenizer": Letters()}
    prompts = ["a", "some words", [1, 50, 200]]
    texts, tokens, reasons = [""] * 3, [[], [], []], [None] * 3
    for delta in stream(params, prompts, seed=[1, 2, 3], **settings):
        assert reasons[delta.row] is None, "a row gained something after its end"
        texts[delta.row] += delta.text
        tokens[delta.row] += delta.tokens
        reasons[delta.row] = delta.finish_reason
    whole = generate(params, prompts, seed=[1, 2, 3], **settings)
    assert [Completion(*row) for row in zip(texts, tokens, reasons, strict=True)] == whole


def test_a_stream_gives_tokens_as_they_come(params):
    deltas = list(stream(params, [[1, 2, 3]], **GREEDY))
    assert len(deltas) == 12
    assert all(len(delta.tokens) == 1 for delta in deltas)


@pytest.mark.parametrize(
    ("prompts", "settings", "message"),
    [
        ("hello", {}, "pass a list"),
        (["hello"], {}, "prompt 0 is text and these params have no tokenizer"),
        ([[1], []], {}, "prompt 1 has no tokens"),
        ([[1, 256]], {}, "prompt 0 has token 256, and the model knows 0 to 255"),
        ([[-1]], {}, "token -1"),
        ([b"x"], {}, "a prompt is a string or a list of token ids"),
        ([[True]], {}, "a prompt is a string or a list of token ids"),
        ([[1.5]], {}, "a prompt is a string or a list of token ids"),
        ([3], {}, r"a prompt is a string or a list of token ids; of one alone .*: \[prompt\]"),
        (np.array([3, 4]), {}, r"of one alone pass a list: \[prompt\]"),
        ([{"role": "user", "content": "Hi"}], {}, r"of one alone pass a list: \[prompt\]"),
        ([[1] * 257], {}, "257 tokens and the context ends at max_seq_len=256"),
        ([[1]], {"max_new_tokens": -1}, "max_new_tokens=-1"),
        ([[1]], {"max_new_tokens": 1.5}, "max_new_tokens=1.5"),
        ([[1]], {"temperature": -0.1}, "temperature=-0.1 must be a finite number of at least 0"),
        ([[1]], {"temperature": float("nan")}, "temperature=nan"),
        ([[1]], {"temperature": float("inf")}, "temperature=inf"),
        ([[1]], {"top_p": 1.1}, "top_p=1.1 must be a finite number from 0 to 1"),
        ([[1]], {"seed": 1.0}, "seed=1.0 must be an integer"),
        ([[1]], {"seed": -1}, "seed=-1"),
        ([[1]], {"seed": 2**32}, "seed=4294967296"),
        ([[1]], {"seed": [1, 2]}, "seed has 2 values for 1 prompts"),
        ([[1]], {"stop_ids": [1.5]}, "stop_ids"),
    ],
)
def test_a_mistake_is_named_by_generate_and_at_once_by_stream(params, prompts, settings, message):
    with pytest.raises(ValueError, match=message):
        generate(params, prompts, **settings)
    with pytest.raises(ValueError, match=message):
        stream(params, prompts, **settings)


# The real model

STEPS = {"temperature": 0.0, "max_new_tokens": 200}


@pytest.fixture(scope="module", params=["stories260K-meta", "stories260K-meta-2shards"])
def stories(request, shared):
    return llama_jax.load(shared / "models" / request.param, dtype="float32")


def test_stories260k_writes_its_known_text_to_the_byte(stories, shared):
    golden = json.loads((shared / "models/stories260K-meta/golden.json").read_text())
    (done,) = generate(stories, [""], **STEPS)
    assert done.text == golden["greedy_text_200_steps_from_bos"]
    assert done.tokens[:16] == golden["first_16_greedy_ids_after_bos"]
    streamed = "".join(delta.text for delta in stream(stories, [""], **STEPS))
    assert streamed == done.text


def test_a_completion_continues_its_prompt_with_its_space(stories):
    whole, half = (
        "Once upon a time, there was a little girl named Lily.",
        "Once upon a time, there was",
    )
    (done,) = generate(stories, [half], **STEPS)
    assert (half + done.text).startswith(whole)


def test_rows_of_a_real_model_write_alike_alone_and_together(stories):
    prompts, seeds = ["", "One day, a dog", "The"], [3, 4, 5]
    settings = {"temperature": 1.0, "top_p": 0.9, "max_new_tokens": 40}
    together = generate(stories, prompts, seed=seeds, **settings)
    for prompt, seed, row in zip(prompts, seeds, together, strict=True):
        assert generate(stories, [prompt], seed=seed, **settings) == [row]


def test_the_known_sentence_has_its_known_likelihood(stories, shared):
    golden = json.loads((shared / "models/stories260K-meta/golden.json").read_text())["perplexity"]
    ids = llama_jax.load_tokenizer(stories.tokenizer).encode(
        golden["sentence"], bos=True, eos=False
    )
    tokens = np.array([ids])
    logits, _ = jax.jit(llama_jax.forward)(stories, tokens, np.arange(len(ids))[None])
    logprobs = np.asarray(jax.nn.log_softmax(logits))[0, np.arange(len(ids) - 1), ids[1:]]
    assert len(ids) == golden["n_tokens_incl_BOS"]
    assert -logprobs.sum() == pytest.approx(golden["nll"], abs=1e-3)
