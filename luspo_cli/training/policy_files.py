"""What of the policy a checkpoint holds: a plain Hugging Face folder, or of a LoRA run the adapter alone.

An adapter's folder is peft's own form (configuration, weights, tokenizer), a hundredth of the model's size; it names its base
model. `luspo merge` makes a plain folder of the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from luspo_cli.policy.adapters import has_adapters
from luspo_cli.policy.lora import save_adapter

MODEL, ADAPTER = "model", "adapter"


def save_policy(checkpoint: Path, model: Any, tokenizer: Any, state: Mapping[str, Tensor] | None = None) -> None:
    """Write `adapter/` where `model` has adapters, else `model/`; with the tokenizer or processor.

    `state`: the weights of a model of which this process holds a share only.
    """
    if has_adapters(model):
        folder = checkpoint / ADAPTER
        folder.mkdir()
        save_adapter(model, folder)
    else:
        folder = checkpoint / MODEL
        given = {} if state is None else {"state_dict": state}
        model.save_pretrained(folder, safe_serialization=True, **given)
    tokenizer.save_pretrained(folder)


def policy_folder(checkpoint: Path) -> Path:
    """Where a checkpoint's policy is: its model folder, or its adapter's."""
    adapter = checkpoint / ADAPTER
    return adapter if adapter.is_dir() else checkpoint / MODEL
