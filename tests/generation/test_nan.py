"""Logits that are NaN or infinite are an error, and take no other row with them."""

import json
import math
import pickle

import numpy as np
import pytest
from helpers import Letters, run
from sampling_cases import request, sampled

import llama_jax
from llama_jax import Conversation, NaNLogitsError, generate, perplexity, score, stream
from llama_jax.generation.limits import MAX_ROWS

EMBEDDING, OUTPUT = ("tok_embeddings", "weight"), ("output", "weight")
BROKEN = 126  # "~"
GOOD, BAD = [1, 2, 3], [1, BROKEN, 3]
NEVER = {"forbidden_ids": [BROKEN], "stop_ids": ()}


@pytest.fixture(scope="module", params=[math.nan, math.inf])
def broken(request, params):
    """A model that has read NaN wherever it has read one token, and is sound otherwise."""
    table = params.weights["tok_embeddings"]["weight"]
    return params.with_weight(EMBEDDING, table.at[BROKEN].set(request.param))


def until_it_fails(deltas):
    """What a stream gave, and the error that it ended with."""
    found = []
    try:
        for delta in deltas:
            found.append(delta)
    except NaNLogitsError as error:
        return found, error
    pytest.fail("the stream ended without an error")


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_that_reads_nan_fails_and_the_others_are_as_they_are_alone(broken, temperature):
    settings = {"temperature": temperature, "max_new_tokens": 12, "logprobs": 1} | NEVER
    prompts, seeds = [GOOD, BAD, [4, 5]], [1, 2, 3]
    with pytest.raises(NaNLogitsError, match=r"completion 1 are NaN .*`llama-jax verify`") as error:
        generate(broken, prompts, **settings, seed=seeds)
    done, failed, other = error.value.results
    assert error.value.rows == [1]
    sent = pickle.loads(pickle.dumps(error.value))
    assert (str(sent), sent.rows, sent.results) == (
        str(error.value),
        error.value.rows,
        error.value.results,
    )
    assert (failed.tokens, failed.finish_reason, failed.stop_token) == ([], "error", None)
    for found, prompt, seed in ((done, GOOD, 1), (other, [4, 5], 3)):
        (alone,) = generate(broken, [prompt], **settings, seed=seed)
        assert (found.tokens, found.finish_reason) == (alone.tokens, "length")
    deltas, error = until_it_fails(stream(broken, prompts, **settings, seed=seeds))
    assert "row 1 are NaN" in str(error)
    assert error.rows == [1]
    tokens, reasons = [[], [], []], [None] * 3
    for delta in deltas:
        tokens[delta.row] += delta.tokens
        reasons[delta.row] = delta.finish_reason
    assert tokens == [done.tokens, [], other.tokens]
    assert reasons == ["length", "error", "length"]


@pytest.mark.parametrize("settings", [{}, {"top_k": 5, "min_new_tokens": 9}, {"top_p": 0.5}])
def test_a_row_keeps_the_tokens_before_it_failed(broken, settings):
    to_it = {"logit_bias": {BROKEN: 1e6}, "max_new_tokens": 9, "stop_ids": [2]} | settings
    with pytest.raises(NaNLogitsError) as error:
        generate(broken, [GOOD], tokenizer=Letters(), temperature=0.5, **to_it)
    (done,) = error.value.results
    assert (done.tokens, done.text, done.finish_reason) == ([BROKEN], "~", "error")


def test_an_infinite_logit_is_no_token_either(params):
    output = params.weights["output"]["weight"]
    for value in (math.inf, math.nan):
        wrong = params.with_weight(OUTPUT, output.at[:, 9].set(value))
        for forbidden in ([], [9]):
            with pytest.raises(NaNLogitsError):
                generate(wrong, [GOOD], temperature=0, forbidden_ids=forbidden, max_new_tokens=2)
    never = params.with_weight(OUTPUT, output.at[:, 9].set(0))  # nothing is wrong with this one
    assert generate(never, [GOOD], max_new_tokens=2)[0].finish_reason == "length"


def test_what_a_stop_string_ended_is_no_error(broken):
    to_it = {"logit_bias": {BROKEN: 1e6}, "temperature": 0, "max_new_tokens": 9}
    (done,) = generate(broken, [GOOD], tokenizer=Letters(), stop=["~"], **to_it)
    assert (done.text, done.tokens, done.finish_reason) == ("", [BROKEN], "stop")


