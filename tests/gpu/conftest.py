"""Programs compiled for H100s that are not there, and tests for a GPU that is.

The first need the extra `h100-compile` and a process that sees no GPU; nothing of theirs runs.
"""

import importlib.util
import os
from pathlib import Path

import jax
import pytest

SEES_A_GPU = Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != "-1"
CAN_COMPILE = importlib.util.find_spec("jax_cuda12_plugin") is not None and not SEES_A_GPU

if CAN_COMPILE:  # before the first use of a backend
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Tuning would run the kernels that it compares.
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"
    jax.config.update("jax_platforms", "cpu")
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # a test changes what is compiled, by name
    jax.config.update("jax_enable_compilation_cache", False)

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84929347584 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
runtime_version { major: 12 minor: 9 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@pytest.fixture(scope="session")
def h100s():
    """Eight H100s to compile for; programs for them have our kernels, though none can be asked."""
    if SEES_A_GPU:
        pytest.skip("this process sees a GPU: set CUDA_VISIBLE_DEVICES=-1 to compile for others")
    if not CAN_COMPILE:
        pytest.skip("the extra h100-compile is not installed: see docs/notes/performance.md")
    from jax.experimental import topologies

    from llama_jax import kernels

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.gpu, "has_prompt_kernel", lambda *_: _has_cudnn())
        patch.setattr(kernels.gpu, "has_step_kernel", lambda *_, slots, **__: slots >= 64)
        patch.setattr(kernels.gpu, "has_paged_step_kernel", lambda *_, **__: True)
        described = topologies.get_topology_desc(
            platform="cuda", target_config=H100, topology="1x1x8"
        )
        yield described.devices


@pytest.fixture(scope="session")
def cudnn(h100s):
    """For what calls cuDNN: JAX asks the library's version before it writes the call."""
    if not _has_cudnn():
        pytest.skip("nvidia-cudnn-cu12 is not installed: see docs/notes/performance.md")


@pytest.fixture
def replace(monkeypatch):
    """Replaces a part of the program by its name; what was traced with it no other test sees."""

    def replace(name, value):
        monkeypatch.setattr(name, value)
        jax.clear_caches()

    yield replace
    monkeypatch.undo()
    jax.clear_caches()


def _has_cudnn() -> bool:
    try:
        return importlib.util.find_spec("nvidia.cudnn") is not None
    except ModuleNotFoundError:
        return False
