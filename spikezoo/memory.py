"""Keeps freed memory for the next allocation of the process, instead of giving it back.

A training step allocates and frees the same hundreds of megabytes again and again. By default
glibc returns each large block to the system, which then clears it page by page for the next step.
"""

from __future__ import annotations

import ctypes
import os

VARIABLE = "SPIKEZOO_KEEP_MEMORY"
# mallopt's parameters, from glibc's <malloc.h>.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed() -> bool:
    """Sets it for this process; whether it is set now. `SPIKEZOO_KEEP_MEMORY=0` leaves it alone.

    For a process of our own only: a library must not change how its host allocates.
    """
    if os.environ.get(VARIABLE) == "0":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    no_mmap = mallopt(M_MMAP_MAX, 0)  # no block of its own for a large tensor
    no_trim = mallopt(M_TRIM_THRESHOLD, -1)  # never give back the end of the heap
    pad = mallopt(M_TOP_PAD, 64 * 2**20)  # grow by this much at once
    return bool(no_mmap and no_trim and pad)
