"""The command `llama-jax`, and `python -m llama_jax`."""

import sys


def main() -> None:
    """Runs the command that `sys.argv` names."""
    try:  # imports take long enough for Ctrl-C
        from llama_jax.cli import main
        from llama_jax.cli.huge_pages import begin_with_huge_pages

        if sys.argv[1:2] == ["train"]:
            begin_with_huge_pages()
        main()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
