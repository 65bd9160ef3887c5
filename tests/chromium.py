"""Debian's Chromium without a screen, by the WebDriver protocol (w3.org/TR/webdriver2) alone."""

import http.client
import json
import shutil
import socket
import subprocess
import time

WANTED = ("chromium", "chromedriver")
GET_THEM = "no chromium and chromedriver here: apt-get install chromium chromium-driver"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage "
    "--force-prefers-reduced-motion"
)
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the protocol's own key of an element's id
ENTER, ESCAPE, TAB, SHIFT = "\ue007", "\ue00c", "\ue004", "\ue008"


def missing() -> bool:
    return not all(map(shutil.which, WANTED))


class Browser:
    """One window. An element is found by a CSS selector each time it is used."""

    def __init__(self, profile: str, **prefs: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}", "--silent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._address, self._session = ("127.0.0.1", port), ""
        options = {
            "args": [*FLAGS.split(), f"--user-data-dir={profile}", "--window-size=1280,800"],
            "prefs": prefs,
        }
        wanted = {"browserName": "chrome", "goog:chromeOptions": options}
        wanted["goog:loggingPrefs"] = {"browser": "ALL"}
        self.until(self._answers)
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def close(self) -> None:
        try:
            self._ask("DELETE", self._session)
        finally:
            self._driver.terminate()
            self._driver.wait(10)

    def _answers(self) -> bool:
        try:
            return self._ask("GET", "/status")["ready"]
        except ConnectionError:
            return False

    def _ask(self, method: str, path: str, body: object = None):
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            value = json.loads(connection.getresponse().read())["value"]
        finally:
            connection.close()
        if isinstance(value, dict) and "error" in value:
            raise RuntimeError(f"{value['error']}: {value['message']}")
        return value

    def ask(self, method: str, path: str, body: object = None):
        return self._ask(method, self._session + path, body)

    def go(self, url: str) -> None:
        self.ask("POST", "/url", {"url": url})

    def run(self, script: str, *args: object):
        """What a function body of JavaScript returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(args)})

    def run_async(self, script: str, *args: object):
        """What the body of an async function gives to `done`, its last argument."""
        body = f"(async function () {{ {script} }}).apply(null, arguments)"
        return self.ask("POST", "/execute/async", {"script": body, "args": list(args)})

    def chrome(self, command: str, **params: object):
        """A command of Chrome's own protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def find(self, selector: str) -> str:
        return self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def click(self, selector: str) -> None:
        self.ask("POST", f"/element/{self.find(selector)}/click", {})

    def clear(self, selector: str) -> None:
        self.ask("POST", f"/element/{self.find(selector)}/clear", {})

    def type(self, selector: str, text: str) -> None:
        self.ask("POST", f"/element/{self.find(selector)}/value", {"text": text})

    def press(self, *keys: str) -> None:
        """Keys down in turn and up again, wherever the focus is."""
        down = [{"type": "keyDown", "value": key} for key in keys]
        up = [{"type": "keyUp", "value": key} for key in reversed(keys)]
        source = {"type": "key", "id": "keyboard", "actions": down + up}
        self.ask("POST", "/actions", {"actions": [source]})

    def text(self, selector: str) -> str:
        """The text of all that a selector finds, joined by newlines."""
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return "\n".join(self.run(script, selector))

    def log(self) -> list[str]:
        """What the console has said since the last call."""
        return [line["message"] for line in self.ask("POST", "/se/log", {"type": "browser"})]

    def until(self, holds, seconds: float = 10):
        """What `holds` gives once that is true; fails after so many seconds."""
        end = time.monotonic() + seconds
        while not (found := holds()):
            if time.monotonic() > end:
                raise AssertionError(f"not within {seconds} s")
            time.sleep(0.05)
        return found
