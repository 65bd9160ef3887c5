"""Every size and bucket of generation, and why it is so.

A program is compiled once per shape, so shapes are rounded up to buckets: a batch of 3 prompts of
20 tokens runs as 4 rows of 32.
"""

from __future__ import annotations

import dataclasses

MAX_ROWS = 32
"""Rows of a batch. More gain little, and a batch waits for its longest row."""
MAX_CACHE_BYTES = 4 << 30
"""A batch has fewer rows where the cache of MAX_ROWS would be larger."""
MIN_BUCKET = 16
"""The shortest padded text: below it, programs differ by less than they cost to compile."""
MIN_SLOTS = 256
"""The smallest cache. A cache grows by doubling, so a step reads less than twice what is used."""
HEADROOM = 64
"""New tokens for which a cache has room from the beginning."""
ROUND_TOKENS = 256
"""Tokens that the device keeps of a row before the host takes them."""
ROUND_SECONDS = 0.5
"""How long the device may decode before the host looks: Python hears Ctrl-C between two looks."""
STOP_STRING_TOKENS = 16
"""Tokens between two looks for stop strings, which the host finds in the text. A row decodes at
most as many beyond its stop; they are dropped."""
MAX_LOGPROBS = 20
"""How many alternatives a token's log-probabilities may list: the width of a buffer on device."""
SCORE_TEXTS = 8
"""Texts that `score` reads together."""
NO_LIMIT = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Limits:
    """Sizes that depend on the platform."""

    tokens_per_check: int
    """Decoded between two questions whether to go on, and streamed at a time."""
    prefill_tokens: int
    """Read at once of all prompts of a batch together, at least PREFILL_TOKENS_A_ROW of each."""
    turn_tokens: int
    """Read at once of a conversation's turn: one program serves long turns and short."""
    score_tokens: int
    """Positions of all texts whose logits exist at once, at least SCORE_TOKENS_A_ROW of each."""
    bytes_per_second: int
    """How fast a slow one reads weights, by which a round's tokens are counted. It is no clock,
    because all processes of a job must count alike."""


PREFILL_TOKENS_A_ROW = 512
"""Read at once of each prompt at least. It bounds the scores that attention holds."""
SCORE_TOKENS_A_ROW = 128

CPU = Limits(
    tokens_per_check=1,
    prefill_tokens=0,
    turn_tokens=64,
    score_tokens=0,
    bytes_per_second=5 * 10**9,
)
"""A question costs a CPU nothing, and it reads weights as fast for 64 tokens as it multiplies."""
ACCELERATOR = Limits(
    tokens_per_check=8,
    prefill_tokens=1 << 14,
    turn_tokens=PREFILL_TOKENS_A_ROW,
    score_tokens=SCORE_TOKENS_A_ROW * SCORE_TEXTS,
    bytes_per_second=10**12,
)
"""A question stalls a GPU. cuDNN's kernel holds no scores, but serves only the first tokens that
are read of a prompt, so it gets as many as possible."""


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
    """The padded length of a text: 20 tokens become 32."""
    return power_of_two(length, MIN_BUCKET)


def initial_slots(length: int, max_seq_len: int) -> int:
    """The slots of a cache that reads a text of this length and writes on."""
    return min(max(MIN_SLOTS, bucket(length + HEADROOM)), max_seq_len)


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
    """How many tokens of each text are read at once: for 4 texts, 16,384 in all are 4,096 each."""
    return min(time, max(a_row, in_all // rows))
