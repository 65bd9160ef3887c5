"""A program of its own: compiles the grammar on its standard input, and prints what is wrong.

It runs alone, so that work without end can be ended:

    python -I -S grammar_check.py SITE_PACKAGES SECONDS BYTES

It imports nothing of ours. Where it is killed, the grammar is refused.
"""

import sys


def bound(seconds: int, memory: int) -> None:
    """Bounds this process, where the system can: its processor time, and its bytes."""
    try:
        import resource
    except ImportError:  # Windows; the parent's clock is all there is
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def error_in(grammar: str) -> str:
    """Why a grammar of llguidance cannot be compiled, or begins with no byte; "" if it can."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


if __name__ == "__main__":
    place, *bounds = sys.argv[1:]
    bound(*map(int, bounds))
    sys.path.append(place)
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(error_in(sys.stdin.buffer.read().decode()))
