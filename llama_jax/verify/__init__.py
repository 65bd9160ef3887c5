"""Two checkpoints compared, and both with LLaMA written a second time, in float64 NumPy."""
