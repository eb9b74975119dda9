"""What this machine gives a process: its processor cores, and whether there is a CUDA device."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
"""Names in /dev of what a CUDA (or ROCm) driver talks to; without any of them torch need not be asked, nor imported."""


def usable_cores() -> int:
    """The processor cores that this process may run on: in a container or a job, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_cuda() -> bool:
    """Whether torch finds a CUDA device; imports torch only where a device is there."""
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in _DEVICES):
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()
