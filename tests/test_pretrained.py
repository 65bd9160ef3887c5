"""The model that comes with the package, and the names by which models are asked for."""

import importlib.util
import re

import pytest
from helpers import ROOT, run

import llama_jax
from llama_jax.checkpoint import named
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.cli.own_model import named_and_prompts

FOLDER = ROOT / "llama_jax/pretrained"


@pytest.fixture(scope="module")
def own():
    return llama_jax.load()


def stories_tool():
    spec = importlib.util.spec_from_file_location("stories", ROOT / "scripts/stories.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_story_begins_goes_on_and_ends(own):
    told = llama_jax.generate(own, ["Once upon a time"], n=4, max_new_tokens=400)
    ended = [done for done in told if done.finish_reason == "stop"]
    assert len(ended) >= 3, "a story ends of itself, and not where the context does"
    for done in ended:
        words = re.findall(r"[a-z]+", done.text.lower())
        assert len(words) > 20
        assert {"the", "and", "to", "was"} & set(words)
        assert done.text.rstrip()[-1] in '.!?"'


def test_the_files_are_small_and_hold_no_story_that_was_trained_on():
    files = [file for file in FOLDER.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 4_000_000
    beside = {str(f.relative_to(FOLDER)) for f in files if "weights" not in f.parts}
    assert beside == {"README.md", "checkpoint.json", "config.json", "tokenizer.model"}
    source = open_checkpoint()
    assert {tensor.dtype.name for tensor in source.tensors.values()} == {"bfloat16"}


OURS = (
    "Once upon a time, there was a small llama named Mo. Mo lived on a green hill with her mom. "
    'One day, Mo saw a red kite in the sky. "Can I fly it?" she asked. Her mom smiled and said, '
    '"Yes, but hold the string tight." Mo ran down the hill and the kite went up and up. Then the '
    "wind took it away, and Mo was sad. A little bird brought the kite back to her. "
    '"Thank you, bird!" said Mo. They played together until the sun went down.',
    "Tom had a blue boat. He put it in the pond behind the house and it began to float. A big frog "
    'sat on a stone and looked at the boat. "May I sit in it?" asked the frog. Tom was surprised '
    "that a frog could talk, but he was kind and said yes. The frog jumped in, and the boat went "
    "all around the pond. When they came back, the frog gave Tom a shiny shell. From that day on, "
    "Tom and the frog were best friends.",
)
"""Two stories of this project's own."""


def test_the_model_reads_two_stories_as_well_as_when_it_was_published(own):
    """Noise of a deviation of half a percent in each matrix changes the number by 0.0002."""
    assert stories_tool().bits_per_byte(own, OURS) == pytest.approx(1.01567, abs=5e-5)


CARD = (FOLDER / "README.md").read_text()
MODELS = {
    "this model": None,
    "stories260K (MIT)": "stories260K-meta",
    "TinyStories-656K (Apache-2.0)": "tinystories656K-hf",
}


def said_of(model):
    """The bits per byte of both files, as the card says them."""
    (row,) = re.findall(rf"^\| {re.escape(model)} \| ([\d.]+) \| ([\d.]+) \|$", CARD, re.MULTILINE)
    return [float(number) for number in row]


def test_the_card_says_that_the_model_is_better_than_the_others():
    (first, second), *others = map(said_of, MODELS)
    assert first <= 0.94, "the bar that was set before it was trained"
    assert all(first < one and second < two for one, two in others)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_the_card_says_the_bits_per_byte_that_a_model_has_of_the_held_out_stories(model, shared):
    """Of the 200 of each file, all that are short enough."""
    tool, at = stories_tool(), MODELS[model]
    params = llama_jax.load(at and shared / "models" / at, dtype="float32")
    for name, said in zip(tool.FILES, said_of(model), strict=True):
        stories = tool.stories_of(shared / "corpora" / tool.FILES[name])[tool.HELD_OUT]
        texts = tool.measured(stories)
        assert f"{name} file ({len(texts)} stories)" in CARD
        assert tool.bits_per_byte(params, texts) == pytest.approx(said, abs=0.0006)


def test_a_command_without_a_checkpoint_tells_a_story_and_says_whose_it_is():
    done = run("generate", "Once upon a time", "-n", 4, "--temperature", 0)
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("Once upon a time")
    assert "the model that comes with the package" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("chat",), 1), (("chat", "stories"), 1), (("generate", "stories", "Hi", "--chat"), 2)],
    ids=str,
)
def test_who_wants_to_chat_hears_that_it_only_tells_stories(arguments, code):
    """The model is the wrong one, or it does not take the option."""
    done = run(*arguments)
    assert done.exit_code == code
    assert "only tells stories" in done.stderr
    assert "llama-jax chat smollm2" in done.stderr


def test_a_checkpoint_and_a_prompt_are_told_apart(tmp_path):
    spaced = tmp_path / "my model"
    spaced.mkdir()
    for given, checkpoint, prompts in (
        ([None], None, []),
        (["Once upon a time", "One day"], None, ["Once upon a time", "One day"]),
        (["", "Once"], None, ["", "Once"]),
        (["demo", "Once"], "demo", ["Once"]),
        (["checkpoints/mistyped", "Once upon"], "checkpoints/mistyped", ["Once upon"]),
        ([str(spaced), "Once upon"], str(spaced), ["Once upon"]),
        (["hf:org/name"], "hf:org/name", []),
    ):
        found, texts = named_and_prompts(given[0], given[1:])
        assert (None if found is None else str(found), texts) == (checkpoint, prompts)


def test_a_name_is_a_model_unless_something_lies_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert named.find_checkpoint("stories") == named.find_checkpoint(None) == named.PRETRAINED
    (tmp_path / "stories").mkdir()
    assert str(named.find_checkpoint("stories")) == "stories"
    with pytest.raises(FileNotFoundError, match=r"nowhere does not exist; .* name: stories, smol"):
        llama_jax.load("nowhere")


def test_a_model_in_a_wheel_is_found_or_the_command_that_brings_it_is_said(tmp_path, monkeypatch):
    model = named.InWheel("a_model_of_pypi", "a.gguf", "pip install a-model")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(FileNotFoundError, match=r"a.gguf is not .*`pip install a-model` brings it"):
        model.path()
    kept = tmp_path / "cache/llama_jax/models/a.gguf"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert model.path() == kept
    package = tmp_path / "site/a_model_of_pypi"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nothing of it runs')")
    (package / "a.gguf").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert model.path() == package / "a.gguf"
