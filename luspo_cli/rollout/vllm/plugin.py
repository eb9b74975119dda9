"""The entry point of `vllm.general_plugins`: makes the weight transfer `luspo` known to every process of a vLLM engine.

Kept apart from the transfer itself: vLLM calls this in each process it starts, also where no weights are ever pushed.
"""

from __future__ import annotations

BACKEND = "luspo"


def register() -> None:
    """Register the transfer once; vLLM calls this again in processes that have it already."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, "luspo_cli.rollout.vllm.transfer", "LuspoWeightTransfer")
