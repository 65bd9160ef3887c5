"""Single flipped bits: a native checkpoint refuses each, a `.pth` each that changes a number."""

import shutil

from fuzz.flips import SHIPPED, flipped
from fuzz.seeds import make


def test_no_flipped_bit_of_a_torch_file_changes_what_is_read(tmp_path):
    accepted = flipped(make(tmp_path)["pth"].folder, 60, 0)
    assert not accepted.other
    assert accepted.same.total() < 30  # of its directory alone; the records have sums


def test_no_flipped_bit_of_the_model_that_comes_along_is_accepted(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "shipped")
    accepted = flipped(tmp_path / "shipped", 40, 0)
    assert not accepted.other
    assert not accepted.same
