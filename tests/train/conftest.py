"""A slow machine may say more: lines of phases, which these tests do not count."""

import pytest

from llama_jax.train import phases


@pytest.fixture(scope="session", autouse=True)
def patient():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "PATIENCE", 1e6)
        yield
