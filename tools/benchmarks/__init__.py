"""What `tools/bench.py` measures with: models on disk, contestants, rounds, tables."""
