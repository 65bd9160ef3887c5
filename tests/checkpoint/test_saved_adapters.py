"""A model whose adapters alone have changed is saved again without its other weights."""

import dataclasses
import os

import jax
import numpy as np
import pytest

import llama_jax
from llama_jax.checkpoint.native import weight_files
from llama_jax.checkpoint.saving import save_adapters
from llama_jax.model.transformer import init_params
from llama_jax.sharding.adapters import adapters_of, random_adapters, with_adapters
from llama_jax.weights.table import weight_table

PATHS = [("layers_0", "attention", "wq"), ("layers_1", "feed_forward", "w2")]


@pytest.fixture(scope="module", params=["array", "int8"])
def first(request, config):
    params = init_params(jax.random.key(0), config)
    params = llama_jax.quantize(params, "int8") if request.param == "int8" else params
    return with_adapters(params, random_adapters(jax.random.key(1), params, PATHS, 4, 2.0))


@pytest.fixture
def later(first):
    """The same model after some steps: other adapters."""
    return with_adapters(
        first,
        {
            path: dataclasses.replace(one, a=one.a + 1, b=one.b + 2)
            for path, one in adapters_of(first).items()
        },
    )


@pytest.fixture
def written(monkeypatch):
    """The names of the weights whose numbers were written."""
    names, fill = [], weight_files.fill

    def noted(directory, path, *rest):
        names.append(weight_files.name(path))
        return fill(directory, path, *rest)

    monkeypatch.setattr(weight_files, "fill", noted)
    return names


CHANGED = sorted(f"{'.'.join(path)}.{part}" for path in PATHS for part in "ab")


def test_only_the_adapters_are_written_again(first, later, written, tmp_path):
    llama_jax.save(first, tmp_path / "m")
    assert len(written) >= len(weight_table(first.config)) + len(CHANGED)
    before = files(tmp_path / "m")
    written.clear()
    save_adapters(later, tmp_path / "m")
    assert sorted(written) == CHANGED
    after = files(tmp_path / "m")
    assert after.keys() == before.keys()
    same = {name for name in after if "/c/" in name and after[name] == before[name]}
    assert same == {n for n in after if "/c/" in n and n.split("/")[1] not in CHANGED}


def test_the_result_is_a_checkpoint_like_any_other(first, later, tmp_path):
    llama_jax.save(later, tmp_path / "whole")
    llama_jax.save(first, tmp_path / "m")
    save_adapters(later, tmp_path / "m")
    equal(llama_jax.load(tmp_path / "m"), llama_jax.load(tmp_path / "whole"))
    assert contents(tmp_path / "m") == contents(tmp_path / "whole")
    assert {os.stat(file).st_nlink for file in (tmp_path / "m").rglob("c/*/*")} == {1}


def test_a_write_that_fails_leaves_the_model_before(first, later, written, monkeypatch, tmp_path):
    llama_jax.save(first, tmp_path / "m")
    before = contents(tmp_path / "m")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weight_files, "fill", full)
    with pytest.raises(OSError, match="No space left"):
        save_adapters(later, tmp_path / "m")
    assert contents(tmp_path / "m") == before
    equal(llama_jax.load(tmp_path / "m"), first)


def test_a_file_system_without_links_has_all_written(first, later, written, monkeypatch, tmp_path):
    def refused(*_, **__):
        raise OSError(95, "Operation not supported")

    llama_jax.save(first, tmp_path / "m")
    monkeypatch.setattr(os, "link", refused)
    written.clear()
    save_adapters(later, tmp_path / "m")
    assert len(written) > len(CHANGED)
    equal(llama_jax.load(tmp_path / "m"), later)


def test_a_weight_of_another_shape_is_not_linked(first, later, tmp_path):
    """What lies there need not be what was written: the descriptions are compared."""
    other = init_params(jax.random.key(0), first.config.replace(hidden_dim=64))
    llama_jax.save(other, tmp_path / "m")
    save_adapters(later, tmp_path / "m")
    equal(llama_jax.load(tmp_path / "m"), later)


def files(folder):
    return {str(f.relative_to(folder)): f.stat().st_ino for f in folder.rglob("*") if f.is_file()}


def contents(folder):
    found = {name: (folder / name).read_bytes() for name in files(folder)}
    return {name: text for name, text in found.items() if "/c/" in name}


def equal(found, wanted):
    for one, other in zip(
        jax.tree.leaves(found.weights), jax.tree.leaves(wanted.weights), strict=True
    ):
        np.testing.assert_array_equal(one, other)
