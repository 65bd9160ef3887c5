"""How likely a text is: Meta's own numbers, position by position, wherever they are told."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import GOLDEN, Letters, run

import llama_jax
from llama_jax import DynamicScaling, generate, perplexity, score, stream
from llama_jax.generation import placement
from llama_jax.generation.limits import limits_on
from llama_jax.generation.placement import Placement
from llama_jax.generation.results import Perplexity, Score

TOLERANCE = 2e-4
forward = jax.jit(llama_jax.forward)
scoring = sys.modules["llama_jax.generation.score"]  # whose name is the function's too


@pytest.fixture(scope="module", params=["llama1", "llama2-gqa", "llama3", "llama3.1"])
def golden(request):
    folder = GOLDEN / "meta" / request.param
    with np.load(folder / "reference.npz") as file:
        reference = dict(file)
    texts = [row.tolist() for row in reference["greedy"]]
    lengths = [int((row >= 0).sum()) for row in reference["prompts"]]
    return llama_jax.load(folder, dtype="float32"), texts, lengths, reference["token_logprobs"]


def raw_logprobs(params, ids):
    logits, _ = forward(params, jnp.array([ids]), jnp.arange(len(ids))[None])
    return np.asarray(jax.nn.log_softmax(logits))[0]


def test_generated_tokens_have_metas_logprobs_with_no_shift(golden):
    params, texts, lengths, reference = golden
    prompts = [text[:n] for text, n in zip(texts, lengths, strict=True)]
    settings = {"temperature": 0.0, "max_new_tokens": 40, "logprobs": 5, "stop_ids": []}
    done = generate(params, prompts, **settings)
    for text, n, wanted, completion in zip(texts, lengths, reference, done, strict=True):
        assert completion.tokens == text[n : n + 40]
        assert [entry.token for entry in completion.logprobs] == completion.tokens
        found = [entry.logprob for entry in completion.logprobs]
        np.testing.assert_allclose(found, wanted[n - 1 : n + 39], atol=TOLERANCE)
        for entry in completion.logprobs:  # greedy: what was taken is the argmax
            assert next(iter(entry.top.items())) == (entry.token, entry.logprob)


def test_prompt_logprobs_and_scores_are_metas_with_no_shift(golden):
    params, texts, _, reference = golden
    done = generate(params, texts, max_new_tokens=0, prompt_logprobs=3)
    for text, wanted, completion, scored in zip(
        texts, reference, done, score(params, texts), strict=True
    ):
        first, *rest = completion.prompt_logprobs
        assert first is None
        assert [entry.token for entry in rest] == text[1:]
        np.testing.assert_allclose([entry.logprob for entry in rest], wanted, atol=TOLERANCE)
        np.testing.assert_allclose(scored.logprobs, wanted, atol=TOLERANCE)
        assert scored.tokens == text
        assert scored.nll == pytest.approx(-wanted.sum(dtype=np.float64), abs=70 * TOLERANCE)
        assert scored.perplexity == pytest.approx(np.exp(-wanted.mean()), rel=1e-3)


def test_a_prompt_that_fills_the_context_is_scored_to_its_last_token():
    folder = GOLDEN / "meta/llama3"
    with np.load(folder / "reference.npz") as file:
        text, wanted = file["greedy"][2].tolist(), file["token_logprobs"][2]
    params = llama_jax.load(folder, dtype="float32")
    full = params.replace(config=params.config.replace(max_seq_len=len(text)))
    (done,) = generate(full, [text], prompt_logprobs=0, logprobs=0, max_new_tokens=5)
    assert (done.tokens, done.logprobs, done.finish_reason) == ([], [], "length")
    found = [entry.logprob for entry in done.prompt_logprobs[1:]]
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)
    assert score(full, [text])[0].logprobs == found

    # And the last token that the context has room for is scored as well.
    settings = {"temperature": 0.0, "logprobs": 0, "stop_ids": []}
    (done,) = generate(full, [text[:-3]], **settings)
    assert done.tokens == text[-3:]
    found = [entry.logprob for entry in done.logprobs]
    np.testing.assert_allclose(found, wanted[-3:], atol=TOLERANCE)


def test_an_accelerator_reads_as_many_positions_of_one_text_as_of_eight(params, monkeypatch):
    def of(rows, time):
        return scoring.score_arguments(params, Placement.of(params), np.zeros((rows, time)))[
            "chunk_tokens"
        ]

    assert (of(1, 16), of(1, 4096), of(8, 4096)) == (16, 128, 128)
    monkeypatch.setattr(placement, "limits_on", lambda _: limits_on("gpu"))
    assert (of(1, 16), of(1, 4096), of(3, 4096), of(8, 4096)) == (16, 1024, 256, 128)
    many = np.random.default_rng(0).integers(1, params.config.vocab_size, 200).tolist()
    (wide,) = score(params, [many])
    monkeypatch.undo()
    np.testing.assert_allclose(wide.logprobs, score(params, [many])[0].logprobs, atol=TOLERANCE)


def test_logprobs_are_of_the_raw_logits_whatever_was_drawn_from(params):
    settings = {
        "temperature": 2.0,
        "top_k": 40,
        "repetition_penalty": 1.5,
        "presence_penalty": 1.0,
        "logit_bias": {5: 3.0},
        "forbidden_ids": [6],
        "seed": 3,
        "max_new_tokens": 12,
        "logprobs": 20,
    }
    (done,) = generate(params, [[1, 2, 3]], **settings)
    whole = raw_logprobs(params, [1, 2, 3, *done.tokens])
    for i, entry in enumerate(done.logprobs):
        here = whole[2 + i]
        assert entry.logprob == pytest.approx(here[entry.token], abs=1e-5)
        best = np.argsort(-here, kind="stable")[:20]
        assert set(entry.top) <= set(np.argsort(-here)[:22].tolist())
        assert next(iter(entry.top)) == best[0]
        values = list(entry.top.values())
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, here[best], atol=1e-5)


def test_as_many_alternatives_come_as_were_asked_for(params):
    prompts = [[1, 2], [3, 4], [5, 6], [7, 8]]
    done = generate(
        params, prompts, logprobs=[None, 0, 2, 20], prompt_logprobs=[3, 5, 0, 1], max_new_tokens=3
    )
    assert done[0].logprobs is None
    assert [len(e.top) for c in done[1:] for e in c.logprobs] == [0] * 3 + [2] * 3 + [20] * 3
    assert done[1].prompt_logprobs[0] is None
    assert [len(c.prompt_logprobs[1].top) for c in done] == [3, 5, 0, 1]
    for delta in stream(params, prompts, logprobs=2, max_new_tokens=3):
        assert delta.row in range(4)
        assert [entry.token for entry in delta.logprobs] == delta.tokens
        assert [len(entry.top) for entry in delta.logprobs] == [2] * len(delta.tokens)
    asked = {"logprobs": 0, "prompt_logprobs": 0}
    for others in (0, 3):  # what a row is told does not hang on whether its neighbours decode
        row, *_ = generate(params, prompts, max_new_tokens=[0, others, others, others], **asked)
        assert (row.logprobs, len(row.prompt_logprobs)) == ([], 2)


def test_the_completions_of_a_prompt_share_its_scores(params, monkeypatch):
    module, scored = sys.modules["llama_jax.generation.completed"], []
    found = module.prompt_logprobs
    spy = lambda params, place, ids: scored.extend(ids) or found(params, place, ids)  # noqa: E731
    monkeypatch.setattr(module, "prompt_logprobs", spy)
    prompts = [[1, 2, 3], [4, 5, 6]]
    done = generate(params, prompts, n=2, prompt_logprobs=0, max_new_tokens=0)
    assert scored == prompts
    one, two, other, _ = [c.prompt_logprobs for c in done]
    assert one == two != other


def test_texts_of_many_lengths_are_scored_in_their_order(params):
    rng = np.random.default_rng(0)
    texts = [rng.integers(3, 256, n).tolist() for n in (1, 200, 2, 17, 33, 129, 64, 5, 256, 3)]
    scores = score(params, texts)
    assert [s.tokens for s in scores] == texts
    assert [len(s.logprobs) for s in scores] == [len(text) - 1 for text in texts]
    assert scores[0].nll == 0
    assert math.isnan(scores[0].perplexity)
    for text, found in zip(texts, scores, strict=True):
        if len(text) in (17, 129, 256):
            wanted = raw_logprobs(params, text)[np.arange(len(text) - 1), text[1:]]
            np.testing.assert_allclose(found.logprobs, wanted, atol=2e-5)
    assert score(params, []) == []


def test_what_cannot_be_scored_is_said(params):
    with pytest.raises(ValueError, match="pass a list"):
        score(params, "text")
    with pytest.raises(ValueError, match="prompt 0 is text and these params have no tokenizer"):
        score(params, ["text"])
    with pytest.raises(ValueError, match="257 tokens and the context ends at max_seq_len=256"):
        score(params, [[1] * 257])
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        score(params, [[1], []])
    (found,) = score(params, ["ab"], tokenizer=Letters())
    assert found.tokens == [1, *b"ab"]


# Perplexity of a text of any length


def windows_in_numpy(params, ids, context, stride, bos=None):
    """The sum over windows, each token counted by the first window that reaches it."""
    nll, scored, start = 0.0, 1, 0
    while scored < len(ids):
        end = min(start + context, len(ids))
        first = ids[start] if bos is None else bos
        window = raw_logprobs(params, [first, *ids[start + 1 : end]])
        nll -= sum(window[i - start - 1, ids[i]] for i in range(scored, end))
        scored, start = end, start + stride
    return nll


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 15), (16, 1), (2, 1), (256, 128)])
def test_every_token_but_the_first_counts_once(params, context, stride):
    ids = np.random.default_rng(0).integers(3, 256, 50).tolist()
    *_, last = found = list(perplexity(params, ids, context=context, stride=stride))
    assert last.tokens == 49
    assert [one.tokens for one in found] == sorted({one.tokens for one in found})
    if context < 50:
        assert found[0].tokens == context - 1
    assert last.nll == pytest.approx(windows_in_numpy(params, ids, context, stride), abs=1e-3)
    assert last.value == pytest.approx(math.exp(last.nll / 49))


@pytest.mark.parametrize(("context", "stride"), [(16, 8), (16, 15), (16, 1), (2, 1), (33, 17)])
def test_each_window_begins_with_bos_where_the_text_does(params, context, stride):
    ids = np.random.default_rng(2).integers(3, 256, 50).tolist()
    windows = {"context": context, "stride": stride}
    plain = windows_in_numpy(params, ids, context, stride)
    *_, last = perplexity(params, ids, **windows, tokenizer=Letters())
    assert last.nll == pytest.approx(plain, abs=1e-3)  # it begins with no bos, so no window does

    ids[0] = Letters.bos_id
    wanted = windows_in_numpy(params, ids, context, stride, bos=Letters.bos_id)
    *_, last = perplexity(params, ids, **windows, tokenizer=Letters())
    assert (last.nll, last.tokens) == (pytest.approx(wanted, abs=1e-3), 49)
    *_, last = perplexity(params, ids, **windows)  # which token is bos, nobody says
    assert last.nll == pytest.approx(windows_in_numpy(params, ids, context, stride), abs=1e-3)
    assert last.nll != pytest.approx(wanted, abs=1e-3)


def test_a_text_of_one_window_has_the_perplexity_of_its_score(params):
    ids = np.random.default_rng(1).integers(3, 256, 100).tolist()
    (only,) = perplexity(params, ids)
    (whole,) = score(params, [ids])
    assert only.nll == whole.nll
    assert only.value == pytest.approx(whole.perplexity)
    assert list(perplexity(params, [5])) == []


def test_a_text_beyond_all_likelihood_has_an_infinite_perplexity():
    for nll in (1000.0, math.inf):
        assert Score([1, 2], [-nll]).perplexity == math.inf
        assert Perplexity(nll, 1).value == math.inf


def test_windows_that_make_no_sense_are_refused(params):
    for settings, message in (
        ({"context": 257}, "context=257 must be from 2 to max_seq_len=256"),
        ({"context": 1}, "context=1"),
        ({"context": 8, "stride": 8}, "stride=8 must be from 1 to context - 1 = 7"),
        ({"stride": 0}, "stride=0"),
    ):
        with pytest.raises(ValueError, match=message):
            list(perplexity(params, [1, 2, 3], **settings))


def test_dynamic_scaling_does_not_bound_the_text_whose_perplexity_is_asked(params, config):
    dynamic = config.replace(max_seq_len=16, rope_scaling=DynamicScaling(2.0, 16))
    ids = np.random.default_rng(0).integers(3, 256, 50).tolist()
    *_, last = perplexity(params.replace(config=dynamic), ids)
    assert last.tokens == 49
    assert last.nll == pytest.approx(windows_in_numpy(params, ids, 16, 8), abs=1e-3)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ("once", "ids='once' is a text"),
        ([], "has no tokens"),
        ([1, 256], "has token 256, and the model knows 0 to 255"),
        ([1, 2.5], "a list of token ids"),
    ],
)
def test_perplexity_takes_ids_of_the_model_alone(params, ids, message):
    with pytest.raises(ValueError, match=message):
        next(perplexity(params, ids))


# The real model


def test_the_known_sentence_has_its_known_nll(shared):
    folder = shared / "models/stories260K-meta"
    golden = json.loads((folder / "golden.json").read_text())["perplexity"]
    (found,) = score(llama_jax.load(folder, dtype="float32"), [golden["sentence"]])
    assert len(found.tokens) == golden["n_tokens_incl_BOS"]
    assert found.nll == pytest.approx(golden["nll"], abs=1e-3)
    assert found.perplexity == pytest.approx(golden["ppl"], rel=1e-4)


def test_the_command_measures_a_file(shared, tmp_path):
    folder, file = shared / "models/stories260K-meta", tmp_path / "text.txt"
    golden = json.loads((folder / "golden.json").read_text())["perplexity"]
    file.write_text(golden["sentence"])
    command = ("perplexity", folder, file, "--dtype", "float32")
    result = run(*command)
    assert result.exit_code == 0, result.output
    said = f"(nll {golden['nll']:.4f} in all, 34 tokens)"
    assert result.stdout == f"perplexity {golden['ppl']:.4f} {said}\n"
    found = json.loads(run(*command, "--json").stdout)
    assert found["nll"] == pytest.approx(golden["nll"], abs=1e-3)
    assert found["tokens"] == 34

    text = (shared / "corpora/tinystories_2M.txt").read_text()[:3000].split("<|endoftext|>")[0]
    file.write_text(text)
    found = json.loads(run(*command, "--context", 128, "--stride", 64, "--json").stdout)
    params = llama_jax.load(folder, dtype="float32")
    ids = score(params, [text])[0].tokens
    assert found["tokens"] == len(ids) - 1 > 128
    *_, wanted = perplexity(params, ids, context=128, stride=64)
    assert found["nll"] == pytest.approx(wanted.nll)
    assert 1 < found["perplexity"] < 10


def test_the_command_says_what_it_cannot_measure(shared, tmp_path):
    folder, file = shared / "models/stories260K-meta", tmp_path / "text.txt"
    file.write_text("")
    for arguments, message in (
        ((folder, file), "holds no text to score"),
        ((folder, tmp_path / "none.txt"), "none.txt"),
        ((GOLDEN / "meta/llama3", file), "has no tokenizer"),
    ):
        result = run("perplexity", *arguments)
        assert result.exit_code == 1
        assert message in result.stderr
        assert "Traceback" not in result.output
    file.write_text("Once upon a time")
    result = run("perplexity", folder, file, "--context", 8, "--stride", 9)
    assert (result.exit_code, "--stride 9 must be" in result.stderr) == (2, True)
