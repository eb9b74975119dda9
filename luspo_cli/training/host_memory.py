"""Keep freed memory inside the process on CPU machines.

glibc returns every freed block above 32 MB to the system and asks for it again in the next pass, and each page of it then faults
in anew. The update allocates gigabytes a pass: keeping them made forward and backward of a 0.5B model about twice as fast here
(bench/host_memory.py). The price is that the process holds its peak until it ends.
"""

from __future__ import annotations

import ctypes
import resource
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; returns False where the C library has no such switch."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, _NEVER) and mallopt(_TOP_PAD, 64 * 2**20))


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
