"""The notebook runs as a reader would run it, and holds the output that it has."""

import json
import re
import runpy

import pytest
from helpers import ROOT

NOTEBOOK = ROOT / "examples/first_steps.ipynb"
TOOL = runpy.run_path(str(ROOT / "scripts/notebook.py"))
CHANCE = re.compile(r"([\d.]+)% #* +' (\w+)'")


@pytest.fixture(scope="module")
def stored():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def printed(stored):
    """What each code cell prints, run here."""
    return TOOL["printed"](TOOL["executed"](stored))


def numbers(text):
    return [float(found) for found in re.findall(r"\d+\.\d+", text)]


def test_a_story_is_told(printed):
    params, _, story = printed[0].partition("\n")
    assert params.startswith("Params(1,000,576 parameters")
    assert story.startswith("Once upon a time")
    assert len(story.split()) > 60


def test_a_name_changes_its_place_with_another(printed):
    before, after = (CHANCE.findall(printed[i]) for i in (1, 2))
    assert [name for _, name in before].count("Lily") == 1
    names = {"Lily": "Tim", "Tim": "Lily"}
    assert after == [(chance, names.get(name, name)) for chance, name in before]


def test_every_layers_attention_is_missed(printed):
    whole, *without = numbers(printed[3])
    assert len(without) == 4
    assert min(without) > whole


def test_the_page_holds_what_its_cells_print(stored, printed):
    held = TOOL["printed"](stored)
    assert held[0].splitlines()[0] == printed[0].splitlines()[0]
    assert [CHANCE.findall(text)[0][1] for text in held[1:3]] == ["Lily", "Tim"]
    assert numbers(held[3]) == pytest.approx(numbers(printed[3]), abs=0.02)


def test_the_readme_links_it():
    assert f"(examples/{NOTEBOOK.name})" in (ROOT / "README.md").read_text()
