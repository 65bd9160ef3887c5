"""Every test runs on eight fake CPU devices, with tiny configs and seeded keys.

Those for a GPU (`-m gpu`) have what is there.
"""

import os
from pathlib import Path

import jax
import pytest
from helpers import SHARED

# Nothing in the user's folder; the commands tested inherit it.
os.environ["LLAMA_JAX_CACHE"] = "off"
os.environ["LLAMA_JAX_HISTORY"] = "off"

jax.config.update("jax_num_cpu_devices", 8)

from llama_jax.config import Config
from llama_jax.model.transformer import init_params


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # of the commands tested
        jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models, tokenizers and texts beside a developer's clone."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds others' models, which the project does not copy")
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A process can map only so many compiled programs; a module's are of no use to the next."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def config() -> Config:
    return Config.named("tiny")


@pytest.fixture(scope="session")
def params(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture
def compiled():
    """How long XLA took for each program that it compiles from here on, but for trifles: copies."""
    from jax._src import monitoring

    seconds = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration" and duration > 0.2:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    monitoring.unregister_event_duration_listener(listen)
