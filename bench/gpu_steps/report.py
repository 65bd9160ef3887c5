"""The table of a run: what a person reads first, in no more lines than a screen has."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

LINES, WIDTH = 40, 118
BANDWIDTH_AIM, MATRIX_AIM = 0.80, 0.60
"""Parts of the measured rates that decoding and reading prompts are to reach."""
ENGINE_AIM = 3000
"""New tokens in a second, of 256 requests of 256 tokens, that the engine is to reach with 8B."""
SIZES = ("8b", "1b")
Found = dict[str, Any]


def table(record: dict[str, Any]) -> str:
    """The whole of it; what does not fit is in the JSON."""
    steps = record["steps"]
    found = {name: step["found"] for name, step in steps.items()}
    lines = [
        *_head(record, found.get("card", {})),
        *_right(found),
        *_decoding(found),
        *_prompts(found),
        *_quantized(found),
        *_training(found),
        *_engine(found),
        *_longest(found),
        *_other(found),
    ]
    errors = list(_errors(steps))
    room = max(1, LINES - len(lines))
    if len(errors) > room:
        errors = [*errors[: room - 1], f"and {len(errors) - room + 1} more errors: see gpu.json"]
    return "\n".join(line[:WIDTH] for line in [*lines, *errors][:LINES]) + "\n"


def _head(record: dict[str, Any], card: Found) -> Iterator[str]:
    toy = "toy sizes: " if record["dry"] else ""
    yield f"# {toy}{card.get('card', 'no card')}, {record['began']}, {record['seconds']:.0f} s"
    versions = card.get("versions", {})
    named = [
        f"{name} {versions[name]}" for name in ("jax", "torch", "transformers") if name in versions
    ]
    yield "; ".join([*named, str(card.get("cuda", "")), str(card.get("nvidia-smi") or "no driver")])
    states = ", ".join(f"{name} {_state(step)}" for name, step in record["steps"].items())
    yield from textwrap.wrap(f"steps: {states}", WIDTH, subsequent_indent="  ")[:3]
    if bandwidth := _bandwidth(card):
        yield f"bandwidth {bandwidth / 1e9:,.0f} GB/s; bfloat16 {_matrix(card) / 1e12:,.3g} TFLOP/s"


def _state(step: dict[str, Any]) -> str:
    took = f"{step['seconds']:.0f} s" if "seconds" in step else ""
    return took if step["status"] == "done" else " ".join([step["status"], took]).strip()


def _right(found: dict[str, Found]) -> Iterator[str]:
    """How many of the comparisons hold, and which do not."""
    parts, wrong = [], []
    for name in ("attention", "golden", "draws"):
        judged = {k: v for k, v in found.get(name, {}).items() if is_judged(v)}
        if judged:
            parts.append(f"{name} {sum(v['right'] for v in judged.values())} of {len(judged)}")
            wrong += [k for k, v in judged.items() if not v["right"]]
    chosen = [v["kernel"] for v in found.get("attention", {}).values() if is_judged(v)]
    if parts:
        yield f"right: {', '.join(parts)}; a kernel was chosen in {sum(chosen)} of {len(chosen)}"
    if wrong:
        yield "WRONG: " + "; ".join(wrong)


def is_judged(value: Any) -> bool:
    """Whether a finding says if it is right."""
    return isinstance(value, dict) and "right" in value


def _decoding(found: dict[str, Found]) -> Iterator[str]:
    rows = [
        _decoding_row(found, size, case, value)
        for size in SIZES
        for case, value in found.get(f"decode-{size}", {}).items()
        if isinstance(value, dict) and "tokens/s" in value
    ]
    aim = f"of bandwidth, {BANDWIDTH_AIM:.2f}"
    cells = ("rows x used", "step ms", "tokens/s", aim, "launches", "gaps us, host's")
    if rows:
        yield ""
        yield _row(*cells, "transformers", "ratio")
        yield "|---" * 8 + "|"
        yield from rows


def _decoding_row(found: dict[str, Found], size: str, case: str, value: Found) -> str:
    rate, peer = value["tokens/s"], _best(found.get(f"torch-{size}", {}), case)
    trace = found[f"decode-{size}"].get(f"{case} trace", {})
    gaps = [str(trace.get(name, "")) for name in ("small_gaps_us", "host_gaps_us")]
    return _row(
        f"{size} {case}",
        _times(value["step_ms"]),
        _rate(rate),
        _part(value["bytes/s"], _bandwidth(found.get("card", {}))),
        str(trace.get("launches", "")),
        ", ".join(gaps) if trace else "",
        _rate(peer),
        _part(rate, peer),
    )


def _prompts(found: dict[str, Found]) -> Iterator[str]:
    rows = [
        _prompt_row(found, size, case, value)
        for size in SIZES
        for case, value in found.get(f"prefill-{size}", {}).items()
        if isinstance(value, dict) and "flop/s" in value
    ]
    aim = f"of matrix rate, {MATRIX_AIM:.2f}"
    if rows:
        yield ""
        yield _row("prompt", "ms", "tokens/s", aim, "with padding", "transformers ms", "ratio")
        yield "|---" * 7 + "|"
        yield from rows


def _prompt_row(found: dict[str, Found], size: str, case: str, value: Found) -> str:
    matrix, ms = _matrix(found.get("card", {})), value["ms"]
    peer = found.get(f"torch-{size}", {}).get(case, {}).get("ms")
    return _row(
        f"{size} {case}",
        _times(ms),
        _rate(value["tokens/s"]),
        _part(value["flop/s"], matrix),
        _part(value["flop/s of all that is read"], matrix),
        _times(peer) if peer else "",
        _part(peer["median"], ms["median"]) if peer else "",
    )


def _quantized(found: dict[str, Found]) -> Iterator[str]:
    """Each kind of weights, beside bfloat16's tokens a second."""
    told = []
    for case, value in found.get("quantized-8b", {}).items():
        if isinstance(value, dict) and "tokens/s" in value:
            whole = found.get("decode-8b", {}).get(case.partition(" ")[2], {}).get("tokens/s", 0.0)
            ratio = f" ({_part(value['tokens/s'], whole)} of bfloat16)" if whole else ""
            told.append(f"{case} {_rate(value['tokens/s'])} tokens/s{ratio}")
    if told:
        yield "quantized 8b: " + "; ".join(told)


