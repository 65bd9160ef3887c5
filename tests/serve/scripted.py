"""An engine that does what a test says, without a model."""

import json
import queue
import threading
from types import SimpleNamespace

from helpers import Letters, config_of

from llama_jax.generation.results import Delta
from llama_jax.serve.stream import Stream, notify


def delta(text="", reason=None, row=0):
    return Delta(row, text, list(text.encode()), None, reason)


class Talking(Letters):
    """Writes a dialog and its tools as their JSON."""

    def encode_dialog(self, messages, *, tools=None):
        return self.encode(json.dumps([messages, tools]), bos=True, eos=False)


class Scripted:
    """Streams get what `say` gives them; those that are cancelled end."""

    def __init__(self):
        self.config, self.tokenizer = config_of(vocab_size=256, max_seq_len=1 << 20), Talking()
        self.ready, self.heartbeat, self.failure = True, 0.0, None
        self.errors, self.asked, self.streams = [], [], queue.Queue()
        self.cancelled, self.submitted = threading.Event(), threading.Event()
        self.open = threading.Event()
        self.open.set()

    def submit(self, prompt, settings, *, n, cache_salt, constraint):
        self.asked.append((prompt, settings, n, cache_salt, constraint))
        self.submitted.set()
        self.open.wait()
        if self.errors:
            raise self.errors.pop(0)
        ids = prompt if isinstance(prompt[0], int) else self.tokenizer.encode_dialog(prompt)
        stream = Stream(list(ids), n, self._cancel)
        self.streams.put(stream)
        return stream

    def _cancel(self, stream):
        if stream.going:
            stream.end()
            self.cancelled.set()

    def wait_for_stream(self):
        """The stream of the next request, once it has come."""
        return self.streams.get(timeout=20)

    def say(self, stream, *deltas, error=None):
        for one in deltas:
            stream.put(one)
        if error is not None:
            stream.end(error)
        notify([stream])

    def stats(self):
        names = (
            "running", "waiting", "used_pages", "prompt_tokens", "cached_tokens", "new_tokens",
            "preemptions", "nan_rows",
        )  # fmt: skip
        return SimpleNamespace(pages=8, **dict.fromkeys(names, 0))
