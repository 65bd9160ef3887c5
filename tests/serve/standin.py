"""An engine's interface over `llama_jax.stream`, a thread a request, until there is an engine."""

import threading
from types import SimpleNamespace

import llama_jax
from llama_jax.generation.batch import rows_of
from llama_jax.generation.prompts import tokenizer_of
from llama_jax.generation.score import prompt_logprobs
from llama_jax.model.placement import Placement
from llama_jax.serve.stream import Stream, notify


class StandIn:
    ready, heartbeat, failure = True, 0.0, None

    def __init__(self, params, **_):
        self.params, self.config, self.tokenizer = params, params.config, tokenizer_of(params)
        self.running = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self, seconds=None):
        pass

    def stats(self):
        zero = dict.fromkeys(
            ("prompt_tokens", "cached_tokens", "new_tokens", "preemptions", "nan_rows"), 0
        )
        return SimpleNamespace(running=self.running, waiting=0, pages=8, used_pages=0, **zero)

    def submit(self, prompt, settings=None, *, n=1, cache_salt="", constraint=None):
        (row, *_) = rows_of(self.config, [prompt], [settings], n, self.tokenizer, False)
        cancelled = threading.Event()
        stream = Stream(row.prompt, n, cancelled.set)

        def run():
            self.running += 1
            if settings.prompt_logprobs is not None:
                scores = prompt_logprobs(self.params, Placement.of(self.params), [row.prompt])
                kept = [entry.first(settings.prompt_logprobs) for entry in scores[0]]
                stream.prompt_logprobs = [None, *kept]
            for delta in llama_jax.stream(self.params, [prompt], settings, n=n):
                if cancelled.is_set():
                    break
                stream.put(delta)
                notify([stream])
            self.running -= 1
            stream.end()
            notify([stream])

        threading.Thread(target=run, daemon=True).start()
        return stream
