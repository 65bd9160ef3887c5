"""A model's weights as they are multiplied with a few rows at a time: a batch's, or a server's."""

from __future__ import annotations

from llama_jax.generation.placement import Placement
from llama_jax.kernels import multiplies_by_outputs
from llama_jax.weights.by_outputs import by_outputs
from llama_jax.weights.params import Params


def for_few_rows(params: Params) -> Params:
    """The same model, its matrices stored as this platform multiplies 2 to 127 rows fastest.

    On a CPU, in float32, `generate(for_few_rows(load(path)), prompts)` decodes eight prompts 1.25
    to 2.6 times as fast (docs/notes/benchmarks.md), and an `Engine` gains as much. One row and long
    prompts take as long as before. Elsewhere the params stay as they are. It takes `params` over:
    do not use them afterwards. They may be shapes, for `prepare`.
    """
    place = Placement.of(params)
    if place.mesh is not None or not multiplies_by_outputs(place.platform, params.dtype):
        return params
    return by_outputs(params)
