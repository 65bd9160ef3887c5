"""Measures llama_jax against its peers, from a clone: `python -m bench --help`."""

from bench.command import main

main()
