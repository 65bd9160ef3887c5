"""A slow machine may say more: lines of phases, which these tests do not count."""

import pytest

from llama_jax.train import phases


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    monkeypatch.setattr(phases, "PATIENCE", 1e6)
