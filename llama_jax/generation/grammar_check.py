"""A program of its own: compiles the grammar on its standard input, and prints what is wrong.

It runs alone, so that work without end can be ended: `python -I -S grammar_check.py SITE_PACKAGES`.
It imports nothing of ours. Where it is killed, the grammar is refused.
"""

import sys

SECONDS = 1
"""The processor time a grammar may take. Starting Python and the library takes a tenth of it."""
MEMORY = 1 << 30


def bound() -> None:
    """Bounds this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows; the parent's clock is all there is
        return
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def error_in(grammar: str) -> str:
    """Why a grammar of llguidance cannot be compiled, or begins with no byte; "" if it can."""
    from llguidance import LLMatcher, LLTokenizer

    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher.get_error()


if __name__ == "__main__":
    bound()
    sys.path.append(sys.argv[1])
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(error_in(sys.stdin.buffer.read().decode()))
