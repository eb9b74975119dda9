"""vLLM's side of a weight push: a weight-transfer engine named `luspo`, entered through vLLM's own plug-in and registry.

vLLM 0.32 brings transfers for CUDA devices only (NCCL, CUDA IPC). This one takes tensors straight from a trainer in the same
process, or as bytes over TCP (`weight_stream`), and so works on any device and across machines. A server loads it by itself where
luspo is installed beside vLLM: `vllm serve MODEL --weight-transfer-config '{"backend": "luspo"}'`.

Loading goes through vLLM's layerwise reload, since a worker keeps weights fused and repacked. That reload passes over a
vocabulary head that is tied to the embeddings: on a CPU the head's packed copy would keep the weights that it started with, so
it is packed anew here. Experts on a CPU are packed only when their kernel is made, so that is made anew with every push.
(Seen with 0.32; tests push twice and compare log-probs.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from luspo_cli.rollout.vllm.handshake import PROTOCOL, shape_of
from luspo_cli.rollout.vllm.weight_stream import received_weights


@dataclass
class InitInfo(WeightTransferInitInfo):
    """The handshake: what the trainer speaks and what its model looks like."""

    protocol: int
    shape: Mapping[str, Any]


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One push: `weights` from this process, or `address` of a `WeightSender` with the names and shapes that it sends."""

    weights: Iterable[tuple[str, torch.Tensor]] | None = None
    address: dict[str, Any] | None = None
    names: list[str] | None = None
    shapes: list[list[int]] | None = None
    dtype: str = "float32"
    timeout_s: float = 600.0


class LuspoWeightTransfer(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Receives whole checkpoints, by reference or over TCP."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    _open = False
    """Whether an update was started and not finished: also after one that failed, of which vLLM itself keeps no note."""

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        """Refuse a trainer of another version or with another model; ValueError names the first difference."""
        if init_info.protocol != PROTOCOL:
            raise ValueError(
                f"luspo here speaks protocol {PROTOCOL}, the trainer {init_info.protocol}: install the same luspo on both sides"
            )
        for key, ours in shape_of(self.model_config.hf_config).items():
            theirs = init_info.shape.get(key)
            if theirs is not None and theirs != ours:
                raise ValueError(
                    f"the server's model has {key} {ours} and the trainer's {theirs}: serve the trainer's model"
                )

    def start_weight_update(self) -> None:
        if self._open:
            # Layers that a killed trainer left half loaded would be passed over, and go on counting where it stopped.
            finalize_layerwise_reload(self.model, self.model_config)
        self._open = True
        _forget_packed_experts(self.model)
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        weights = update_info.weights
        if weights is None:
            assert update_info.address is not None
            assert update_info.names is not None
            assert update_info.shapes is not None
            weights = received_weights(
                update_info.address, update_info.names, update_info.shapes, update_info.dtype, update_info.timeout_s
            )
        self.model.load_weights(weights)

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)
        language = getattr(self.model, "language_model", self.model)  # a vision model keeps it in a part of its own
        head = getattr(language, "lm_head", None)
        if head is not None and getattr(self.model_config.hf_config, "tie_word_embeddings", False):
            head.quant_method.process_weights_after_loading(head)
        self._open = False

    def shutdown(self) -> None:
        """Nothing is held between pushes."""


def _forget_packed_experts(model: torch.nn.Module) -> None:
    """Let the reload make the kernels of experts on a CPU again, and with them the layout that they read."""
    for layer in model.modules():
        method = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None and next(layer.parameters()).device.type == "cpu":
            method.moe_kernel = None  # type: ignore[union-attr]
