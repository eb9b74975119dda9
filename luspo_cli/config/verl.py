"""The [verl] section: how verl spreads a run over GPUs and nodes; read with `--engine verl` (`run.engine = 'verl'`) alone.

What the other sections say (model, data, sampling, rewards, budget) holds for both engines; docs/verl.md has verl's key for each.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from luspo_cli.config.base import Section


class MegatronConfig(Section):
    """Shares of the model in Megatron; read with `verl.strategy = 'megatron'`."""

    tensor_parallel: int = Field(default=1, ge=1)
    pipeline_parallel: int = Field(default=1, ge=1)
    context_parallel: int = Field(default=1, ge=1)
    expert_parallel: int = Field(default=1, ge=1)
    expert_tensor_parallel: int = Field(default=1, ge=1)


class VerlConfig(Section):
    """Nodes, sharding and sampling engine of a run in verl."""

    required: bool = False
    """The model does not fit our own engine: only `--engine verl` trains it."""
    nodes: int = Field(default=1, ge=1)
    gpus_per_node: int = Field(default=8, ge=1)
    strategy: Literal["fsdp", "fsdp2", "megatron"] = "fsdp2"
    """Who shares out the policy; megatron needs Megatron-LM and mbridge in verl's environment."""
    loss: Literal["plugin", "stock"] = "plugin"
    """The objective's loss: ours, which the plug-in registers in verl, or verl's own with the settings of `luspo objectives`."""
    offload_parameters: bool = False
    """Keep the policy's weights in the host's memory while the sampler works."""
    offload_optimizer: bool = False
    """Likewise AdamW's moments; `update.offload_optimizer` asks for it too."""
    sequence_parallel: int = Field(default=1, ge=1)
    """GPUs that share one sequence (Ulysses), with FSDP."""
    megatron: MegatronConfig = MegatronConfig()
    rollout: Literal["vllm", "sglang", "trtllm"] = "vllm"
    """verl's sampling engine."""
    rollout_tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that share one copy of the model while sampling."""
    rollout_memory_share: float = Field(default=0.0, ge=0, lt=1)
    """Share of each GPU's memory for the sampling engine; 0: `rollout.vllm.memory_share`."""
    chunked_prefill: bool = True
    """Whether the sampling engine splits long prompts."""
    fused_kernels: bool = False
    """verl's fused head and log-prob kernels."""
    logprob_tokens_per_micro_batch: int = Field(default=0, ge=0)
    """Tokens of one pass without gradients, a GPU; 0: `update.tokens_per_micro_batch`."""
    overrides: tuple[str, ...] = Field(default=(), strict=False)
    """Further settings in verl's own spelling, `key=value` or `+key=value`; a key that the preset decides is refused."""

    @field_validator("overrides")
    @classmethod
    def _assignments(cls, overrides: tuple[str, ...]) -> tuple[str, ...]:
        for override in overrides:
            if not override.lstrip("+~").partition("=")[0].strip() or "=" not in override:
                raise ValueError(f"verl.overrides wants key=value as verl spells it, not '{override}'")
        return overrides

    def faults(self) -> Iterator[str]:
        for key in self.megatron.changed(*MegatronConfig.model_fields) if self.strategy != "megatron" else ():
            yield f"verl.megatron.{key} needs verl.strategy = 'megatron'; '{self.strategy}' does not read it"
        if self.strategy == "megatron" and self.sequence_parallel > 1:
            yield "verl.sequence_parallel is for FSDP: with verl.strategy = 'megatron' set verl.megatron.context_parallel"

    @property
    def gpus(self) -> int:
        """GPUs of all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def gpus_per_copy(self) -> int:
        """GPUs that work on the same rows: the others, in so many groups, are data-parallel."""
        if self.strategy != "megatron":
            return self.sequence_parallel
        shares = self.megatron
        return shares.tensor_parallel * shares.pipeline_parallel * shares.context_parallel
