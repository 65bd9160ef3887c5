"""A server in this process, on a free port."""

import contextlib
import threading
import time

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("openai")
NAME = "stories"


@contextlib.contextmanager
def served(engine, *, chats=True, **options):
    """The address of a server over an engine, and its application."""
    from llama_jax.serve.http import application
    from llama_jax.serve.listening import listen
    from llama_jax.serve.openai.served import Served
    from llama_jax.serve.server import Server, serve

    app, outer = application(Served(engine, NAME, 1, chats), **options)
    listening = listen("127.0.0.1", 0)
    app.server = server = Server(app, outer)
    thread = threading.Thread(target=serve, args=(server, listening))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", app
    finally:
        server.should_exit = True
        thread.join()
