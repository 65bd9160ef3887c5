"""Single flipped bits: a native checkpoint refuses each, a `.pth` each that changes a number."""

import random
import shutil

from fuzz.flips import SHIPPED, flipped
from fuzz.seeds import make

from llama_jax.checkpoint.convert import convert
from llama_jax.checkpoint.native.manifest import read_info


def test_no_flipped_bit_of_a_torch_file_changes_what_is_read(tmp_path):
    accepted = flipped(make(tmp_path)["pth"].folder, 60, 0)
    assert not accepted.other
    assert accepted.same.total() < 30  # of its directory alone; the records have sums


def test_no_flipped_bit_of_the_model_that_comes_along_is_accepted(tmp_path):
    shutil.copytree(SHIPPED, tmp_path / "shipped")
    accepted = flipped(tmp_path / "shipped", 40, 0)
    assert not accepted.other
    assert not accepted.same


def test_no_flipped_bit_of_a_manifest_that_names_a_folder_with_an_accent_is_accepted(tmp_path):
    source, native = tmp_path / "modèle", tmp_path / "native"
    shutil.copytree(make(tmp_path / "seeds")["pth"].folder, source)
    convert(source, native)
    file, rng, taken = native / "checkpoint.json", random.Random(0), []
    content = file.read_bytes()
    for at in range(len(content)):
        for bit in (5, rng.randrange(8)):  # the fifth makes a small letter a capital
            changed = bytearray(content)
            changed[at] ^= 1 << bit
            file.write_bytes(changed)
            try:
                read_info(native)
                taken.append((at, bit))
            except ValueError:
                pass
    assert taken == []
