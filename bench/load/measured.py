"""What answers tell, by vLLM's definitions (`vllm bench serve`), in seconds and tokens.

TTFT: from the sending of a request to its first chunk with a token. E2E: to its last chunk. ITL:
between a token and the next one. A chunk of k tokens that comes g seconds after the chunk before
counts as k gaps of g / k, and the first chunk's own as k - 1 gaps of 0, so that the gaps of an
answer sum up to the time from its first token to its last, however the server packs them. "Pause"
is what vLLM calls ITL: between two chunks, whatever they hold. TPOT: the mean gap of a request.
Answers that failed count as failures and in no time. Percentiles are interpolated linearly.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.load.client import Answer

PERCENTILES = (50, 95, 99)
TIMES = ("ttft", "itl", "pause", "tpot", "e2e")


def came(answer: Answer) -> list[tuple[float, int]]:
    """When tokens came and how many; those that no chunk tells of are spread evenly over text."""
    if answer.counted:
        return [(chunk.time, chunk.tokens) for chunk in answer.chunks if chunk.tokens]
    times = [chunk.time for chunk in answer.chunks if chunk.has_text]
    total, count = answer.new_tokens or 0, len(times)
    upto = [-(-total * i // count) for i in range(count + 1)]  # rounded up: the first has one
    counts = [after - before for before, after in itertools.pairwise(upto)]
    return [(time, some) for time, some in zip(times, counts, strict=True) if some]


def gaps(arrived: Sequence[tuple[float, int]]) -> list[float]:
    """Seconds between each token and the next."""
    found = [0.0] * (arrived[0][1] - 1)
    for (before, _), (now, count) in itertools.pairwise(arrived):
        found += [(now - before) / count] * count
    return found


def times_of(answer: Answer) -> dict[str, list[float]]:
    """Every duration of an answer that did not fail."""
    arrived = came(answer)
    first, between = arrived[0][0], gaps(arrived)
    return {
        "ttft": [first - answer.sent],
        "itl": between,
        "pause": [now - before for (before, _), (now, _) in itertools.pairwise(arrived)],
        "tpot": [statistics.fmean(between)] if between else [],
        "e2e": [answer.chunks[-1].time - answer.sent],
    }


def summary(answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The numbers of all answers of so many seconds."""
    good = [answer for answer in answers if not answer.error]
    new = sum(answer.new_tokens or 0 for answer in good)
    every = all(answer.counted for answer in good)
    told = "by the server in each chunk" if every else "evenly over the chunks"
    times: dict[str, list[float]] = {name: [] for name in TIMES}
    for answer in good:
        for name, some in times_of(answer).items():
            times[name] += some
    return {
        "requests": len(answers),
        "failures": len(answers) - len(good),
        "short": sum((answer.new_tokens or 0) < answer.asked.new for answer in good),
        "seconds": seconds,
        "prompt_tokens": sum(answer.prompt_tokens or 0 for answer in good),
        "cached_tokens": sum(answer.cached_tokens or 0 for answer in good),
        "new_tokens": new,
        "counted": told,
        "tokens_per_second": new / seconds,
        "requests_per_second": len(good) / seconds,
        **{name: spread(some) for name, some in times.items()},
    }


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """The mean and the percentiles, None of no values."""
    if not values:
        return dict.fromkeys(["mean", *(f"p{percent}" for percent in PERCENTILES)])
    found = np.percentile(values, PERCENTILES).tolist()
    named = {f"p{percent}": value for percent, value in zip(PERCENTILES, found, strict=True)}
    return {"mean": statistics.fmean(values), **named}


def errors(answers: Sequence[Answer]) -> dict[str, int]:
    """What went wrong, and how often."""
    found: dict[str, int] = {}
    for answer in answers:
        if answer.error:
            found[answer.error] = found.get(answer.error, 0) + 1
    return found
