"""Each example runs from a clone, with no download, and shows what it says it shows."""

import ast
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import ROOT

NUMBER = r"-?\d+\.\d+"
STORY = ", there was a little girl named Lily. She loved to"
"""How the model that comes along goes on from "Once upon a time" for 12 tokens, greedily."""


def numbers(pattern, text):
    return [float(found) for found in re.findall(pattern, text)]


def generate_shows_texts_of_each_kind(out):
    likeliest, other, drawn, _, first, second, echoed = [
        ast.literal_eval(text) for text in re.findall(r"^  ('.+') \(length\)$", out, re.MULTILINE)
    ]
    assert likeliest == STORY
    assert first == drawn
    assert len({likeliest, other, drawn, second}) == 4
    assert echoed == f"Once upon a time{drawn}"
    assert re.findall(r"^  ('.+'): -", out, re.MULTILINE) == ["','", "'there'", "'was'"]


def stream_shows_a_row_that_ends_before_the_other(out):
    rows = re.findall(r"^row (\d): '", out, flags=re.MULTILINE)
    assert (rows.count("0"), rows.count("1")) == (24, 8)
    assert sorted(rows[:4]) == ["0", "0", "1", "1"]
    assert out.index("row 1 ends (length): 8 tokens") < out.index("row 0 ends (length): 24 tokens")
    assert "The deltas, joined, are the completions of generate:\n  Once upon a time" in out


def chat_shows_that_a_turn_reads_what_is_new(out):
    answers = re.findall(r"^assistant: ([a-z ]{12,40})$", out, flags=re.MULTILINE)
    assert len(answers) == 2
    turns = re.findall(r"\[(\d+) new tokens read, in a dialog of (\d+)\]", out)
    (first, whole), (new, longer) = [tuple(map(int, turn)) for turn in turns]
    assert first == whole
    # What the first turn read and its answer are kept; the answer's last token is read again.
    assert new == longer - whole - len(answers[0]) + 1
    assert "['system', 'user', 'assistant', 'user', 'assistant']" in out


def score_shows_which_text_is_likelier(out):
    likely, unlikely = numbers(rf"perplexity ({NUMBER})", out)
    assert likely < 2 < 1000 < unlikely
    words = re.findall(r"^ +'(.+)': +-", out, re.MULTILINE)
    assert words == ["Once", "upon", "a", "time", ",", "there", "was", "a"]
    windows = re.findall(rf"after +(\d+) tokens: {NUMBER}", out)
    assert windows == ["7", "11", "15", "19", "21"]
    assert f"In one window: {likely:.2f}" in out


def several_devices_shows_shards_and_equal_tokens(out):
    assert "4 devices as a mesh of {'data': 2, 'fsdp': 1, 'tensor': 2}" in out
    assert out.count("holds [64, 32], from row 0, column 32") == 2
    assert out.count("holds [32, 64], from row 32, column 0") == 2
    held, whole = re.search(r"holds ([\d,]+) bytes of ([\d,]+)", out).groups()
    assert int(held.replace(",", "")) < 0.51 * int(whole.replace(",", ""))
    assert "The tokens are equal." in out


def look_inside_shows_every_layer(out):
    layers = re.findall(rf"after +(\d+) layers: norm +{NUMBER}, +'(\w+)' with ({NUMBER})", out)
    assert [layer for layer, *_ in layers] == ["0", "1", "2", "3", "4"]
    assert layers[-1][1] == "dog"
    assert float(layers[-1][2]) > 0.9
    words = ["<s>", "Lily", "saw", "a", "dog", ".", "She", "said", "to", "the"]
    header, *lines = out.split("(column)\n")[1].split("\n\n")[0].splitlines()
    assert header.split() == [line.split()[0] for line in lines] == words
    rows = [[float(share) for share in line.split()[1:]] for line in lines]
    for i, row in enumerate(rows):
        assert sum(row) == pytest.approx(1, abs=0.06)
        assert not any(row[i + 1 :])
    assert rows[-1][words.index("dog")] > 0.8
    assert "those of llama_jax.forward" in out


