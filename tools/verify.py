"""Compares checkpoints, from a clone: `python tools/verify.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_jax.cli import main

main(["verify", *sys.argv[1:]])
