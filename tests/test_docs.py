"""The documentation: the reference has every public name, links lead somewhere, the site builds."""

import html
import importlib.util
import os
import re
import subprocess
import sys

import pytest
from helpers import ROOT, run

import llama_jax
from llama_jax.checkpoint import convert
from llama_jax.cli.compiling import LINE
from llama_jax.cli.own_model import OWN as OWN_MODEL
from llama_jax.generation.settings import ON_DEVICE

DOCS = ROOT / "docs"
OWN = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES = [*OWN, *sorted(DOCS.rglob("*.md"))]
RUN = [DOCS / "start.md", *sorted(DOCS.glob("guides/*.md"))]
RUN.remove(DOCS / "guides/distributed.md")  # its snippet is one process of two, over 16 devices
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


def home_of(name):
    """The dotted path under which the reference has a public name."""
    value = getattr(llama_jax, name)
    if isinstance(value, type(llama_jax)):
        return value.__name__
    module = getattr(value, "__module__", "")
    if not module.startswith("llama_jax"):  # a name for a type of Python's
        names = (ROOT / "llama_jax/__init__.pyi").read_text()
        module = "llama_jax" + re.search(rf"from (\S+) import {name} as", names)[1]
    return f"{module}.{name}"


@pytest.mark.parametrize("name", llama_jax.__all__)
def test_every_public_name_is_in_the_reference(name):
    home = home_of(name)
    index = (DOCS / "api/index.md").read_text()
    assert f"[`{name}`][{home}]" in index, f"docs/api/index.md does not list {name}"
    pages = "\n".join(page.read_text() for page in DOCS.glob("api/*.md"))
    described = re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)
    assert home in described or home.rpartition(".")[0] in described, f"no page describes {home}"


def test_the_order_of_the_settings_has_each_of_them():
    order = (DOCS / "promises.md").read_text().split("in this order:")[1].split("##")[0]
    missing = [name for name in ON_DEVICE if f"`{name}`" not in order]
    assert not missing, f"docs/promises.md does not say when {missing} act"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file(page):
    text = FENCED.sub("", page.read_text())
    for target in LINK.findall(text):
        path, _, anchor = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        file = page if not path else page.parent / path
        assert file.exists(), f"{page.name} links to {target}, which does not exist"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page.name} links to {target}, a heading that is not"


def anchors(page):
    """The headings of a page, as links spell them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text()), flags=re.MULTILINE)
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-") for heading in headings
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_is_python(page):
    for kind, text in FENCED.findall(page.read_text()):
        if kind == "python":
            compile(text, str(page), "exec")


def test_the_files_that_contributing_names_are_there():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = re.findall(r"`((?:llama_jax|tests|configs)/[\w./]*)`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_picture_shows_what_the_readmes_first_command_prints_and_fetches_nothing():
    picture = (DOCS / "first_run.svg").read_text()
    shown = html.unescape("".join(re.findall(r"<text[^>]*>([^<]*)", picture)))
    shown = shown.replace("\N{NO-BREAK SPACE}", " ")
    command = re.search(r'llama-jax generate "[^"]*"', OWN[0].read_text())[0]
    assert f"$ {command}" in shown
    printed = run("generate", "Once upon a time")
    words = [OWN_MODEL, LINE, printed.stdout]
    order = [" ".join(shown.split()).find(" ".join(text.split())) for text in words]
    assert 0 < order[0] < order[1] < order[2], "run scripts/recording.py again"
    assert re.search(r"\d+ tokens; the first after \d+ ms, then [\d,.]+ tokens/s; compiling", shown)
    assert "(docs/first_run.svg)" in OWN[0].read_text()
    assert re.findall(r"url\((?!#)|href=|@import", picture) == []


def test_the_site_builds(tmp_path):
    for module in ("mkdocs", "material", "mkdocstrings_handlers"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed; pip install -e '.[docs]' brings it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_snippets_of_a_guide_run(page, tmp_path, shared):
    """In a folder such as a reader's, with a small model under the names of large ones."""
    model = shared / "models/stories260K-meta"
    for name in ("tests", "configs", "llama_jax"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/llama-3.2-1b", "checkpoints/llama-3.2-1b-instruct", "model"):
        (tmp_path / name).symlink_to(model)
    convert(ROOT / "tests/golden/meta/llama3", tmp_path / "checkpoints/demo")
    many = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    for kind, text in FENCED.findall(page.read_text()):
        if kind == "python":
            done = subprocess.run(
                [sys.executable, "-c", text],
                cwd=tmp_path,
                env={**os.environ, **many},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{text}\n{done.stderr}"