def change_a_weight_shows_what_each_change_does(out):
    assert "a little girl named' comes 'Lily', with" in out
    changes = numbers(rf"KL ({NUMBER})", out)
    assert len(changes) == 1 + 3 + 4
    unchanged, a_little, more, gone, *heads = changes
    assert unchanged == 0 < a_little < more < gone
    assert min(heads) > 0
    assert "The model itself is as it was." in out


def training_step_shows_a_falling_loss(out):
    losses = numbers(rf"loss ({NUMBER})", out)
    assert len(losses) == 20
    assert losses[0] == pytest.approx(5.55, abs=0.1)  # log 256: it knows nothing
    assert losses[-1] < 4


def engine_shows_requests_that_share_and_leave(out):
    assert re.search(r"^Once upon a time\|, there was", out, flags=re.MULTILINE)
    there = [
        tuple(map(int, found)) for found in re.findall(r"(\d+) of (\d+) tokens were cached", out)
    ]
    assert there[0][0] == 0
    assert 0 < there[1][0] < there[1][1]
    assert "the other goes on to its end: ', there was" in out
    assert "running=0, waiting=0" in out


def quantize_shows_what_fewer_bits_cost(out):
    (first, _), *others = [
        tuple(map(float, found)) for found in re.findall(r"([\d.]+)% of .*perplexity ([\d.]+)", out)
    ]
    assert first == 100
    assert [share for share, _ in others] == [pytest.approx(45.9), pytest.approx(20.7)]
    assert [perplexity for _, perplexity in others] == pytest.approx([2.362, 2.393], abs=0.01)
    assert "w1 of layer 0 is now Int4, of shape [128, 352]" in out
    assert "'Once upon a time, there was a little" in out


def finetune_shows_what_the_texts_changed(out):
    before, after = (re.search(rf"^{when}: +(.*)$", out, re.MULTILINE)[1] for when in WHEN)
    assert "Zib" not in before
    assert after == "'One day, a llama named Zib sat on the red roof and sang to'"
    assert f"the model itself: {before}" in out
    assert "7,168 parameters of adapters, over" in out


WHEN = "before", "after"


def serve_shows_answers_over_http(out):
    assert "stories answers at http://127.0.0.1:" in out
    assert "serving stories\n, there was a little girl" in out
    assert len(re.findall(r"^'.+'$", out, flags=re.MULTILINE)) == 2
    assert out.endswith("The server has ended.\n")


CHECKS = {
    "engine.py": engine_shows_requests_that_share_and_leave,
    "generate.py": generate_shows_texts_of_each_kind,
    "stream.py": stream_shows_a_row_that_ends_before_the_other,
    "chat.py": chat_shows_that_a_turn_reads_what_is_new,
    "score.py": score_shows_which_text_is_likelier,
    "several_devices.py": several_devices_shows_shards_and_equal_tokens,
    "look_inside.py": look_inside_shows_every_layer,
    "change_a_weight.py": change_a_weight_shows_what_each_change_does,
    "training_step.py": training_step_shows_a_falling_loss,
    "finetune.py": finetune_shows_what_the_texts_changed,
    "quantize.py": quantize_shows_what_fewer_bits_cost,
    "serve.py": serve_shows_answers_over_http,
}


def run(name):
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "LLAMA_JAX_CACHE": "off",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, f"examples/{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.fixture(scope="module")
def runs():
    """Every example, two at a time: one alone leaves most of a second core idle."""
    pool = ThreadPoolExecutor(2)
    yield {name: pool.submit(run, name) for name in CHECKS}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("name", CHECKS)
def test_an_example_shows_what_it_says(runs, name):
    done = runs[name].result()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    CHECKS[name](done.stdout)


def examples():
    return sorted(path.name for path in (ROOT / "examples").iterdir() if path.suffix == ".py")


def test_every_example_is_run():
    assert examples() == sorted(CHECKS)


@pytest.mark.parametrize("name", examples())
def test_the_readme_links_every_example(name):
    assert f"(examples/{name})" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("name", examples())
def test_an_example_is_one_page(name):
    text = (ROOT / "examples" / name).read_text()
    assert 20 <= len(text.splitlines()) <= 70
    assert f"python examples/{name} [CHECKPOINT]" in text
