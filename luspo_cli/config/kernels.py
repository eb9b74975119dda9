"""The [model.kernels] section: what a GPU can compute by other code than this program's own."""

from __future__ import annotations

from typing import Literal

from luspo_cli.config.base import Section


class KernelsConfig(Section):
    """Kernels in place of this program's own functions. Each changes speed and memory, and the last bits of results. All are off
    until they were measured on a GPU (docs/engine.md)."""

    attention: Literal["padded", "varlen"] = "padded"
    """Of training passes: rows padded to blocks of about one length, or end to end by torch's `varlen_attn`."""
    head: Literal["blocks", "liger"] = "blocks"
    """Of log-probs: blocks of the vocabulary by plain operations, or where no entropy is in the way Liger's fused linear
    cross-entropy. Needs the extra `liger` and a GPU."""
    decode: Literal["layers", "graph"] = "layers"
    """Of the in-process sampler: a decode step's kernels one by one, or replayed as a CUDA graph."""


KERNEL_KEYS = tuple(f"model.kernels.{name}" for name in KernelsConfig.model_fields)
