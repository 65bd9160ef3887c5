"""`llama-jax serve`: what it refuses before it loads anything, and its life from start to end."""

import gc
import http.client
import importlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys

import pytest
from helpers import ROOT, run

from llama_jax.checkpoint.named import PRETRAINED
from llama_jax.cli.serve import name_of
from llama_jax.model.int8_cache import Int8KVCache


def test_where_the_extra_is_absent_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = run("serve")
    assert result.exit_code == 1
    assert "pip install 'llama_jax[serve]'" in result.stderr


def test_an_address_that_is_taken_is_refused_before_weights_are_read():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "nowhere", "--port", port)
    assert result.exit_code == 1
    assert f"nothing can listen at 127.0.0.1, port {port}" in result.stderr
    assert "pass another --port" in result.stderr


def test_keys_must_be_there(tmp_path):
    (tmp_path / "keys").write_text("# none\n")
    assert "has no keys" in run("serve", "--api-key-file", tmp_path / "keys").stderr
    assert "No such file" in run("serve", "--api-key-file", tmp_path / "nokeys").stderr


def test_what_is_asked_of_the_engine_reaches_it(monkeypatch):
    def engine(params, **asked):
        found.update(asked)
        raise ValueError("no more is wanted")

    found = {}
    monkeypatch.setattr("llama_jax.serve.engine.Engine", engine)
    more = ("--kv-cache", "int8", "--cache-gib", "0.5", "--exact", "--no-prefix-cache")
    assert "no more is wanted" in run("serve", "--port", "0", "--rows", "3", *more).stderr
    del found["tokenizer"]
    sizes = {"rows": 3, "cache_bytes": 2**29, "cache": Int8KVCache, "max_queued": 256}
    assert found == {**sizes, "exact": True, "share_prefixes": False}


def test_the_collector_is_spared_what_a_start_made():
    serve, before = importlib.import_module("llama_jax.cli.serve"), gc.get_threshold()
    try:
        serve.keep_what_is_there()
        assert len(gc.get_objects()) < gc.get_freeze_count() / 10
        assert gc.get_threshold()[0] == serve.YOUNG_OBJECTS
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


@pytest.mark.parametrize(
    ("named", "called"),
    [
        (None, "stories"),
        ("llama-3.2-1b", "llama-3.2-1b"),
        ("tiny.q8.gguf", "tiny.q8"),
        ("smollm2", "smollm2"),
        ("hf:org/a.b", "org/a.b"),
    ],
)
def test_a_model_is_called_as_it_was_named(named, called, tmp_path):
    (tmp_path / "llama-3.2-1b").mkdir()
    (tmp_path / "tiny.q8.gguf").touch()
    place = tmp_path / (named or "x")
    serve = importlib.import_module("llama_jax.cli.serve")
    assert serve.name_of(str(place) if place.exists() else named, place) == called


def test_a_model_is_called_by_its_name_or_its_files(tmp_path):
    folder, file = tmp_path / "llama-3.2-1b", tmp_path / "q.gguf"
    folder.mkdir()
    file.write_bytes(b"")
    assert name_of(None, PRETRAINED) == name_of("stories", PRETRAINED) == "stories"
    assert name_of("hf:org/name", folder) == "org/name"
    assert name_of(f"{folder}/", folder) == "llama-3.2-1b"
    assert name_of(str(file), file) == "q"


@pytest.mark.slow
def test_it_says_where_it_answers_and_on_sigterm_answers_what_it_accepted():
    command = [sys.executable, "-m", "llama_jax", "serve", "--port", "0", "--rows", "1"]
    server = subprocess.Popen(
        [*command, "--cache-gib", "0.01"],
        cwd=ROOT,
        env={**os.environ, "LLAMA_JAX_API_KEYS": "mine"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        said = server.stdout.readline()
        assert said.startswith("stories answers at http://127.0.0.1:")
        place = said.split("//")[1].strip()
        page = http.client.HTTPConnection(place, timeout=60)
        page.request("GET", "/")
        answer = page.getresponse()
        assert "<html" in answer.read().decode()
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        page.close()
        asking = http.client.HTTPConnection(place, timeout=60)
        body = {"prompt": "Once", "max_tokens": 400, "ignore_eos": True, "stream": True}
        headers = {"content-type": "application/json", "authorization": "Bearer mine"}
        asking.request("POST", "/v1/completions", json.dumps(body), headers)
        answer = asking.getresponse()
        answer.read(1)
        server.send_signal(signal.SIGTERM)
        events = [line for line in answer.read().decode().split("\n\n") if line]
        assert events[-1] == "data: [DONE]"
        assert json.loads(events[-2][len("data: ") :])["choices"][0]["finish_reason"] == "length"
        asking.close()
        _, told = server.communicate(timeout=60)
    finally:
        server.kill()
        server.wait()
    assert server.returncode == 0
    assert "POST /v1/completions 200" in told
    assert "mine" not in told
    assert "Traceback" not in told