def test_all_batches_are_computed_before_the_error(broken):
    prompts = [GOOD] * (MAX_ROWS - 1) + [BAD, [7], [8, 9], BAD]
    with pytest.raises(NaNLogitsError, match="completion 31, 34 are NaN") as error:
        generate(broken, prompts, max_new_tokens=2, temperature=0, **NEVER)
    found = [done.finish_reason for done in error.value.results]
    assert found == ["error" if prompt is BAD else "length" for prompt in prompts]
    deltas = stream(broken, prompts, max_new_tokens=2, temperature=0, **NEVER)
    deltas, error = until_it_fails(deltas)
    assert error.rows == [31, 34]
    ended = {delta.row: delta.finish_reason for delta in deltas if delta.finish_reason}
    assert [ended[row] for row in range(35)] == found


def test_a_text_that_cannot_be_scored_leaves_the_others_their_scores(broken):
    with pytest.raises(NaNLogitsError, match=r"text 0 are NaN .*`llama-jax verify`") as error:
        score(broken, [BAD, GOOD])
    failed, done = error.value.results
    assert [done] == score(broken, [GOOD])
    assert math.isnan(failed.perplexity)
    with pytest.raises(NaNLogitsError, match="completion 1") as error:
        generate(broken, [GOOD, BAD], prompt_logprobs=0, max_new_tokens=0)
    assert [done.finish_reason for done in error.value.results] == ["length", "error"]


def test_a_perplexity_ends_at_the_window_that_cannot_be_scored(broken):
    ids = [*range(3, 43), BROKEN, 3]
    found = perplexity(broken, ids, context=16, stride=8)
    assert next(found).tokens == 15
    with pytest.raises(NaNLogitsError, match="the window at token"):
        list(found)


class Dialogs(Letters):
    def encode_dialog(self, messages):
        return [1, *"".join(message["content"] for message in messages).encode()]


def test_a_conversation_goes_on_after_it_as_if_it_had_never_been(broken):
    settings = {"tokenizer": Dialogs(), "max_new_tokens": 4, "temperature": 0, **NEVER}
    talk = Conversation(broken, **settings)
    with pytest.raises(NaNLogitsError):
        list(talk.ask("a~"))
    talk.reset()
    fresh = Conversation(broken, **settings)
    said = [[delta.tokens for delta in one.ask("abc")] for one in (talk, fresh)]
    assert said[0] == said[1]
    with pytest.raises(NaNLogitsError):
        llama_jax.chat(broken, [{"role": "user", "content": "a~"}], **settings)


def test_the_commands_say_so_and_print_what_the_others_gave(broken, tmp_path):
    llama_jax.save(broken, tmp_path / "model")
    asked = ("generate", tmp_path / "model", "--ids", "1 126", "1 2", "-n", 3, "-t", 0)
    result = run(*asked, "--json")
    assert (result.exit_code, "`llama-jax verify`" in result.stderr) == (1, True)
    assert "load it with --dtype float32" in result.stderr
    assert "Traceback" not in result.output
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["finish_reason"] for row in rows] == ["error", "length"]
    assert (rows[0]["tokens"], len(rows[1]["tokens"])) == ([], 3)
    result = run(*asked)
    assert (result.exit_code, "prompt 1 are NaN" in result.stderr) == (1, True)
    wanted = " ".join(map(str, rows[1]["tokens"]))
    assert result.stdout.rstrip().endswith(f"1 2 {wanted}")


@pytest.mark.parametrize("rows", [1, 3, 8, 32])
@pytest.mark.parametrize("width", [1, 5, 300])
def test_nan_is_found_wherever_it_is_and_in_that_row_alone(rows, width):
    """In a batch of any size: XLA's maximum on a CPU drops a NaN in some."""
    logits = np.random.default_rng(0).standard_normal((rows, 300)).astype(np.float32)
    settings = {"vocab": 300, "seed": range(rows)}
    sound = [sampled(logits, request(rows, temperature=t, **settings)) for t in (0.0, 1.0)]
    for place in range(0, 300, width * 29):
        for value in (np.nan, np.inf):
            wrong = logits.copy()
            wrong[rows // 2, place : place + width] = value
            for temperature, wanted in zip((0.0, 1.0), sound, strict=True):
                found = sampled(wrong, request(rows, temperature=temperature, **settings))
                assert found.tolist() == wanted.at[rows // 2].set(-1).tolist()
