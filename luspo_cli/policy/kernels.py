"""Whether the kernels that are asked for (`model.kernels`) are there and compute what a model does."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from luspo_cli.config.kernels import KernelsConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy.liger_head import check_liger
from luspo_cli.policy.logprobs import logit_cap


def check_kernels(kernels: KernelsConfig, model: Any, temperature: float) -> None:
    """UsageError where one of them is not there or would compute something else; `temperature` is that of the log-probs.

    `decode` is looked at with the model's files (reading.py), before its weights are read.
    """
    if kernels.head == "liger":
        check_liger(temperature, logit_cap(model))
    if kernels.attention == "varlen" and importlib.util.find_spec("torch.nn.attention.varlen") is None:
        raise UsageError(
            f"model.kernels.attention = varlen needs torch 2.10 or newer, not {torch.__version__}: set it to padded"
        )
