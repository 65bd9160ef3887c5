"""Long prompts, many prompts, and the lengths at the edge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, Letters

import llama_jax
from llama_jax import Completion, generate, stream
from llama_jax.generation import batch as batches
from llama_jax.generation.driver import prefill
from llama_jax.generation.limits import (
    ACCELERATOR,
    CPU,
    PREFILL_TOKENS_A_ROW,
    limits_on,
    tokens_per_read,
)
from llama_jax.generation.placement import Placement
from llama_jax.generation.prompts import encode

GREEDY = {"temperature": 0.0, "max_new_tokens": 8, "logprobs": 1}


def random_prompts(lengths, vocab=256):
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocab, n).tolist() for n in lengths]


def assert_same(one, other, atol=2e-5):
    for a, b in zip(one, other, strict=True):
        assert a.tokens == b.tokens
        apart = [x.logprob - y.logprob for x, y in zip(a.logprobs, b.logprobs, strict=True)]
        assert np.abs(apart).max(initial=0) <= atol


def test_a_prompt_read_in_chunks_is_the_prompt_read_at_once(params, monkeypatch):
    prompts = random_prompts((100, 64, 33, 17, 16, 15, 1, 101))
    whole = generate(params, prompts, **GREEDY)
    monkeypatch.setattr("llama_jax.generation.driver.PREFILL_TOKENS_A_ROW", 16)
    prefill.clear_cache()
    try:
        assert_same(generate(params, prompts, **GREEDY), whole)
        # A context that no chunk divides: the last chunk reaches beyond it.
        odd = params.replace(config=params.config.replace(max_seq_len=105))
        assert_same(
            generate(odd, prompts[-1:], **GREEDY | {"max_new_tokens": 4}),
            [Completion(None, whole[-1].tokens[:4], "length", whole[-1].logprobs[:4])],
        )
    finally:
        prefill.clear_cache()


def test_an_accelerator_reads_a_whole_prompt_at_once():
    def read(platform, rows, time):
        most = limits_on(platform).prefill_tokens
        return tokens_per_read(rows, time, in_all=most, a_row=PREFILL_TOKENS_A_ROW)

    assert (limits_on("cpu"), limits_on("gpu")) == (CPU, ACCELERATOR)
    assert [read("cpu", *of) for of in ((1, 16), (1, 8192), (32, 8192))] == [16, 512, 512]
    assert [read("gpu", *of) for of in ((1, 16), (1, 8192), (8, 8192))] == [16, 8192, 2048]
    assert read("gpu", 64, 8192) == 512


def test_a_prompt_of_several_chunks_is_followed_by_what_forward_says():
    params = llama_jax.load(GOLDEN / "meta/llama3", dtype="float32")
    lengths = PREFILL_TOKENS_A_ROW + 200, PREFILL_TOKENS_A_ROW, PREFILL_TOKENS_A_ROW + 1, 7
    prompts = random_prompts(lengths, params.config.vocab_size)
    done = generate(params, prompts, **GREEDY | {"max_new_tokens": 3}, stop_ids=[])
    texts = np.zeros((4, 720), np.int32)
    for text, prompt, completion in zip(texts, prompts, done, strict=True):
        new = prompt + completion.tokens
        text[: len(new)] = new
    logits, _ = jax.jit(llama_jax.forward)(
        params, texts, jnp.broadcast_to(jnp.arange(720), (4, 720))
    )
    logprobs = np.asarray(jax.nn.log_softmax(logits))
    for row, (n, completion) in enumerate(zip(lengths, done, strict=True)):
        for i, entry in enumerate(completion.logprobs):
            here = logprobs[row, n - 1 + i]
            assert entry.token == here.argmax()
            assert entry.logprob == pytest.approx(here.max(), abs=1e-4)


def test_ten_thousand_prompts_come_back_in_their_order(params):
    rng = np.random.default_rng(0)
    prompts = random_prompts(rng.integers(1, 17, 10_000))
    new = rng.integers(0, 3, 10_000).tolist()
    done = generate(params, prompts, temperature=0.0, max_new_tokens=new)
    assert [len(c.tokens) for c in done] == new
    some = [*range(0, 10_000, 97), 9_999]
    alone = [
        generate(params, [prompts[i]], temperature=0.0, max_new_tokens=new[i])[0] for i in some
    ]
    assert [done[i] for i in some] == alone


def test_prompts_of_all_lengths_in_one_list_are_each_as_alone(params):
    prompts = random_prompts([*range(1, 250, 7), 256, 255, 250])
    done = generate(params, prompts, **GREEDY)
    assert [len(c.tokens) for c in done[-3:]] == [0, 1, 6]
    for i in (0, 2, 20, len(prompts) - 2):
        assert_same([done[i]], generate(params, prompts[i : i + 1], **GREEDY))


@pytest.mark.slow
def test_a_progress_bar_shows_many_prompts_to_somebody_who_watches(params, monkeypatch, capfd):
    prompts = random_prompts([5] * 70)
    generate(params, prompts, temperature=0.0, max_new_tokens=2)
    assert capfd.readouterr().err == "", "a program that nobody watches is told nothing"
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    generate(params, prompts, temperature=0.0, max_new_tokens=2)
    assert "completions" in capfd.readouterr().err
    generate(params, prompts[:3], temperature=0.0, max_new_tokens=2)
    assert capfd.readouterr().err == "", "one batch needs no bar"


def test_a_batch_has_as_many_rows_as_its_cache_has_room_for(params, monkeypatch):
    prompts, settings = random_prompts([5] * 9), {"temperature": 0.0, "max_new_tokens": 8}
    whole = generate(params, prompts, **settings)
    c = params.config
    row = 32 * c.n_layers * c.n_kv_heads * c.head_dim * 2 * 4
    monkeypatch.setattr(batches, "MAX_CACHE_BYTES", 5 * row)
    place = Placement.of(params)
    assert batches.rows_at_once(c, place, 32) == 4
    assert batches.rows_at_once(c, place, 10**9) == 1, "a row is run however large it is"
    assert generate(params, prompts, **settings) == whole


# The edges


def test_a_prompt_beyond_the_context_is_refused_with_both_lengths_or_loses_its_beginning(params):
    letters, limit = Letters(), params.config.max_seq_len
    text = "".join(chr(97 + i % 26) for i in range(limit + 40))
    for call in (generate, stream):
        with pytest.raises(ValueError, match=r"prompt 1 has 297 tokens and .* max_seq_len=256"):
            call(params, ["a", text], tokenizer=letters)
    kept = {"temperature": 0.0, "truncate": True}
    (cut,) = generate(params, [text], tokenizer=letters, echo=True, **kept)
    prompt = cut.tokens[: limit - 1]
    assert len(cut.tokens) <= limit
    assert prompt[0] == letters.bos_id, "bos stays"
    assert bytes(prompt[1:]).decode() == text[-(limit - 2) :], "and the end"
    (ids,) = generate(params, [[*range(3, 203), *range(3, 103)]], echo=True, **kept)
    assert ids.tokens[: limit - 1] == [*range(3, 203), *range(3, 103)][-(limit - 1) :]
    assert generate(params, ["ab"], tokenizer=letters, **kept) == generate(
        params, ["ab"], tokenizer=letters, temperature=0.0
    )


@pytest.mark.parametrize(("limit", "ids"), [(2, [1]), (3, [1, 100])])
def test_a_prompt_is_cut_to_a_very_short_context_too(config, limit, ids):
    short = config.replace(max_seq_len=limit)
    assert encode(short, "abcd", 0, Letters(), truncate=True) == ids
    assert encode(short, [7, 8, 9, 10], 0, None, truncate=True) == [7, 8, 9, 10][1 - limit :]


def test_a_context_of_one_token_has_no_room_for_a_prompt_that_is_cut(config):
    with pytest.raises(ValueError, match="prompt 0 cannot be cut to a context of max_seq_len=1"):
        encode(config.replace(max_seq_len=1), [7, 8], 0, None, truncate=True)


def test_the_empty_things_are_defined(params):
    letters = Letters()
    settings = {"temperature": 0.0, "max_new_tokens": 4, "tokenizer": letters}
    assert generate(params, []) == []
    assert list(stream(params, [])) == []
    assert generate(params, [""], **settings) == generate(params, [[1]], **settings)
    none = generate(params, ["ab"], **settings | {"max_new_tokens": 0})
    assert none == [Completion("", [], "length")]
    (delta,) = stream(params, ["ab"], **settings | {"max_new_tokens": 0})
    assert (delta.text, delta.tokens, delta.finish_reason) == ("", [], "length")
    (full,) = generate(params, [[5] * 256], **settings)
    assert full == Completion("", [], "length")
    (last,) = generate(params, [[5] * 255], **settings)
    assert (len(last.tokens), last.finish_reason) == (1, "length")


def test_echo_puts_the_prompt_before_its_completion(params):
    settings = {"temperature": 0.0, "max_new_tokens": 4, "logprobs": 0}
    for prompt, tokenizer in (("hey", Letters()), ([1, *b"hey"], Letters()), ([1, 5], None)):
        (plain,) = generate(params, [prompt], tokenizer=tokenizer, **settings)
        (echoed,) = generate(params, [prompt], tokenizer=tokenizer, echo=True, **settings)
        ids = [1, 5] if tokenizer is None else [1, *b"hey"]
        assert echoed.tokens == ids + plain.tokens
        assert echoed.text == (None if tokenizer is None else "hey" + plain.text)
        assert echoed.logprobs == plain.logprobs


def test_a_character_of_which_the_prompt_holds_half_is_echoed_once(params):
    prompt, a = [1, *"e€".encode()[:-1]], ord("a")
    settings = {
        "tokenizer": Letters(), "echo": True, "temperature": 0.0, "stop_ids": (),
        "logit_bias": {0xAC: 2e5, a: 1e5}, "frequency_penalty": 1e6,
    }  # fmt: skip
    for changes, text in (
        ({"max_new_tokens": 2}, "e€a"),
        ({"max_new_tokens": 2, "stop": ["a"]}, "e€"),
        ({"max_new_tokens": 1, "logit_bias": {a: 1e5}}, "e\ufffda"),
        ({"max_new_tokens": 1, "logit_bias": {0xFF: 1e5}}, "e\ufffd\ufffd"),
        ({"max_new_tokens": 0}, "e\ufffd"),
    ):
        (done,) = generate(params, [prompt], **settings | changes)
        assert done.text == text


def test_an_echoed_prompt_is_the_text_that_was_given_whatever_a_tokenizer_makes_of_bos(
    shared, params
):
    """Llama 3's spells bos, as <|begin_of_text|>."""
    llama3 = llama_jax.load_tokenizer(shared / "tokenizers/llama3")
    wide = llama_jax.init_params(
        jax.random.key(0), params.config.replace(vocab_size=llama3.vocab_size, n_layers=1)
    )
    (done,) = generate(wide, ["hey there"], tokenizer=llama3, echo=True, max_new_tokens=0)
    assert done.text == "hey there"
    assert done.tokens == llama3.encode("hey there", bos=True, eos=False)
