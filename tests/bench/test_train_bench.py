"""`python -m bench.train`: what contestants begin with, what is refused, and what is printed."""

import dataclasses

import numpy as np
import pytest

from bench import train
from bench.training import work
from bench.training.report import curve_table, speed_table
from llama_jax.train.rows import TextRows
from llama_jax.train.token_folder import open_tokens

TOY = work.WORKS["toy"]


def test_a_text_becomes_its_characters_and_every_step_has_rows_and_a_rate(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "write_weights", lambda config, folder: None)
    text = "abba cab " * 100
    work.write(dataclasses.replace(TOY, time=16), tmp_path / "toy", 5, text)
    tokens = open_tokens(tmp_path / "toy/tokens")
    assert "".join(" abc"[id] for id in tokens.train.read(0, 9)) == "abba cab "
    assert (len(tokens.train), len(tokens.validation)) == (810, 90)
    rows, rates = (np.load(tmp_path / f"toy/{name}.npy") for name in ("rows", "rates"))
    order = TextRows(tokens.train, 16, "joined").order(TOY.batch, seed=0)
    np.testing.assert_array_equal(rows, [order.at(step) for step in range(5)])
    assert rates.shape == (5,)
    assert rates[3] == pytest.approx(TOY.learning_rate)
    with pytest.raises(ValueError, match="the text has 257 characters and the model 256"):
        work.write(TOY, tmp_path / "many", 5, "".join(map(chr, range(257))))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "S,XL"], "shape 'XL' is unknown; use toy, S, 1M, 3M"),
        (["--peers", "jax"], "peer 'jax' is unknown; use torch, transformers"),
        (["--rounds", "0"], "--rounds 0 must be at least 1"),
        (["--text", "x", "--steps", "1"], "--steps 1 must be at least 2"),
    ],
)
def test_what_cannot_be_measured_is_refused_at_once(arguments, words, tmp_path):
    with pytest.raises(SystemExit) as ended:
        train.main([*arguments, "--work", str(tmp_path)])
    assert words in str(ended.value)


def test_another_models_losses_end_the_run():
    same = {"llama_jax": {"losses": [5.0, 4.9]}, "torch": {"losses": [5.001, 4.901]}}
    train.check_losses(same)
    other = same | {"torch": {"losses": [5.001, 4.8]}}
    with pytest.raises(RuntimeError, match=r"torch has a loss of 4\.80000 at step 2, and llama"):
        train.check_losses(other)


def test_ratios_are_of_ours_to_a_peer_in_tokens_and_of_a_peer_to_ours_in_time():
    rates = {"llama_jax": [300.0, 330.0, 300.0], "torch": [150.0, 165.0, 150.0]}
    about = {"batch": 4, "time": 64, "threads": 2, "config": TOY.config.to_json()}
    table = speed_table("toy", about | {"rates": rates, "failed": {"transformers": "absent"}})
    assert "| torch | 150 (150-158) | 2.00 |" in table
    assert "transformers did not take part: absent" in table

    def curve(seconds):
        return [
            {"step": 200 * i, "seconds": seconds * i, "validation_loss": 3.0 - i / 10}
            for i in range(1, 5)
        ]

    curves = {"llama_jax": curve(10.0), "torch": curve(15.0)}
    config = work.NANOGPT.config.to_json()
    table = curve_table({"curves": curves, "tokens": 9, "config": config, "failed": {}})
    assert "| torch | 2.8000 | 2.7000 | 2.6000 | 60.0 | 1.50 |" in table
