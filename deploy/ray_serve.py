"""The server as an application of Ray Serve, which places replicas and routes to them.

    MODEL=/models/llama-3.2-1b GPUS=1 serve run deploy.ray_serve:app

from a clone, on a cluster whose machines have llama_jax with the extra `serve`. The protocol is at
http://127.0.0.1:8000/v1 as `llama-jax serve` has it; keys are read from LLAMA_JAX_API_KEYS.
"""

import os
import time
from pathlib import Path
from typing import Any

from ray import serve

import llama_jax
from llama_jax.checkpoint.named import find_checkpoint
from llama_jax.checkpoint.reading import open_checkpoint
from llama_jax.cli.dialogs import can_chat
from llama_jax.generation.few_rows import for_few_rows
from llama_jax.serve import limits
from llama_jax.serve.engine import Engine
from llama_jax.serve.http import application
from llama_jax.serve.keys import read_keys
from llama_jax.serve.openai.served import Served

MODEL = os.environ.get("MODEL", "stories")
"""A checkpoint where every machine finds it, or a name."""


def replica() -> Any:
    """The ASGI application of one replica, once it can answer."""
    engine = Engine(for_few_rows(llama_jax.load(MODEL)))
    while not engine.ready and engine.failure is None:
        time.sleep(0.1)
    chats = can_chat(open_checkpoint(find_checkpoint(MODEL)), engine.tokenizer)
    served = Served(engine, Path(MODEL).name, int(time.time()), chats)
    return application(served, keys=read_keys(None), local=False)[0]


app = serve.deployment(
    serve.ingress(replica)(),
    name="llama_jax",
    num_replicas=int(os.environ.get("REPLICAS", "1")),
    ray_actor_options={"num_gpus": float(os.environ.get("GPUS", "0"))},
    max_ongoing_requests=512,  # the engine's own queue is shorter, and says 429
    graceful_shutdown_timeout_s=limits.DRAIN_SECONDS,
).bind()
