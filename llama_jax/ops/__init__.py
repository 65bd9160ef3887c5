"""LLaMA's arithmetic, written plainly: pure functions, arrays in and arrays out.

The model calls `norm`, `rope`, `swiglu` and the rules of `sampling` directly. It calls `attention`,
`linear`, `embedding`, top-k and top-p through `kernels`, which computes the same faster; here they
are the reference that tests compare with. To change attention in the model, change
`kernels/blockwise.py`, and `kernels/gpu.py` for a GPU.
"""
