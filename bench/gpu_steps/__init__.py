"""The steps of `bench/gpu.py`: each is a process that measures one thing on the card."""
