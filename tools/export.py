"""Writes a checkpoint in others' formats, from a clone: `python tools/export.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_jax.cli import main

main(["export", *sys.argv[1:]])
