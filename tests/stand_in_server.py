"""A server that speaks the protocol and says what a test tells it, when the test wants it."""

import dataclasses
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers import ROOT

PAGE = ROOT / "llama_jax/serve/page"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css"}


@dataclasses.dataclass
class Answer:
    """One answer: its pieces of text, and what goes wrong after them."""

    pieces: tuple[str, ...] = ("Hello", " there.")
    gap: float = 0.0
    """Seconds before each piece."""
    held: bool = False
    """Each piece waits until the test has released `go`."""
    status: int = 200
    error: str = ""
    """The server's words, as the status or, of a 200, as an event after the pieces."""
    code: str | None = None
    retry_after: int | None = None
    ends: bool = True
    """False: the connection closes after the pieces, and nothing says that the answer ended."""
    hangs: bool = False
    """Nothing follows the pieces until the client leaves."""
    finish: str = "stop"
    cut: bool = False
    """Lines end in CR LF, and each byte travels alone."""


class StandIn(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/"
        self.reset()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def reset(self, *, chat: bool = True, models: tuple[str, ...] = ("stand-in",)) -> None:
        self.answers: list[Answer] = []
        """Given out in turn; without one, `Answer()`."""
        self.requests: list[tuple[str, dict]] = []
        self.go = threading.Semaphore(0)
        self.left = threading.Event()
        """A client has left in the midst of an answer."""
        self.key = ""
        entries = [{"id": name, "object": "model", "chat": chat} for name in models]
        self.models = {"object": "list", "data": entries}

    def handle_error(self, request, client_address) -> None:
        """A client that leaves is no error here."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, format, *args) -> None:
        pass

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _json(self, status: int, value: object, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _locked(self) -> bool:
        key = self.server.key
        if not key or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self._json(401, {"error": {"message": "no key, or not one of this server's"}})
        return True

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            if not self._locked():
                self._json(200, self.server.models)
            return
        file = PAGE / (self.path.strip("/") or "index.html")
        if file.parent != PAGE or not file.exists():
            self._send(404, b"nothing", Content_Type="text/plain")
            return
        kind = KINDS[file.suffix]
        self._send(200, file.read_bytes(), Content_Type=kind, Content_Security_Policy=POLICY)

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._locked():
            return
        self.server.requests.append((self.path, body))
        answer = self.server.answers.pop(0) if self.server.answers else Answer()
        if answer.status != 200:
            wait = {} if answer.retry_after is None else {"Retry_After": str(answer.retry_after)}
            said = {"message": answer.error, "code": answer.code}
            self._json(answer.status, {"error": said}, **wait)
            return
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        try:
            self._stream(answer, chat=self.path.endswith("chat/completions"))
        except OSError:
            self.server.left.set()

    def _event(self, value: object) -> None:
        self._write(f"data: {json.dumps(value, ensure_ascii=False)}\n\n")

    def _write(self, text: str) -> None:
        if not self._cut:
            self.wfile.write(text.encode())
            return
        for byte in text.replace("\n", "\r\n").encode():
            self.wfile.write(bytes([byte]))
            time.sleep(0.0005)

    def _stream(self, answer: Answer, *, chat: bool) -> None:
        self._cut = answer.cut

        def choice(text: str, finish: str | None = None) -> dict:
            said = {"delta": {"content": text} if text else {}} if chat else {"text": text}
            return {"choices": [{"index": 0, "finish_reason": finish, **said}]}

        if chat:
            self._event({"choices": [{"index": 0, "delta": {"role": "assistant"}}]})
        for piece in answer.pieces:
            time.sleep(answer.gap)
            if answer.held:
                self.server.go.acquire(timeout=60)
            self._event(choice(piece))
        while answer.hangs:
            time.sleep(0.02)
            self._write(": ping\n\n")
        if answer.error:
            self._event({"error": {"message": answer.error}})
        elif answer.ends:
            self._event(choice("", answer.finish))
            details = {"cached_tokens": 4}
            usage = {"prompt_tokens": 9, "prompt_tokens_details": details}
            usage["completion_tokens"] = len(answer.pieces)
            self._event({"choices": [], "usage": usage})
            self._write("data: [DONE]\n\n")
