"""File formats, and how files are written: what no checkpoint has to itself.

The writers take tensors as `checkpoint.outgoing` has them; the readers know nothing of ours.
"""
