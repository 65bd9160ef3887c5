"""Every size and limit of generation, and its reason.

A program is compiled once per shape, so shapes are rounded up to buckets: a batch of 3 prompts of
20 tokens runs as 4 rows of 32.

What a kernel or a layout is made of stands beside it, because `kernels/` and `model/` cannot import
this file: a kernel's blocks, the 64 positions of a page. HTTP's limits are in `serve/limits.py`,
the sizes of an engine's pool and programs in `serve/pool.py` and `serve/programs.py`.
"""

from __future__ import annotations

import dataclasses

MAX_ROWS = 32
"""Rows of a batch. More gain little, and a batch waits for its longest row."""
MAX_CACHE_BYTES = 4 << 30
"""A batch has fewer rows where the cache of MAX_ROWS would be larger."""
MIN_BUCKET = 16
"""The shortest padded prompt: a smaller program would save less time than it takes to compile."""
MIN_SLOTS = 256
"""The smallest cache. A cache grows by doubling, so a step reads less than twice what is used."""
HEADROOM = 64
"""A new cache has room for the prompt and so many new tokens."""
ROUND_TOKENS = 256
"""Tokens of a row that the device keeps before the host fetches them."""
ROUND_SECONDS = 0.5
"""How long the device may decode before the host looks: Python hears Ctrl-C between two looks."""
STOP_STRING_TOKENS = 16
"""Tokens between two checks for stop strings, which the host finds in the text. A row decodes at
most that many tokens too many, which are dropped."""
MAX_LOGPROBS = 20
"""How many alternatives a token's log-probabilities may list: the width of a buffer on device."""
SCORE_TEXTS = 8
"""Texts that `score` reads together."""
ANSWER_TOKENS = 256
"""A conversation forgets its oldest turns until an answer of so many tokens has room, or of a
quarter of the context if that is less."""
LARGEST = (2 - 2**-23) * 2.0**127
"""The largest number in a setting. On the device it is a float32, and this the largest of them."""
SMALLEST = 2.0**-149
"""The smallest number above 0 that float32 has: less is 0 on the device."""
NO_LIMIT = 2**31 - 1

MAX_GRAMMAR_BYTES = 64 << 10
"""The longest schema, regular expression or grammar."""
GRAMMARS = 32
"""Texts whose verdict is kept, and compiled grammars that a vocabulary keeps."""
GRAMMAR_SECONDS = 1
"""The processor time in which a grammar must compile. Starting Python and the library takes a tenth
of it."""
GRAMMAR_MEMORY = 1 << 30
"""The memory in which a grammar must compile, in bytes."""
GRAMMAR_WAIT_SECONDS = 60
"""How long the host waits for that. It ends the wait on a machine so busy that the process hardly
runs."""
MAX_LEXER_STATES = 100_000
"""States that one completion under a grammar may make. A state takes 1 or 2 KB."""

GRAMMAR_REQUEST_SECONDS = 2.0
"""The processor time that an engine spends on the constraint of one request."""
GRAMMAR_TOKEN_SECONDS = 0.01
"""How much more it spends for each new token. All other requests wait meanwhile. With Llama 3's
vocabulary a schema of 100 objects takes 2 ms a token, an ambiguous grammar of one line 640 ms at
its 60th."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes that depend on the platform."""

    tokens_per_check: int
    """Tokens decoded between two checks of the loop, and streamed at a time."""
    prefill_tokens: int
    """Prompt tokens of one chunk, over all rows; at least PREFILL_TOKENS_A_ROW of each."""
    turn_tokens: int
    """Tokens of one chunk of a conversation's turn: one program serves long turns and short."""
    turn_chunks: int
    """Chunks of prompts that a server reads between two decoding steps. More of them answer new
    requests sooner, and delay those in progress for longer."""
    score_tokens: int
    """Positions whose logits exist at once, over all texts; at least SCORE_TOKENS_A_ROW of each."""
    most_in_batches: int
    """Completions of one call that run in batches. More of them run by an engine's turns, where
    that was measured to be faster (docs/notes/benchmarks.md)."""
    seats: int
    """Requests that a server takes on together. A GPU multiplies 128 rows as fast as one."""
    bytes_per_second: int
    """The memory bandwidth that is assumed of a slow machine; it sets the tokens of a round. A
    constant, because all processes of a job must agree."""


PREFILL_TOKENS_A_ROW = 512
"""The smallest chunk of a prompt. It bounds the scores that attention holds."""
SCORE_TOKENS_A_ROW = 128

CPU = Limits(
    tokens_per_check=1,
    prefill_tokens=0,
    turn_tokens=64,
    turn_chunks=8,
    score_tokens=0,
    most_in_batches=MAX_ROWS,
    seats=16,
    bytes_per_second=5 * 10**9,
)
"""A check is free on a CPU. It multiplies 64 tokens in the time in which it reads the weights."""
ACCELERATOR = Limits(
    tokens_per_check=8,
    prefill_tokens=1 << 14,
    turn_tokens=PREFILL_TOKENS_A_ROW,
    turn_chunks=1,
    score_tokens=SCORE_TOKENS_A_ROW * SCORE_TEXTS,
    most_in_batches=NO_LIMIT,
    seats=128,
    bytes_per_second=10**12,
)
"""A check makes a GPU wait for the host. cuDNN's kernel holds no scores, but serves only the first
chunk of a prompt, so that chunk is large."""


def limits_on(platform: str) -> Limits:
    """The sizes for a platform, as JAX names it."""
    return CPU if platform == "cpu" else ACCELERATOR


def tokens_per_round(limits: Limits, nbytes: int) -> int:
    """How many tokens a model of so many bytes decodes before the host looks."""
    wanted = int(ROUND_SECONDS * limits.bytes_per_second / max(nbytes, 1))
    return min(max(wanted, limits.tokens_per_check), ROUND_TOKENS)


def power_of_two(wanted: int, least: int = 1) -> int:
    """The next power of two, and at least `least`."""
    return max(least, 1 << max(wanted - 1, 0).bit_length())


def bucket(length: int) -> int:
    """The padded length of a prompt: 20 tokens become 32."""
    return power_of_two(length, MIN_BUCKET)


def initial_slots(length: int, max_seq_len: int) -> int:
    """The slots of a new cache for a prompt of this length."""
    return min(max(MIN_SLOTS, bucket(length + HEADROOM)), max_seq_len)


def answer_room(max_new_tokens: int, max_seq_len: int) -> int:
    """Tokens for which a conversation makes room before it answers."""
    return min(max_new_tokens, max_seq_len // 4, ANSWER_TOKENS)


def doubled_slots(slots: int, max_seq_len: int) -> int:
    """The slots of a cache that was full."""
    return min(max(MIN_SLOTS, 2 * slots), max_seq_len)


def final_slots(length: int, new: int, max_seq_len: int) -> int:
    """The slots of a cache that has read a text of this length and written `new` tokens."""
    slots = initial_slots(length, max_seq_len)
    while slots < min(length + new, max_seq_len):
        slots = doubled_slots(slots, max_seq_len)
    return slots


def tokens_per_read(rows: int, time: int, *, in_all: int, a_row: int) -> int:
    """Tokens of each row in one chunk: 16,384 in all are 4,096 for each of 4 rows."""
    return min(time, max(a_row, in_all // rows))
