"""Counters, gauges and histograms in Prometheus's text format.

The help of a metric names vLLM's own where that has the same meaning, for dashboards and gateways
that map names.
"""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama_jax.generation.results import Delta
    from llama_jax.serve.engine import Engine

PREFIX = "llama_jax_"
Labels = tuple[str, ...]
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Counter:
    """Totals, one for each value of the labels."""

    kind = "counter"

    def __init__(self, name: str, help: str, labels: Sequence[str] = ()) -> None:
        self.name, self.help, self.labels = PREFIX + name, help, labels
        self.values: dict[Labels, float] = {} if labels else {(): 0}

    def add(self, *values: str, amount: float = 1) -> None:
        """Counts one more for these values of the labels."""
        self.values[values] = self.values.get(values, 0) + amount

    def lines(self) -> Iterator[str]:
        """The samples."""
        for values, total in sorted(self.values.items()):
            yield f"{self.name}{_braced(self.labels, values)} {_number(total)}"


class Gauge(Counter):
    """A number that rises and falls."""

    kind = "gauge"


class Histogram:
    """How many durations were at most so long, in seconds."""

    kind = "histogram"
    labels: Sequence[str] = ()

    def __init__(self, name: str, help: str) -> None:
        self.name, self.help = PREFIX + name, help
        self.counts, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Counts one more."""
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.sum += seconds

    def lines(self) -> Iterator[str]:
        """The samples: each bucket counts those below it too."""
        total = 0
        for bound, count in zip((*SECONDS, math.inf), self.counts, strict=True):
            total += count
            yield f'{self.name}_bucket{{le="{_number(bound)}"}} {total}'
        yield f"{self.name}_sum {_number(self.sum)}"
        yield f"{self.name}_count {total}"


class Metrics:
    """All that the server counts. What the engine counts is asked of it when it is wanted."""

    def __init__(self) -> None:
        self.answers = Counter(
            "http_answers_total", "Answers by route and status.", ("route", "status")
        )
        self.refused = Counter("refused_total", "Requests refused, by reason.", ("reason",))
        self.gone = Counter(
            "disconnects_total", "Clients that left before the end of their answer.", ("route",)
        )
        self.cut = Counter(
            "connections_cut_total",
            "Connections ended: no head in time, no HTTP, or an answer that nobody reads.",
            ("reason",),
        )
        self.finished = Counter(
            "completions_total",
            "Completions by the reason of their end. vllm:request_success_total",
            ("reason",),
        )
        self.first = Histogram(
            "time_to_first_token_seconds",
            "From a request's arrival to its first token. vllm:time_to_first_token_seconds",
        )
        self.between = Histogram(
            "inter_token_seconds",
            "Between two deltas of a completion, a token. vllm:inter_token_latency_seconds",
        )
        self.whole = Histogram(
            "request_seconds",
            "From a request's arrival to its last token. vllm:e2e_request_latency_seconds",
        )

    def text(self, engine: Engine) -> str:
        """Every sample, in the format that Prometheus reads."""
        own = (self.answers, self.refused, self.gone, self.cut, self.finished)
        timed = (self.first, self.between, self.whole)
        lines: list[str] = []
        metrics: list[Counter | Histogram] = [*own, *timed, *_of_engine(engine)]
        for metric in metrics:
            lines.append(f"# HELP {metric.name} {metric.help}")
            lines.append(f"# TYPE {metric.name} {metric.kind}")
            lines += metric.lines()
        return "\n".join(lines) + "\n"


def _of_engine(engine: Engine) -> Iterable[Counter]:
    stats = engine.stats()
    gauges = {
        "requests_running": (stats.running, "Completions at work. vllm:num_requests_running"),
        "requests_waiting": (stats.waiting, "Requests in the queue. vllm:num_requests_waiting"),
        "cache_usage_ratio": (
            stats.used_pages / max(stats.pages, 1),
            "Share of the cache's pages in use. vllm:kv_cache_usage_perc",
        ),
        "heartbeat_seconds": (engine.heartbeat, "Since the engine last went round."),
        "ready": (float(engine.ready), "Whether the first programs are compiled."),
    }
    totals = {
        "prompt_tokens_total": (
            stats.prompt_tokens,
            "Of prompts, once for each completion. vllm:prompt_tokens_total",
        ),
        "cached_tokens_total": (
            stats.cached_tokens,
            "Of those, found in the cache. vllm:prefix_cache_hits_total",
        ),
        "new_tokens_total": (stats.new_tokens, "Written. vllm:generation_tokens_total"),
        "preemptions_total": (stats.preemptions, "Rows that gave way. vllm:num_preemptions_total"),
        "nan_rows_total": (
            stats.nan_rows,
            "Rows whose logits were no numbers. vllm:corrupted_requests_total",
        ),
    }
    for kind, named in ((Gauge, gauges), (Counter, totals)):
        for name, (value, help) in named.items():
            metric = kind(name, help)
            metric.add(amount=float(value))
            yield metric


class Watch:
    """Times one request's deltas."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics, self._began = metrics, time.monotonic()
        self._last: dict[int, float] = {}
        self.new_tokens = 0
        self._started = False

    def saw(self, row: int, delta: Delta) -> None:
        """A delta of the completion `row` came."""
        now, count = time.monotonic(), len(delta.tokens)
        self.new_tokens += count
        if not self._started:
            self._started = True
            self._metrics.first.add(now - self._began)
        if row in self._last and count:
            self._metrics.between.add((now - self._last[row]) / count)
        self._last[row] = now
        if delta.finish_reason is not None:
            self._metrics.finished.add(delta.finish_reason)

    def ended(self) -> None:
        """The whole request is answered."""
        self._metrics.whole.add(time.monotonic() - self._began)


def _braced(names: Sequence[str], values: Labels) -> str:
    pairs = (f'{name}="{_escaped(value)}"' for name, value in zip(names, values, strict=True))
    return "{" + ",".join(pairs) + "}" if names else ""


def _escaped(value: str) -> str:
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(value: float) -> str:
    return "+Inf" if value == math.inf else f"{value:.10g}"
