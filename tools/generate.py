"""Generates text from a checkpoint, from a clone: `python tools/generate.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from llama_jax.cli import main

main(["generate", *sys.argv[1:]])
