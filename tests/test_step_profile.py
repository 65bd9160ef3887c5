"""tools/step_profile.py: where the time of a decoding step goes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import step_profile

import llama_jax

ROOT = Path(__file__).resolve().parents[1]


def test_each_part_of_a_step_has_its_milliseconds_and_together_they_are_its_time(params, tmp_path):
    llama_jax.save(params, tmp_path / "model")
    command = [sys.executable, ROOT / "tools/step_profile.py", tmp_path / "model", "--steps", "8"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shown = dict(re.findall(r"^(.+?) +(\d+\.\d+) ms$", done.stdout, re.MULTILINE))
    *parts, together = map(float, shown.values())
    assert len(parts) == 7
    assert together > 0
    assert abs(sum(parts) - together) < 0.01


PROGRAM = """
  %gte.1 = f32[1,8]{1,0} get-tuple-element(%arg), index=0
  %dot.1 = f32[1,8] dot(%gte.1, %w), lhs_batch_dims={0}
  ROOT %add.2 = f32[8]{0} add(%dot.1), metadata={op_name="Transformer/feed_forward/jit(_product)"}
  %exp.3 = f32[8]{0} exponential(%x), metadata={op_name="jit(_attention)/exp"}
  %while.4 = (f32[8]{0}) while(%tuple), condition=%a, body=%b
  %min.5 = s32[] reduce(%y), metadata={op_name="jit(advance)/while/body/reduce"}
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "/nowhere does not exist; pass a checkpoint's directory"),
        (["/nowhere", "--batch", "0"], "--batch 0 must be at least 1"),
    ],
)
def test_what_cannot_be_profiled_is_refused_in_a_line(monkeypatch, capsys, arguments, said):
    monkeypatch.setattr(sys, "argv", ["step_profile.py", *arguments])
    with pytest.raises(SystemExit):
        step_profile.main()
    assert capsys.readouterr().err.endswith(f"error: {said}\n")


def test_an_instruction_is_of_the_part_that_it_or_its_first_user_comes_from():
    found = step_profile.parts(PROGRAM)
    assert found["dot.1"] == found["add.2"] == "products of the feed-forward's weights"
    assert (found["exp.3"], found["min.5"]) == ("attention", "sampling, stops and the loop")
    assert "while.4" not in found, "its time is that of its body"
