"""Whether the kernels that are asked for (`model.kernels`) are there and compute what a model does."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from luspo_cli.config.kernels import KernelsConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy.lean_layers import DENSE
from luspo_cli.policy.liger_head import check_liger
from luspo_cli.policy.logprobs import logit_cap
from luspo_cli.policy.supported import causal_only

SCALED_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of positions that depend on how long a row is."""


def check_kernels(kernels: KernelsConfig, model: Any, temperature: float) -> None:
    """UsageError where one of them is not there or would compute something else; `temperature` is that of the log-probs."""
    if kernels.head == "liger":
        check_liger(temperature, logit_cap(model))
    if kernels.attention == "varlen" and importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise UsageError(
            f"model.kernels.attention = varlen needs torch 2.10 or newer, not {torch.__version__}: set it to padded"
        )
    if kernels.decode == "graph" and (reason := graph_unfit(model)):
        raise UsageError(reason)


def graph_unfit(model: Any) -> str | None:
    """Say why a decode step of this model is no graph; None where it is one."""
    if steps_are_plain(model):
        return None
    return (
        f"model.kernels.decode = graph computes plain decoders ({', '.join(DENSE)}) that see every earlier token, and"
        f" this model ({model.config.model_type}) is none: set it to layers"
    )


def steps_are_plain(model: Any) -> bool:
    """Whether a decode step's operations depend on no number, and each row reads all of its columns."""
    if model.config.model_type not in DENSE:
        return False
    if not causal_only(model.config.to_dict()):  # which columns a window leaves out would be a constant
        return False
    rotary = getattr(model.model, "rotary_emb", None)
    return not any(kind in str(getattr(rotary, "rope_type", "")) for kind in SCALED_BY_LENGTH)
