"""Memory that can be taken: the machine's, or less in a container."""

import pytest

from llama_jax import free_memory as module
from llama_jax.free_memory import NO_LIMIT, free_memory


@pytest.fixture
def system(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MACHINE", tmp_path / "meminfo")
    monkeypatch.setattr(module, "CONTAINER", tmp_path)
    return tmp_path


def test_a_system_that_says_nothing_has_no_limit(system):
    assert free_memory() == NO_LIMIT
    (system / "meminfo").write_text("MemTotal: 5 kB\n")
    (system / "memory.max").write_text("max\n")
    (system / "memory.current").write_text("7\n")
    assert free_memory() == NO_LIMIT


def test_the_smaller_of_machine_and_container_counts(system):
    (system / "meminfo").write_text("MemTotal:  900 kB\nMemAvailable:  100 kB\nCached: 5 kB\n")
    assert free_memory() == 102_400
    (system / "memory.max").write_text("50000\n")
    (system / "memory.current").write_text("20000\n")
    assert free_memory() == 30_000
    (system / "memory.current").write_text("60000\n")
    assert free_memory() == 0
