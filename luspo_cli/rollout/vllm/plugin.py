"""The entry point of `vllm.general_plugins`: makes the weight transfer `luspo` known to every process of a vLLM engine, and
lets the vision models run where torchvision is missing.

Kept apart from the transfer itself: vLLM calls this in each process it starts, also where no weights are ever pushed.
"""

from __future__ import annotations

from importlib.util import find_spec

BACKEND = "luspo"
WITHOUT_TORCHVISION = {
    "Qwen2VLForConditionalGeneration": "Qwen2VL",
    "Qwen2_5_VLForConditionalGeneration": "Qwen2_5VL",
    "Qwen3VLForConditionalGeneration": "Qwen3VL",
}
"""Architectures that vLLM cannot import without torchvision, with the class in `images_only` that it can."""


def register() -> None:
    """Register the transfer once; vLLM calls this again in processes that have it already."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "luspo_cli.rollout.vllm.transfer", "LuspoWeightTransfer")
        if find_spec("torchvision") is None:
            from vllm import ModelRegistry

            for architecture, ours in WITHOUT_TORCHVISION.items():
                ModelRegistry.register_model(architecture, f"luspo_cli.rollout.vllm.images_only:{ours}")
