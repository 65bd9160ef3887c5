"""What `python -m bench.train` is made of."""
