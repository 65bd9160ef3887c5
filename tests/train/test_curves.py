"""A run's curves: a picture where matplotlib is installed, and one line where it is not."""

import json
import sys

import pytest

from llama_jax.cli import main
from llama_jax.train.curves import plot

STEP = {"loss": 4.0, "gradient_norm": 1.0, "learning_rate": 1e-3, "tokens": 8.0, "good": True}
LINES = [{"step": 1, **STEP}, {"step": 2, **STEP}, {"step": 2, "validation_loss": 3.9}]


@pytest.fixture
def run(tmp_path):
    text = "".join(json.dumps(line) + "\n" for line in LINES)
    (tmp_path / "metrics.jsonl").write_text(text + '{"step": 3, "lo')
    return tmp_path


def called(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["plot", *map(str, arguments)])
    return ended.value.code


@pytest.mark.filterwarnings("ignore")  # theirs
def test_the_curves_become_a_png(run, capsys):
    pytest.importorskip("matplotlib", reason="matplotlib is absent; pip install matplotlib")
    assert not called(run)
    assert capsys.readouterr().out.strip() == str(run / "curves.png")
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", [b"run-\xc3\xa9", b"\xff", b"$\\x^$ at 5$"])
def test_a_run_may_have_any_name_in_any_locale(run, name):
    pytest.importorskip("matplotlib", reason="matplotlib is absent; pip install matplotlib")
    there = run / name.decode("ascii", "surrogateescape")
    there.mkdir()
    (run / "metrics.jsonl").rename(there / "metrics.jsonl")
    assert plot(there, run / "x.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["curves.pdf", "x.jpg"])
def test_a_picture_of_another_kind_is_refused(run, capsys, name):
    assert called(run, "--out", run / name) == 2
    assert f"the picture is a PNG, and --out {run / name}" in capsys.readouterr().err


def test_without_matplotlib_one_line_says_how_to_install_it(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert called(run) == 1
    assert "pip install matplotlib" in capsys.readouterr().err
    assert not (run / "curves.png").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert called(tmp_path) == 1
    assert "has no metrics.jsonl; name the folder of" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").touch()
    assert called(tmp_path) == 1
    assert "has taken no step yet" in capsys.readouterr().err
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n"x"\n')
    assert called(tmp_path) == 1
    assert "metrics.jsonl, line 2 is no record of a run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "wrong"), [("nowhere", "does not exist"), ("a file", "is a file, not a run's folder")]
)
def test_what_is_no_folder_is_said(tmp_path, capsys, name, wrong):
    (tmp_path / "a file").touch()
    assert called(tmp_path / name) == 1
    said = capsys.readouterr().err
    assert f"{name} {wrong}; name the folder of `llama-jax train --out`" in said
