"""The implementation of each function on each platform: one table.

A function of `kernels` is lowered with all the forms of its name, and a program has the one of the
platform that it is compiled for.
"""

from __future__ import annotations

import functools
from typing import Any

import jax

from llama_jax.kernels import (
    cpu,
    gpu,
    largest,
    quantized_cpu,
    quantized_feed_forward,
    quantized_gpu,
    select,
)
from llama_jax.ops import embedding

FORMS: dict[str, dict[str, Any]] = {
    "linear": {
        "cpu": functools.partial(cpu.product, over=0),
        "default": functools.partial(gpu.product, over=0),
    },
    "linear_transposed": {
        "cpu": functools.partial(cpu.product, over=1),
        "default": functools.partial(gpu.product, over=1),
    },
    "quantized": {"cpu": quantized_cpu.product, "default": quantized_gpu.product},
    "quantized_transposed": {
        "cpu": quantized_cpu.product_transposed,
        "default": quantized_gpu.product_transposed,
    },
    "quantized_feed_forward": {
        "cpu": quantized_feed_forward.feed_forward,
        "default": quantized_gpu.feed_forward,
    },
    "embed": {"cpu": cpu.widen_late, "default": embedding.embed},
    "max_and_argmax": {"cpu": cpu.max_and_argmax, "default": largest.max_and_argmax},
    # On a CPU one bit a pass is cheapest. On a GPU a pass costs more than the 15 sums of 4 bits.
    "leads": {
        "cpu": functools.partial(select.leads, bits=1),
        "default": functools.partial(select.leads, bits=4),
    },
}
"""By a function's name and the platform's."""


def by_platform(name: str, *arguments: Any) -> Any:
    """The function of that name, in the form of the platform that it is compiled for."""
    return jax.lax.platform_dependent(*arguments, **FORMS[name])
