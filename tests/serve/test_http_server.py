"""The server around the protocol: keys, health, leaving, dawdling and hostile clients, its end."""

import asyncio
import http.client
import json
import signal
import socket
import threading
import time
from urllib.parse import urlsplit

import openai
import pytest
from scripted import Scripted, delta
from serving import NAME, served

from llama_jax.generation.settings import ON_DEVICE
from llama_jax.serve import limits
from llama_jax.serve.http import App
from llama_jax.serve.openai.served import Served
from llama_jax.serve.stream import (
    EngineClosedError,
    QueueFullError,
    RequestFailedError,
    UnfollowableError,
)

ASKED = {"model": NAME, "prompt": "ab", "max_tokens": 4}


OPENED = []


def close_all():
    while OPENED:
        OPENED.pop().close()


@pytest.fixture(autouse=True)
def _closed():
    yield
    close_all()


@pytest.fixture
def engine():
    return Scripted()


@pytest.fixture
def serving(engine):
    with served(engine) as (url, app):
        yield url, app
        close_all()  # or the server would wait for them


@pytest.fixture
def url(serving):
    return serving[0]


def client_of(url, **options):
    return openai.OpenAI(base_url=f"{url}/v1", **{"api_key": "none", "max_retries": 0} | options)


def ask(url, method="GET", path="/health", body=None, **headers):
    """The status, the headers and the JSON of an answer."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=20)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, dict):
        body, headers = json.dumps(body), {"content-type": "application/json"} | headers
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    kind = answer.headers.get("content-type", "")
    return answer.status, answer.headers, json.loads(content) if "json" in kind else content


def connect(url):
    place = urlsplit(url)
    opened = socket.create_connection((place.hostname, place.port), timeout=20)
    OPENED.append(opened)
    return opened


def post(url, **body):
    """A socket that has sent a request for completions."""
    content = json.dumps(ASKED | body).encode()
    opened = connect(url)
    opened.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(content), content)
    )
    return opened


def read_all(opened):
    """What is received until the other side closes, and whether it did so in order."""
    found = b""
    try:
        while part := opened.recv(1 << 16):
            found += part
    except ConnectionResetError:
        return found, False
    return found, True


@pytest.mark.parametrize("phase", ["submitting", "waiting", "unstreamed", "streamed"])
def test_a_client_that_leaves_ends_its_request(engine, serving, phase):
    url, app = serving
    if phase == "submitting":
        engine.open.clear()
    opened = post(url, stream=phase == "streamed")
    if phase == "submitting":
        assert engine.submitted.wait(20)
        opened.close()
        while not app.metrics.gone.values:
            time.sleep(0.001)
        engine.open.set()
    else:
        stream = engine.wait_for_stream()
        if phase != "waiting":
            engine.say(stream, delta("x"))
        if phase == "streamed":
            while b'"x"' not in opened.recv(1 << 16):
                pass
        opened.close()
    assert engine.cancelled.wait(5)
    while not app.metrics.gone.values:
        time.sleep(0.001)
    assert app.metrics.gone.values == {("/v1/completions",): 1}


def test_a_request_that_ends_well_cancels_nothing(engine, url):
    opened = post(url)
    engine.say(engine.wait_for_stream(), delta("x"), delta("y", "stop"))
    while b'"text":"xy"' not in opened.recv(1 << 16):
        pass
    opened.close()
    assert not engine.cancelled.is_set()


def test_a_full_queue_is_asked_again_when_it_says(engine, url):
    engine.errors = [QueueFullError("full", 0.01)]
    status, headers, said = ask(url, "POST", "/v1/completions", ASKED)
    assert (status, headers["retry-after"], headers["x-should-retry"]) == (429, "1", "true")
    assert said["error"]["code"] == "queue_full"
    engine.errors = [QueueFullError("full", 0.01)]
    threading.Thread(
        target=lambda: engine.say(engine.wait_for_stream(), delta("x", "stop"))
    ).start()
    got = client_of(url, max_retries=1).completions.create(**ASKED)
    assert got.choices[0].text == "x"


@pytest.mark.parametrize(
    ("error", "status", "tries"),
    [
        (RequestFailedError("x"), 500, 1),
        (KeyError("secret"), 500, 1),
        (EngineClosedError(), 503, 2),
    ],
)
def test_a_poisonous_request_is_not_sent_thrice(engine, url, error, status, tries):
    engine.errors = [error] * 3
    with pytest.raises(openai.InternalServerError) as raised:
        client_of(url, max_retries=1).completions.create(**ASKED)
    assert raised.value.status_code == status
    assert len(engine.asked) == tries
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("stream", [False, True])
def test_logits_that_are_no_numbers_are_an_error(engine, url, stream):
    def play():
        engine.say(engine.wait_for_stream(), delta("x"), delta("", "error"))

    threading.Thread(target=play).start()
    with pytest.raises(openai.APIError, match="NaN or infinite"):
        list(client_of(url).completions.create(**ASKED, stream=stream))


def test_an_error_in_the_middle_of_a_stream_is_its_last_event(engine, url):
    opened = post(url, stream=True)
    stream = engine.wait_for_stream()
    engine.say(stream, delta("x"), error=RequestFailedError("x"))
    found = b""
    while b"0\r\n\r\n" not in found:
        found += opened.recv(1 << 16)
    assert b"request_failed" in found
    assert b"[DONE]" not in found


@pytest.mark.parametrize("stream", [False, True])
def test_a_grammar_that_cannot_be_followed_is_the_clients_and_says_why(engine, url, stream):
    def play():
        engine.say(engine.wait_for_stream(), error=UnfollowableError("make it simpler"))

    threading.Thread(target=play).start()
    with pytest.raises(openai.APIError, match="make it simpler") as raised:
        list(client_of(url, max_retries=1).completions.create(**ASKED, stream=stream))
    assert raised.value.code == "unfollowable"
    assert isinstance(raised.value, openai.BadRequestError) is not stream
    assert len(engine.asked) == 1


def test_a_silent_stream_sends_comments(engine, url, monkeypatch):
    monkeypatch.setattr(limits, "PING_SECONDS", 0.02)
    opened, found = post(url, stream=True), b""
    while found.count(b": ping\n\n") < 3:
        found += opened.recv(1 << 16)
    engine.say(engine.wait_for_stream(), delta("x", "stop"))
    while b"[DONE]" not in found:
        found += opened.recv(1 << 16)
    assert b'"finish_reason":"stop"' in found


def test_a_client_that_does_not_read_is_cut(engine, serving, monkeypatch):
    url, app = serving
    monkeypatch.setattr(limits, "WRITE_SECONDS", 0.2)
    opened = post(url, stream=True)
    stream = engine.wait_for_stream()
    engine.say(stream, *[delta("x" * 10**6)] * 20)
    assert engine.cancelled.wait(10)
    found, orderly = read_all(opened)
    assert len(found) < 20 * 10**6
    assert not orderly  # the kernel keeps nothing for it
    assert app.metrics.cut.values == {("answer_unread",): 1}


def test_connections_that_never_ask_are_closed(engine, serving, monkeypatch):
    url, app = serving
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    idle = [connect(url) for _ in range(200)]
    slow = connect(url)
    slow.sendall(b"GET /health HTTP/1.1\r\nHost: local")
    assert ask(url)[0] == 200
    for opened in (*idle, slow):
        read_all(opened)
    kept = connect(url)  # a second head that stops in the middle
    kept.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert kept.recv(1 << 16).startswith(b"HTTP/1.1 200")
    kept.sendall(b"GET /hea")
    before = time.monotonic()
    read_all(kept)
    assert time.monotonic() - before < limits.KEEP_ALIVE_SECONDS
    assert app.metrics.cut.values == {("head_too_slow",): 202}


def test_a_body_that_dawdles_is_refused(engine, url, monkeypatch):
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.1)
    opened = connect(url)
    opened.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    assert read_all(opened)[0].startswith(b"HTTP/1.1 408")


def test_a_body_is_counted_as_it_arrives(engine, serving):
    url, app = serving
    parts = (b" " * (1 << 20) for _ in range(9))  # sent in chunks, without a Content-Length
    status, _, said = ask(url, "POST", "/v1/completions", parts, content_type="application/json")
    assert (status, said["error"]["code"]) == (413, "body_too_large")
    assert app.metrics.refused.values == {("body_too_large",): 1}


def test_a_body_in_crumbs_is_refused(engine, serving, monkeypatch):
    url, app = serving
    monkeypatch.setattr(limits, "MAX_PIECES", 40)
    content = json.dumps(ASKED).encode().ljust(80)
    for size, answer in ((2, b"HTTP/1.1 200"), (1, b"HTTP/1.1 400")):
        opened = connect(url)
        opened.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
            b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        crumbs = [content[i : i + size] for i in range(0, len(content), size)]
        opened.sendall(b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in (*crumbs, b"")))
        if size == 2:
            engine.say(engine.wait_for_stream(), delta("x", "stop"))
        assert read_all(opened)[0].startswith(answer)
    assert app.metrics.cut.values == {("no_http",): 1}


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (b"X: " + b"a" * 60_000, 200),
        (b"X: " + b"a" * 70_000, 400),
        (b"X: a\r\n b", 400),
        (b"X: a\r\n\tEvil: b", 400),
        (b"X: a\nEvil: b", 400),
    ],
    ids=["60 KB", "70 KB", "folded", "folded by a tab", "a line feed"],
)
def test_a_head_is_short_and_each_header_a_line(serving, header, status):
    url, app = serving
    for more in (b"", b"POST"):  # a piece of the next request is none of this one's
        opened = connect(url)
        opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n" + more)
        if status == 200:
            opened.shutdown(socket.SHUT_WR)
        assert read_all(opened)[0].startswith(b"HTTP/1.1 %d" % status)
    assert sum(app.metrics.cut.values.values()) == (2 if status == 400 else 0)


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"[" * 100_000, 400, "too deeply"),
        (b'{"prompt": NaN}', 400, "no JSON"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, "no JSON"),
        (b'{"prompt": "\xff"}', 400, "no JSON"),
        (b'{"prompt": "\\ud800"}', 400, "no JSON"),
        (b"[]", 400, "send a JSON object"),
        (b"{}", 400, "no prompt"),
        (b"", 400, "no JSON"),
        (
            b'{"prompt": "a", "logit_bias": {"1": 1, "7": 101}}',
            400,
            "logit_bias['7']=101 is refused",
        ),
        (b'{"prompt": "a", "logit_bias": {"1": "x"}}', 400, "logit_bias['1']='x' is refused"),
        (b'{"prompt": "a", "seed": ' + b"9" * 40 + b"}", 400, "seed"),
        (b'{"prompt": "a", "max_tokens": true}', 400, "got bool"),
        (b'{"prompt": "a", "min_p": 1.5}', 400, "min_p=1.5 is refused: expected float <= 1.0"),
        (b'{"prompt": "a", "temperature": 2.5}', 400, "expected float <= 2.0"),
        (b'{"prompt": "a", "model": "' + b"m" * 999 + b'"}', 400, "length <= 256"),
    ],
)
def test_a_body_that_is_no_request_is_refused(url, body, status, said):
    got = ask(url, "POST", "/v1/completions", body, content_type="application/json")
    assert got[0] == status
    assert said in got[2]["error"]["message"]
    assert len(got[2]["error"]["message"]) < 400


def test_every_number_of_the_settings_reaches_the_engine(engine, url):
    numbers = dict.fromkeys(ON_DEVICE, 0.25) | {"top_k": 3, "seed": 7}
    threading.Thread(
        target=lambda: engine.say(engine.wait_for_stream(), delta("x", "stop"))
    ).start()
    assert ask(url, "POST", "/v1/completions", {"prompt": "a", **numbers})[0] == 200
    ((_, settings, *_),) = engine.asked
    assert {name: getattr(settings, name) for name in numbers} == numbers


def test_a_model_that_only_continues_texts_answers_no_messages(engine):
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    with served(engine, chats=False) as (url, app):
        for path in ("/v1/chat/completions", "/tokenize"):
            status, headers, said = ask(url, "POST", path, asked)
            assert (status, headers["x-should-retry"]) == (400, "false")
            assert said["error"]["code"] == "no_chat_model"
            assert "/v1/completions" in said["error"]["message"]
        assert ask(url, path="/v1/models")[2]["data"][0]["chat"] is False
        assert app.metrics.refused.values == {("no_chat_model",): 2}
    assert engine.asked == []


def test_a_form_of_another_site_is_no_request(url):
    status, _, said = ask(url, "POST", "/v1/completions", b"{}", content_type="text/plain")
    assert status == 415
    assert "application/json" in said["error"]["message"]


def test_headers_do_not_reach_the_log_as_they_are(serving, caplog):
    url, app = serving
    with caplog.at_level("INFO", "llama_jax.serve"):
        assert ask(url, x_request_id="mine-1")[1]["x-request-id"] == "mine-1"
        assert ask(url, x_request_id="a b\t\x1b[31m")[1]["x-request-id"] != "a b\t\x1b[31m"
        assert ask(url, "GET", "/%0aforged%0d")[0] == 404
    opened = connect(url)
    opened.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: a\x00\nb\r\n\r\n")
    assert read_all(opened)[0].startswith(b"HTTP/1.1 400")
    assert app.metrics.cut.values == {("no_http",): 1}
    assert "id=mine-1" in caplog.text
    assert "forged" not in caplog.text
    assert "\x1b" not in caplog.text


def test_a_local_server_answers_to_local_names_alone(url):
    port = urlsplit(url).port
    for host in ("localhost", f"localhost:{port}", f"127.0.0.1:{port}", "[::1]:1"):
        assert ask(url, host=host)[0] == 200
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "10.0.0.1", ""):
        assert ask(url, host=host)[0] == 403


def test_keys_are_wanted_of_all_but_health_and_ready(engine, tmp_path, monkeypatch, caplog):
    from llama_jax.serve.keys import VARIABLE, read_keys

    file = tmp_path / "keys"
    file.write_text("# mine\nfirst\n\n sécond \n")
    monkeypatch.setenv(VARIABLE, "third, ")
    keys = read_keys(file)
    assert keys == (b"first", "sécond".encode(), b"third")
    with caplog.at_level("DEBUG"), served(engine, keys=keys) as (url, _):
        assert [ask(url, path=path)[0] for path in ("/health", "/ready")] == [200, 200]
        for path in ("/v1/models", "/metrics", "/openapi.json", "/tokenizer_info"):
            assert ask(url, path=path)[0] == 401
            assert ask(url, path=path, authorization="Bearer firs")[0] == 401
            assert ask(url, path=path, authorization="Basic first")[0] == 401
        for key in keys:
            assert ask(url, path="/v1/models", authorization=b"Bearer " + key)[0] == 200
        with pytest.raises(openai.AuthenticationError):
            client_of(url).models.list()
        assert client_of(url, api_key="first").models.list().data[0].id == NAME
    written = [one.getMessage() for one in caplog.records if one.name == "llama_jax.serve"]
    assert len(written) > 10
    assert not any(word in line for line in written for word in ("firs", "cond", "third"))
    file.write_bytes(b"\xef\xbb\xbffirst\r\nsecond")
    assert read_keys(file)[:2] == (b"first", b"second")
    for wrong, said in ((b"#\n", "has no keys"), (b"a\xe9", r"keys: byte 2 is not UTF-8; save")):
        file.write_bytes(wrong)
        with pytest.raises(ValueError, match=said):
            read_keys(file)


def test_pages_of_other_sites_may_ask_only_where_they_are_allowed(engine):
    ours = {"origin": "https://ours.example", "access_control_request_method": "POST"}
    with served(engine, origins=["https://ours.example"]) as (url, _):
        status, headers, _ = ask(url, "OPTIONS", "/v1/models", **ours)
        assert (status, headers["access-control-allow-origin"]) == (200, "https://ours.example")
        assert ask(url, origin="https://other.example")[1]["access-control-allow-origin"] is None
    with served(engine) as (url, _):
        assert ask(url, "OPTIONS", "/v1/models", **ours)[0] == 405


def test_health_is_the_engines_and_ready_says_when_to_come(engine, url):
    assert ask(url)[0] == ask(url, path="/ready")[0] == 200
    engine.ready = False
    assert ask(url)[0] == 200
    assert ask(url, path="/ready")[2]["error"]["code"] == "starting"
    engine.ready, engine.heartbeat = True, 1000.0
    assert ask(url)[2]["error"]["code"] == "stalled"
    engine.heartbeat, engine.failure = 0.0, RuntimeError("x")
    assert ask(url)[0] == ask(url, path="/ready")[0] == 503
    assert ask(url)[2]["error"]["code"] == "failed"


@pytest.mark.parametrize(
    ("path", "host", "status", "refused"),
    [
        ("/ready", "localhost", 503, []),
        ("/health", "localhost", 503, []),
        ("/health", "evil.example", 403, ["wrong_host"]),
        ("/v1/models/other", "localhost", 404, ["model_not_found"]),
    ],
)
def test_a_probe_that_is_told_no_is_not_refused(engine, url, path, host, status, refused):
    engine.failure = RuntimeError("x")
    assert ask(url, path=path, Host=host)[0] == status
    lines = ask(url, path="/metrics")[2].decode().splitlines()
    counted = [line for line in lines if line.startswith("llama_jax_refused_total{")]
    assert counted == [f'llama_jax_refused_total{{reason="{reason}"}} 1' for reason in refused]


def test_metrics_are_prometheus_text(engine, url):
    opened = post(url)
    engine.say(engine.wait_for_stream(), delta("x"), delta("y", "length"))
    while b"xy" not in opened.recv(1 << 16):
        pass
    answered = 'llama_jax_http_answers_total{route="/v1/completions",status="200"} 1'
    deadline, lines = time.monotonic() + 20, []
    while answered not in lines and time.monotonic() < deadline:  # counted once it has been sent
        status, headers, content = ask(url, path="/metrics")
        lines = content.decode().splitlines()
    assert (status, headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert answered in lines
    assert 'llama_jax_completions_total{reason="length"} 1' in lines
    assert "llama_jax_time_to_first_token_seconds_count 1" in lines
    assert "llama_jax_requests_running 0" in lines
    names = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
    assert all(line.startswith(("# ", "llama_jax_")) for line in lines)


@pytest.mark.parametrize(
    ("path", "chunk", "whole"),
    [
        ("/v1/chat/completions", "ChatChunk", "Chat"),
        ("/v1/completions", "Completions", "Completions"),
    ],
)
def test_the_description_says_what_an_event_is(url, path, chunk, whole):
    _, _, said = ask(url, path="/openapi.json")
    answers = said["paths"][path]["post"]["responses"]["200"]["content"]
    data = answers["text/event-stream"]["itemSchema"]["properties"]["data"]
    json_of_an_event, last = data["anyOf"]
    named = [f"#/components/schemas/{name}" for name in (chunk, "Error")]
    assert json_of_an_event["contentSchema"] == {"anyOf": [{"$ref": name} for name in named]}
    assert last == {"const": "[DONE]"}  # no JSON
    assert answers["application/json"]["schema"] == {"$ref": f"#/components/schemas/{whole}"}


def test_wrong_paths_and_methods_are_told(url):
    assert ask(url, "GET", "/v1/completions")[0] == 405
    assert ask(url, "DELETE", "/health")[0] == 405
    assert ask(url, "GET", "/v1/nothing")[2]["error"]["code"] == "not_found"


def _accepts(url):
    try:
        connect(url).close()
    except OSError:
        return False
    return True


def test_after_sigterm_what_was_accepted_is_answered(engine):
    with served(engine) as (url, app):
        opened = post(url, stream=True)
        stream = engine.wait_for_stream()
        engine.say(stream, delta("x"))
        app.server.handle_exit(signal.SIGTERM, None)
        while _accepts(url):
            time.sleep(0.01)
        engine.say(stream, delta("y", "stop"))
        found, orderly = read_all(opened)
        assert orderly
        assert b"[DONE]" in found
        assert not engine.cancelled.is_set()


@pytest.mark.parametrize("why", ["Ctrl-C twice", "time is over"])
def test_what_cannot_be_answered_in_time_is_told_so(engine, caplog, monkeypatch, why):
    if why == "time is over":
        monkeypatch.setattr(limits, "DRAIN_SECONDS", 0.2)
    with caplog.at_level("INFO"), served(engine) as (url, app):
        whole, streamed = post(url), post(url, stream=True)
        for _ in range(2):
            engine.wait_for_stream()
        app.server.handle_exit(signal.SIGINT, None)
        while _accepts(url):
            time.sleep(0.01)
        if why == "Ctrl-C twice":
            app.server.handle_exit(signal.SIGINT, None)
        found = read_all(whole)[0], read_all(streamed)[0]
    assert found[0].startswith(b"HTTP/1.1 503")
    assert found[1].startswith(b"HTTP/1.1 200")
    assert all(b'"code":"draining"' in one for one in found)
    assert engine.cancelled.is_set()
    assert app.server.interrupted
    said = [one.getMessage() for one in caplog.records if "request" in one.getMessage()]
    assert any("once it has answered 2 requests, within" in line for line in said)
    assert "2 requests not answered" in said
    assert "Traceback" not in caplog.text


def test_a_cancel_of_anothers_is_passed_on(engine):
    """Another server than ours may cancel a request for reasons of its own."""
    app = App(Served(engine, NAME, 1))
    kind = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": kind}
    messages = [{"type": "http.request", "body": json.dumps(ASKED).encode()}]
    sent = []

    async def receive():
        if messages:
            return messages.pop()
        return await asyncio.Event().wait()

    async def send(message):
        sent.append(message)

    async def main():
        asked = asyncio.create_task(app(scope, receive, send))
        await asyncio.to_thread(engine.submitted.wait)
        asked.cancel()
        await asked

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    assert engine.cancelled.is_set()
    assert not sent
    assert not app.metrics.refused.values