def _training(found: dict[str, Found]) -> Iterator[str]:
    """Each way to train: speed, part of the matrix rate by all pairs of attention, memory."""
    matrix = _matrix(found.get("card", {}))
    told = [
        f"{case} {_rate(value['tokens/s'])} tokens/s, {_part(value['flop/s'], matrix)} of rate"
        for case, value in found.get("train-1b", {}).items()
        if isinstance(value, dict) and "tokens/s" in value
    ]
    if told:
        yield "training 1b: " + "; ".join(told)


def _engine(found: dict[str, Found]) -> Iterator[str]:
    """Requests x prompt + new tokens, all asked for at once."""
    told = [
        f"{case} {_rate(value['tokens/s'])} tokens/s (aim {ENGINE_AIM:,}), first token "
        f"{value['first token s']['median']:.1f} s"
        for case, value in found.get("engine-8b", {}).items()
        if isinstance(value, dict) and "tokens/s" in value
    ]
    if told:
        yield "engine 8b: " + "; ".join(told)


def _longest(found: dict[str, Found]) -> Iterator[str]:
    """The ten longest kernels of the first decoding that has a trace, two a line."""
    for size in SIZES:
        for case, value in found.get(f"decode-{size}", {}).items():
            if case.endswith(" trace"):
                yield ""
                yield f"longest kernels of decode {size} {case.removesuffix(' trace')}, us a step:"
                shown = [
                    f"{k['us']:8.1f} {k['share']:4.0%} {k['launches']:6.1f}x {k['kernel'][:34]:34}"
                    for k in value["longest"]
                ]
                yield from ("  ".join(shown[i : i + 2]).rstrip() for i in range(0, len(shown), 2))
                return


def _other(found: dict[str, Found]) -> Iterator[str]:
    first = found.get("first-token", {})
    times = [f"{k} {v['first token s']:.2f} s" for k, v in first.items() if isinstance(v, dict)]
    if times:
        yield "first token of 1B from process start: " + ", ".join(times)
    held = []
    for name, values in found.items():
        for case, value in values.items():
            memory = value.get("memory") if isinstance(value, dict) else None
            if memory and memory.get("peak"):
                ratio = memory["peak"] / memory["predicted"]
                held.append((memory["peak"], f"{name} {case} {ratio:.2f}"))
    if held:
        largest = [text for _, text in sorted(held, reverse=True)[:4]]
        yield "peak memory over what `memory` predicts: " + "; ".join(largest)


def _errors(steps: dict[str, Any]) -> Iterator[str]:
    for name, step in steps.items():
        parts = {k: v for k, v in step["found"].items() if k.endswith(": error")}
        yield from (f"ERROR {name}, {k.removesuffix(': error')}: {v}" for k, v in parts.items())
        if not parts and step.get("error"):
            yield f"ERROR {name} {step['status']}: {step['error'][-1]}"


def _best(peer: Found, case: str) -> float:
    """The faster of its two ways, in tokens a second; 0 where it has none."""
    both = (peer.get(case, {}), peer.get(f"{case} compiled", {}))
    return max(value.get("tokens/s", 0.0) for value in both)


def _bandwidth(card: Found) -> float:
    """The faster of copying and reading, in bytes a second."""
    names = ("copy bytes/s", "read bytes/s")
    return max((card[name]["median"] for name in names if name in card), default=0.0)


def _matrix(card: Found) -> float:
    rates = [value["median"] for name, value in card.items() if name.startswith("bfloat16 flop/s")]
    return max(rates, default=0.0)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value else ""


def _times(ms: dict[str, float]) -> str:
    return f"{ms['median']:.3g} ({ms['min']:.3g}-{ms['max']:.3g})"


def _part(one: float, whole: float) -> str:
    return f"{one / whole:.2f}" if whole else ""
