"""Every test runs on eight fake CPU devices, with tiny configs and seeded keys.

Those for a GPU (`-m gpu`) have what is there. Most of a suite's time is XLA's, so programs are
compiled without LLVM's optimizations, and kept in pytest's own cache (`--cache-clear` empties it).
`XLA_FLAGS= pytest ...` compiles as users do: so CI runs what hangs on the last bit.
"""

import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import jax
import pytest
from helpers import SHARED
from jax.experimental.compilation_cache import compilation_cache

# Nothing in the user's folder; the commands tested inherit it.
os.environ["LLAMA_JAX_CACHE"] = "off"
os.environ["LLAMA_JAX_HISTORY"] = "off"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # `pytest &`, which the commands inherit too
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A third of the time to compile for a CPU, or two thirds. JAX reads it once; commands inherit it.
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):  # later ones end at a flag that they do not know
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

jax.config.update("jax_num_cpu_devices", 8)

from llama_jax.config import Config
from llama_jax.model.transformer import init_params

PROGRAMS = "JAX_COMPILATION_CACHE_DIR"
LONGEST = ("test_readme.py", "test_engine.py", "test_jax_settings.py", "test_untraced.py")
"""Files that take minutes, the longest first."""
MAX_BYTES = 1 << 30  # of kept programs; a whole suite has a third of it


def pytest_configure(config):
    if config.option.markexpr != "gpu":
        os.environ["JAX_PLATFORMS"] = "cpu"  # of the commands tested
        jax.config.update("jax_platforms", "cpu")
    if PROGRAMS not in os.environ and hasattr(config, "cache"):
        folder = config.cache.mkdir("programs")
        if sum(file.stat().st_size for file in folder.iterdir()) > MAX_BYTES:
            shutil.rmtree(folder)
            folder.mkdir()
        os.environ[PROGRAMS] = str(folder)  # of workers and of the commands tested
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if PROGRAMS in os.environ:
        jax.config.update("jax_compilation_cache_dir", os.environ[PROGRAMS])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_collection_modifyitems(items):
    """The longest files begin first, or a worker would be at one of them when all others ended."""
    place = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONGEST)))


def pytest_terminal_summary(terminalreporter):
    """Before all else, why tests were skipped: a line a reason. `-rs` names each test."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        terminalreporter.section(f"{len(skipped)} tests or files skipped, and why", sep="-")
        for reason, count in reasons.most_common():
            terminalreporter.line(f"{count:>4}  {reason}")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of models, tokenizers and texts beside a developer's clone."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is absent: it holds others' models, which the project does not copy")
    return SHARED


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """A process can map only so many compiled programs; a module's are of no use to the next.

    Settings that it changed would be: a worker runs many modules, and fails in one of the others.
    """
    before = dict(jax.config.values)
    yield
    jax.clear_caches()
    assert dict(jax.config.values) == before, "a test left settings of JAX changed"


@pytest.fixture(scope="session")
def config() -> Config:
    return Config.named("tiny")


@pytest.fixture(scope="session")
def params(config):
    return init_params(jax.random.key(0), config)


@pytest.fixture
def no_kept_programs(monkeypatch):
    """Whatever is compiled in this test is compiled anew, by its commands too."""
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.fixture
def compiled(no_kept_programs):
    """How long XLA took for each program that it compiles from here on, but for trifles: copies."""
    from jax._src import monitoring

    seconds = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration" and duration > 0.2:
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seconds
    monitoring.unregister_event_duration_listener(listen)
