"""JAX's settings of a process decide nothing of ours: the same numbers, whatever they are.

Each has a process of its own, in which the environment sets it. Most are slow: CI runs them.
"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import GOLDEN, ROOT

ROUNDED = ("eager", "jitted", "gradient", "step", "trained")
CODE = """
import json, sys, tempfile
import jax, jax.numpy as jnp, numpy as np
import llama_jax
from llama_jax import generate, score, perplexity, forward, stream
from llama_jax.checkpoint import convert
from llama_jax.train.recipe import Recipe, Step
from llama_jax.train.rows import Batch
from llama_jax.train.state import new_state
from llama_jax.train.step import jitted_step

folder = sys.argv[1]
params = llama_jax.load(folder, dtype="float32")
ids = [39, 145, 38, 101, 176, 203]
tokens, positions = jnp.array([ids]), jnp.arange(6)[None]
text = jnp.array([ids * 200])
drawn = {"temperature": 1.0, "seed": [1, 2], "top_k": 50, "top_p": 0.9, "min_p": 0.01}
found = {}
for name, run in {"eager": forward, "jitted": jax.jit(forward)}.items():
    logits, _ = run(params, tokens, positions)
    assert logits.dtype == jnp.float32
    found[name] = np.asarray(logits).tolist()
if not jax.config.jax_disable_jit:  # a minute without programs
    logits, _ = jax.jit(forward)(params, text, jnp.arange(text.shape[1])[None])
    found["long"] = np.asarray(logits[0, -1]).tolist()
loss = lambda p: forward(p, tokens, positions)[0].sum()
found["gradient"] = np.asarray(jax.grad(loss)(params).weights["norm"]["scale"]).tolist()
step = Step(batch=2, context=6, dtype="float32", documents="separate", micro_batches=2)
recipe = Recipe(steps=3000, step=step)
row = (tokens[0], tokens[0, ::-1], positions[0] % 4, jnp.ones(6, jnp.float32))
batch = Batch(*(jnp.stack([x, x]) for x in row))
# A state of its own: the step takes its buffers.
state = new_state(recipe, jax.tree.map(jnp.copy, params))
state, metrics = jitted_step(recipe)(state, batch)
found["step"] = [float(metrics.loss), float(metrics.gradient_norm)]
found["trained"] = np.asarray(state.params.weights["norm"]["scale"]).tolist()
assert jax.tree.map(jnp.dtype, state.params) == jax.tree.map(jnp.dtype, params)
drawn |= {"max_new_tokens": 9, "repetition_penalty": 1.1}
done = generate(params, [ids, ids[:3]], logprobs=2, **drawn)
found["drawn"] = [[d.tokens, [e.logprob for e in d.logprobs]] for d in done]
found["alone"] = [
    generate(params, [p], **drawn | {"seed": s})[0].tokens
    for p, s in ((ids, 1), (ids[:3], 2))
]
assert found["alone"] == [tokens for tokens, _ in found["drawn"]]
found["greedy"] = generate(params, [ids], temperature=0, max_new_tokens=270, stop_ids=[])[0].tokens
found["stream"] = [d.tokens for d in stream(params, [ids], max_new_tokens=5)]
found["score"] = score(params, [ids])[0].logprobs
found["perplexity"] = [p.nll for p in perplexity(params, ids * 9, context=32)]
half = llama_jax.load(folder, dtype="bfloat16")
found["bfloat16"] = generate(half, [ids], max_new_tokens=9)[0].tokens
with tempfile.TemporaryDirectory() as to:
    convert(folder, to + "/model", dtype="float32")
    again = llama_jax.load(to + "/model", dtype="float32")
same = jax.tree.map(lambda a, b: np.array_equal(a, b) and a.dtype == b.dtype, params, again)
found["convert"] = jax.tree.all(same)
mesh = llama_jax.make_mesh(tensor=2)
cut = llama_jax.shard_params(params, mesh)
found["mesh"] = generate(cut, [ids], max_new_tokens=5)[0].tokens
print(json.dumps(found))
"""


def found_under(**environment):
    """What the library computes in a process with these variables."""
    given = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(GOLDEN / "hf" / "llama2")],
        capture_output=True,
        text=True,
        env={**os.environ, **given, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def usual():
    return found_under()


@pytest.mark.parametrize(
    "setting",
    [
        {"JAX_DEFAULT_PRNG_IMPL": "rbg"},
        {"JAX_ENABLE_X64": "1"},
        *(
            pytest.param(setting, marks=pytest.mark.slow)
            for setting in (
                {"JAX_DEFAULT_PRNG_IMPL": "unsafe_rbg", "JAX_THREEFRY_PARTITIONABLE": "0"},
                {"JAX_RANDOM_SEED_OFFSET": "7"},
                {"JAX_DISABLE_JIT": "1"},
                {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_NUMPY_DTYPE_PROMOTION": "strict"},
                {"JAX_DEFAULT_MATMUL_PRECISION": "bfloat16", "JAX_DEBUG_NANS": "1"},
            )
        ),
    ],
    ids=lambda setting: " ".join(name.removeprefix("JAX_").lower() for name in setting),
)
def test_a_setting_changes_nothing(usual, setting):
    found = found_under(**setting)
    assert set(found) | {"long"} == set(usual)
    for name, value in found.items():
        if setting == {"JAX_DISABLE_JIT": "1"} and name in ROUNDED:
            # Operation by operation, sums are rounded otherwise.
            np.testing.assert_allclose(value, usual[name], atol=1e-4)
        else:
            assert value == usual[name], name
