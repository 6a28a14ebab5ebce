"""A genuine seL4, or the stand-in: kernels that start our root task.

    abi              the numbers of a kernel's calls, and the block of a root task that holds them
    sdk              the same, from the SDK of whoever built the kernel
    kernel           a kernel made ready for QEMU
"""
