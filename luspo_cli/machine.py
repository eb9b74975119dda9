"""What this machine gives a process: its processor cores and memory, and whether there is a CUDA device."""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

_DEVICES = ("nvidia*", "nvhost*", "nvgpu*", "dxg", "kfd")
"""Names in /dev of what a CUDA (or ROCm) driver talks to; without any of them torch need not be asked, nor imported."""


MOST_PER_CORE = 4
"""Processes of one kind that a core is asked to carry: more of them only wait for one another, and fill the memory."""
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Where a container's or a job's memory limit stands (cgroup 2 and 1)."""
_AVX512 = {"avx512bw", "avx512dq", "avx512vl"}
"""What oneDNN needs of an x86 processor for products in bfloat16; newer ones have an instruction of their own."""
_LARGE = 2**24


def usable_cores() -> int:
    """The processor cores that this process may run on: in a container or a job, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """What the processor calls itself; where the system does not say, what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def memory_bytes() -> int:
    """The memory that processes here can have together: the machine's, or a container's limit where that is lower."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for file in _LIMITS:
        try:
            found.append(int(Path(file).read_text()))
        except (OSError, ValueError):  # not there, or no limit ("max")
            continue
    return min(found)


def has_cuda() -> bool:
    """Whether torch finds a CUDA device; imports torch only where a device is there."""
    if sys.platform == "linux" and not any(any(Path("/dev").glob(name)) for name in _DEVICES):
        return False
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products in bfloat16; without them they take up to a hundred times as long."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        import torch

        return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    kinds = ("flags", "Features")  # x86, ARM
    found = {word for line in lines if line.startswith(kinds) for word in line.split(":")[1].split()}
    return bool(found >= _AVX512 or found & {"avx_ne_convert", "bf16"})


def packs_float32(linear_weights: float) -> bool:
    """Whether a model with so many weights in linear layers samples faster in float32 from a packed copy of them.

    Below `_LARGE` they lie in the caches; on a processor that multiplies bfloat16 it was not measured.
    """
    return linear_weights >= _LARGE and not multiplies_bfloat16()


@contextmanager
def libraries_stay() -> Iterator[None]:
    """Around the first imports of large libraries: no garbage is looked for among objects that all stay, now or later.

    They are a million, and looking through them again and again takes a good part of a short command's start.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
