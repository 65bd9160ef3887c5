"""constraints.txt, the known-good set: it names each dependency, at a version that is asked for."""

import importlib.util

from helpers import ROOT
from packaging.requirements import Requirement


def tool():
    spec = importlib.util.spec_from_file_location("constraints", ROOT / "scripts/constraints.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_dependency_has_one_version_that_pyproject_allows():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if not line.startswith("#")]
    known = {one.name: one.specifier for one in pinned}
    assert len(known) == len(pinned)
    assert [str(one) for one in pinned if not str(one.specifier).startswith("==")] == []
    for asked in tool().named():
        (only,) = known[tool().canonical(asked.name)]
        assert asked.specifier.contains(only.version), f"{asked} and {only}"


def test_every_dependency_of_the_package_has_a_floor():
    """.ci/run installs each at its floor."""
    for asked in tool().named():
        assert ">=" in [one.operator for one in asked.specifier], str(asked)
