"""What the process has taken of the machine's memory."""

from __future__ import annotations

import resource
import sys


def peak_memory_gib() -> float:
    """Largest resident size of this process so far, in GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**30 if sys.platform == "darwin" else peak / 2**20
