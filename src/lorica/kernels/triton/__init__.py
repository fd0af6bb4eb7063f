"""The ops of this room again as Triton kernels, for GPUs.  Nothing here is imported where triton is not installed.

Each file gives its op under the signature of the torch path beside it; `kernels/choice.py` says when it is taken.
Products and sums are accumulated in float32; float64 stays with torch.
"""
