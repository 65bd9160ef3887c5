"""Serve: a model behind HTTP, asked as any client of OpenAI's protocol asks.

    python examples/serve.py [CHECKPOINT]

Run it from the repository's root; the server needs the extra `serve`. Without a checkpoint it
serves the small model that comes with the package, which tells stories. The client here is plain
Python. OpenAI's own is given base_url=f"{url}/v1" and any api_key.
"""

import json
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor

command = [sys.executable, "-m", "llama_jax", "serve", *sys.argv[1:2], "--port", "0", "--rows", "2"]
server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
said = server.stdout.readline()  # once it is compiled: "stories answers at http://127.0.0.1:41234"
print(said, end="")
url = said.split()[-1] if said else sys.exit("the server ended before it could be asked")


def asked(path, body=None):
    """The answer's lines, as they come."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        yield from answer


try:
    (models,) = asked("/v1/models")
    print("serving", json.loads(models)["data"][0]["id"])

    # With "stream" an answer comes in events, each a line `data: {...}`.
    wish = {"prompt": "Once upon a time", "max_tokens": 16, "temperature": 0, "stream": True}
    for line in asked("/v1/completions", wish):
        if line.startswith(b"data: {"):
            print(json.loads(line[6:])["choices"][0]["text"], end="", flush=True)
    print()

    # Requests that are there together are decoded together, each as if it were alone.
    several = [wish | {"prompt": text, "stream": False} for text in ("One day, a dog", "Lily had")]
    with ThreadPoolExecutor() as clients:
        for (line,) in clients.map(lambda body: list(asked("/v1/completions", body)), several):
            print(repr(json.loads(line)["choices"][0]["text"]))
finally:
    server.send_signal(signal.SIGINT)  # as Ctrl-C: what was accepted is answered first
    server.wait()
    print("The server has ended.")
