"""Measures llama_jax against its peers, from a clone: `python tools/bench.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.command import main

main()
