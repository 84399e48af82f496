"""GPU kernels in OpenAI's Triton language and what compiles them ahead of time, without a GPU.

One kernel a file; ``tiles/sm_XX.json`` holds the tile sizes of each architecture. Only the kernel files import triton,
so the tables can be read anywhere; compiling and interpreting run in the environment of ``requirements-kernels.txt``.
"""
