"""Keep freed memory in the process while training."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Numbers of the parameters in glibc's malloc.h."""
KEPT_BYTES = 2**30
LARGEST_BYTES = 2**25
"""The most that glibc takes for a mapping threshold on 64 bits; larger tensors are mapped and returned as before."""


def keep_freed_memory() -> bool:
    """Let glibc keep memory that is freed, up to `KEPT_BYTES`, for what is allocated next; say whether it does.

    A training step allocates and frees the same large tensors again and again. By default each goes back to the kernel,
    which clears every page of it anew: a sixth of a step of ResNet-20 (docs/operator-search.md). Holds for the process
    until its end. Other C libraries have no such setting; nothing changes there.

    Reference: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(TRIM_THRESHOLD, KEPT_BYTES), mallopt(MMAP_THRESHOLD, LARGEST_BYTES)))
