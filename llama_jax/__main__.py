"""The command `llama-jax`, and `python -m llama_jax`."""

import sys

from llama_jax.cli.huge_pages import begin_with_huge_pages


def main() -> None:
    """Runs the command that `sys.argv` names."""
    if sys.argv[1:2] == ["train"]:
        begin_with_huge_pages()
    from llama_jax.cli import main

    main()


if __name__ == "__main__":
    main()
