"""Every limit of the server, and its reason. Whatever exceeds one is refused in a line."""

from __future__ import annotations

from llama_jax.generation.limits import MAX_GRAMMAR_BYTES
from llama_jax.generation.limits import MAX_LOGPROBS as MAX_LOGPROBS

# What a request may hold.
MAX_BODY_BYTES = 8 << 20
"""Counted as a body arrives, whatever its Content-Length says: 128k tokens are under 1 MB."""
MAX_HEAD_BYTES = 64 << 10
"""A request's line and headers."""
MAX_PIECES = 20_000
"""Pieces of a body that is sent in chunks. Each takes some 20 microseconds of the thread that
serves all, and most clients' have kilobytes."""
MAX_COMPLETIONS = 16
"""`n`. Each takes a row of the engine; a request for more would keep others out."""
MAX_PROMPTS = 128
"""Prompts of one request for completions: evaluations send them in lists."""
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 64
"""Stop strings are looked for character by character, by the thread that serves all."""
MAX_BIASES = 1024
MAX_STOP_IDS = 64
MAX_IDS = 1 << 20
"""Ids that a request to /detokenize may have. No context is so long."""
MAX_MESSAGES = 4096
MAX_TOOLS = 128
MAX_GRAMMAR_CHARACTERS = MAX_GRAMMAR_BYTES
"""The length of a JSON schema, a regular expression or a grammar. They are compiled."""
MAX_NAME_CHARACTERS = 256
"""The length of a model's name and of a salt."""
CHARACTERS_A_TOKEN = 64
"""A text with more characters than this for each token of the context is refused unread: it would
take seconds to encode, and text has about four."""

# How long a client may take.
HEAD_SECONDS = 10.0
"""From connecting, or from a request's first byte, to the end of its headers."""
BODY_SECONDS = 60.0
"""From the headers to the end of the body: 8 MB at 140 kB a second."""
DISCARD_BYTES = 32 << 20
DISCARD_SECONDS = 5.0
"""How much more of a body that is too large is read and dropped, and for how long. Its client sends
the whole body before it reads why it was refused."""
WRITE_SECONDS = 60.0
"""A client that leaves what is sent to it unread for so long is cut."""
KEEP_ALIVE_SECONDS = 5.0
"""How long a connection may be idle between two requests."""
PING_SECONDS = 15.0
"""A stream that is silent for so long sends a comment: proxies cut silent connections after 30 or
60 seconds."""
MAX_CONNECTIONS = 8192
"""More are answered 503 at once."""

# How long the server may take.
HEARTBEAT_SECONDS = 60.0
"""An engine that has not gone round for so long is taken for dead. A round is far under a second;
compiling a program that is used for the first time is not."""
DRAIN_SECONDS = 60.0
"""How long accepted requests may take after SIGTERM."""
