"""A model's weights as they are multiplied with a few rows at a time: a batch's, or a server's."""

from __future__ import annotations

from llama_jax.generation.placement import Placement
from llama_jax.kernels import multiplies_by_outputs
from llama_jax.weights.by_outputs import by_outputs
from llama_jax.weights.params import Params


def for_few_rows(params: Params) -> Params:
    """The same model, its matrices stored as this platform multiplies 2 to 127 rows fastest.

    On a CPU, in float32 and bfloat16, `generate(for_few_rows(load(path)), prompts)` decodes eight
    prompts up to 2.6 times as fast (docs/notes/benchmarks.md), and an `Engine` gains as much. Long
    prompts take as long as before, and so does one row in float32; in bfloat16 it takes 1.2 times
    as long. Elsewhere the params stay as they are. It deletes the weights of `params` as it turns
    them: do not use `params` afterwards. They may be shapes, for `prepare`.
    """
    place = Placement.of(params)
    if place.mesh is not None or not multiplies_by_outputs(place.platform, params.dtype):
        return params
    return by_outputs(params)
