"""A weight file that is cut off after it was opened: an error that names it, and no signal."""

import os
import shutil

import meta_folder
import numpy as np
import pytest
from fuzz import formats, seeds
from fuzz.seeds import gguf_folder
from hf_folder import write_folder

from llama_jax.checkpoint.files.mapped import check_whole
from llama_jax.checkpoint.files.safetensors_file import read_safetensors
from llama_jax.checkpoint.huggingface.packed import Tensors
from llama_jax.checkpoint.reading import open_checkpoint

SINGLE = "model.safetensors"


def opened(kind, folder):
    """A checkpoint of a kind, and its weight file."""
    if kind == "gguf":
        file = gguf_folder(folder) / "model.gguf"
        return open_checkpoint(file), file
    if kind == "safetensors":
        return open_checkpoint(write_folder(folder)), folder / SINGLE
    folder.mkdir()
    states = meta_folder.cut(meta_folder.weights_of(meta_folder.config_of(folder)), 1)
    meta_folder.write(folder, states)
    return open_checkpoint(folder), folder / "consolidated.00.pth"


@pytest.mark.parametrize("kind", ["pth", "safetensors", "gguf"])
def test_a_file_that_is_cut_off_after_it_was_opened_is_named(tmp_path, kind):
    source, file = opened(kind, tmp_path / "m")
    tensors = list(source.tensors.values())
    whole, size = tensors[0][...], file.stat().st_size
    assert whole.size
    os.truncate(file, size - 1)
    said = f"{file.name} had {size:,} bytes when it was opened and has {size - 1:,} now"
    for tensor in tensors:
        with pytest.raises(ValueError, match=said):
            tensor[...]


@pytest.fixture(scope="module")
def quantized(tmp_path_factory):
    made = seeds.make(tmp_path_factory.mktemp("seeds"))
    return {name: made[name].folder for name in QUANTIZED}


QUANTIZED = (*formats.QUANTIZED, "spinquant", "qlora", "meta-fp8", "gguf-blocks")


@pytest.mark.parametrize("kind", QUANTIZED)
def test_no_quantized_matrix_is_read_from_a_file_that_is_cut_off(quantized, tmp_path, kind):
    folder = shutil.copytree(quantized[kind], tmp_path / "m")
    source = open_checkpoint(folder / "model.gguf" if kind == "gguf-blocks" else folder)
    for file in source.files:
        os.truncate(file, file.stat().st_size - 1)
    for tensor in source.tensors.values():
        with pytest.raises(ValueError, match="bytes when it was opened and has"):
            tensor[...]


def test_packed_words_are_not_read_from_a_file_that_is_cut_off(tmp_path):
    write_folder(tmp_path / "m")
    tensors = Tensors(read_safetensors(tmp_path / "m" / SINGLE))
    name = next(iter(tensors))
    assert tensors[name].size
    os.truncate(tmp_path / "m" / SINGLE, 100)
    with pytest.raises(ValueError, match="when it was opened and has 100 now"):
        tensors[name]


def test_an_array_of_no_file_is_whole():
    check_whole(np.ones(3)[1:])
