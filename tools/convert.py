"""Converts a checkpoint to a native one, from a clone: `python tools/convert.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_jax.cli import main

main(["convert", *sys.argv[1:]])
