"""Our dataclasses as pytrees: their structures tell one class from another."""

import dataclasses
import importlib
import itertools
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import llama_jax
from llama_jax.model.cache import Packed, Uncached
from llama_jax.pytrees import register_dataclass


@register_dataclass
@dataclasses.dataclass(frozen=True)
class One:
    x: object
    name: str = dataclasses.field(default="", metadata={"static": True})
    y: object = None


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Other:
    x: object
    name: str = dataclasses.field(default="", metadata={"static": True})
    y: object = None


def test_a_value_is_its_leaves_by_name_and_its_static_fields():
    value = One(jnp.ones(2), "a", jnp.zeros(3))
    leaves, structure = jax.tree_util.tree_flatten_with_path(value)
    assert [jax.tree_util.keystr(path) for path, _ in leaves] == [".x", ".y"]
    again = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
    assert (again.x is value.x, again.name, again.y is value.y) == (True, "a", True)
    assert jax.tree.structure(value) == structure == jax.tree.structure(again)
    assert jax.tree.structure(One(1, "b", 2)) != structure
    assert jax.tree.structure(One(1, "a")) != structure, "None is no leaf"


def test_jit_knows_one_class_from_another():
    assert jax.tree.structure(One(1)) != jax.tree.structure(Other(1))
    which = jax.jit(lambda value: value.x + (1 if isinstance(value, One) else 2))
    assert [float(which(kind(jnp.float32(0)))) for kind in (One, Other, One)] == [1, 2, 1]


def kinds():
    """Every dataclass of the package that is a pytree."""
    for module in pkgutil.walk_packages(llama_jax.__path__, "llama_jax."):
        if not module.name.startswith(("llama_jax.cli", "llama_jax.serve.openai")):
            try:
                found = vars(importlib.import_module(module.name))
            except ImportError:  # an extra that is absent
                continue
            own = [
                kind for kind in found.values() if getattr(kind, "__module__", "") == module.name
            ]
            for kind in own:
                is_kind = isinstance(kind, type) and dataclasses.is_dataclass(kind)
                if is_kind and not jax.tree_util.all_leaves([blank(kind)]):
                    yield kind


def blank(kind):
    value = object.__new__(kind)
    for field in dataclasses.fields(kind):
        object.__setattr__(value, field.name, None)
    return value


def test_no_two_of_our_classes_have_equal_structures():
    found = {kind: jax.tree.structure(blank(kind)) for kind in kinds()}
    assert {Packed, Uncached} < set(found)
    assert len(found) > 20
    for (one, a), (other, b) in itertools.combinations(found.items(), 2):
        assert a != b, f"{one} and {other}"


@pytest.mark.parametrize("order", [(Packed, Uncached), (Uncached, Packed)])
def test_values_without_leaves_are_told_apart(order):
    seen = []
    trace = jax.jit(lambda past: seen.append(type(past)))
    for kind in order:
        trace(kind())
    assert seen == list(order)
