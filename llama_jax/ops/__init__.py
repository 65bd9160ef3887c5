"""The arithmetic of LLaMA: pure functions, arrays in and arrays out.

They say what is computed, plainly. `kernels` computes the same fast, and is tested against them.
"""
