"""bench.soak: a server that is right, and servers that each do one thing wrong."""

import json
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from bench import soak

SEEN = Counter()


class Right(BaseHTTPRequestHandler):
    """Answers each request by what it asks for."""

    protocol_version, held = "HTTP/1.1", 0

    def log_message(self, *_):
        pass

    def do_GET(self):
        names = ("requests_running", "requests_waiting", "cache_usage_ratio")
        said = "".join(f"llama_jax_{name} {self.held}\n" for name in names)
        self.answer(said.encode(), "text/plain")

    def do_POST(self):
        content = self.rfile.read(int(self.headers["content-length"]))
        SEEN[content] += 1
        asked = json.loads(content)
        choices = [
            {"index": i, "text": self.text(asked, SEEN[content]), "finish_reason": "stop"}
            for i in range(asked["n"])
        ]
        if asked["stream"]:
            events = [json.dumps({"choices": [one]}) for one in choices]
            said = "".join(f"data: {one}\n\n" for one in [*events, "[DONE]"])
            self.answer(said.encode(), "text/event-stream")
        else:
            self.answer(json.dumps({"choices": choices}).encode(), "application/json")

    def text(self, asked, time):
        return asked["prompt"][::-1]

    def answer(self, content, kind):
        self.send_response(200)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


class Fickle(Right):
    def text(self, asked, time):
        return f"{time > 1}"


class Cutting(Right):
    def answer(self, content, kind):
        super().answer(content.replace(b"[DONE]", b"{}    "), kind)


class Hanging(Right):
    def text(self, asked, number):
        time.sleep(1 if asked["seed"] == 5 else 0)
        return ""


class Holding(Right):
    held = 1


def soaked(handler, capsys, *options):
    SEEN.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        given = ["--url", url, "--pid", str(os.getpid()), "--requests", "300", "--growth", "1000"]
        with pytest.raises(SystemExit) as ended:
            soak.main([*given, "--every", "100", *options])
    finally:
        server.shutdown()
        server.server_close()
    return ended.value.code, capsys.readouterr().out


def test_a_server_that_is_right_passes_and_memory_is_noted(capsys):
    code, said = soaked(Right, capsys, "--leaves", "0.3", "--stays", "0.01")
    assert code == 0
    assert "'left': " in said.splitlines()[-1]
    assert sum(" MB  " in line for line in said.splitlines()) == 5
    assert len(SEEN) > 80


@pytest.mark.parametrize(
    ("handler", "options", "why"),
    [
        (Fickle, (), "became"),
        (Cutting, (), "the stream ended with"),
        (Hanging, ("--timeout", "0.3"), "no whole answer within 0.3 s"),
        (Holding, (), "the server still has llama_jax_requests_running 1"),
        (Right, ("--growth", "-1000"), "that is more than -1000 MB"),
    ],
)
def test_a_server_that_is_wrong_fails_with_the_reason(capsys, monkeypatch, handler, options, why):
    monkeypatch.setattr(soak, "SETTLE_SECONDS", 0.3)
    code, said = soaked(handler, capsys, *options)
    assert code == 1
    assert why in said
