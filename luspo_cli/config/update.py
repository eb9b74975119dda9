"""The [update] section: how one batch of rollouts moves the weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from luspo_cli.config.base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class UpdateConfig(Section):
    """AdamW on mini-batches of whole groups; each mini-batch is one optimizer step."""

    mini_batches: int = Field(default=4, ge=1)
    """Optimizer steps a rollout batch; 1 is strictly on-policy and needs no old log-probs."""
    tokens_per_micro_batch: int = Field(default=16384, ge=1)
    """Padded tokens in one forward and backward pass. Changes memory and speed, never the result."""
    learning_rate: float = Field(default=1e-6, gt=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """After the ramp: hold, or decay towards 0 (linear) or 10 % (cosine), which a step after the last would have."""
    ramp_steps: int = Field(default=0, ge=0)
    """Training steps over which the learning rate grows from 0."""
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    """AdamW's decay rates of the gradient's mean and of its square."""
    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """`adamw-8bit` keeps AdamW's moments in 8 bits, a quarter of the memory (arXiv 2110.02861); needs the extra `adamw-8bit`."""
    moments: Literal["float32", "bfloat16", "8bit"] = "float32"
    """AdamW's moments in 8, 4 or 2 bytes a trained weight, on CPUs and GPUs (luspo_cli/training/moments.py). Fewer bytes are
    another arithmetic: weights stay close to float32 moments' and are not the same."""
    offload_optimizer: bool = False
    """On a GPU: keep AdamW's moments in the host's memory and step there; frees 8 bytes a trained weight and takes longer."""
    weight_decay: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of the gradient; 0: off."""
    spare_memory: bool = True
    """Hold the sampler's copy of the weights during rollouts alone, gradients during the update alone, one gradient of the head,
    and in bfloat16 passes no activation that a short computation gives again. The numbers are the same, the head's gradient up
    to the order of sums."""
    skip_rows_without_advantage: bool = True
    """Spare rows of groups without signal the forward and backward pass. The gradient is the same bit for bit."""
    stop_after_bad_steps: int = Field(default=3, ge=1)
    """The run stops with a diagnosis after this many optimizer steps in a row with a loss or gradient that is not finite."""
    noise_floor_every: int = Field(default=10, ge=0)
    """Training steps between measurements of `ratio/noise_floor`; 0: never."""
    exact_gradient_shares_every: int = Field(default=0, ge=0)
    """Training steps between exact measurements of the gradient's parts from right, wrong, short and long responses, which take
    four more passes over the batch each; 0: never, the estimate at the logits stands alone."""
    sampler_correction: Literal["none", "token", "sequence", "sequence-product"] = "none"
    """Weight the policy loss by how much likelier the trained policy makes what the sampler drew (truncated importance sampling,
    Yao et al. 2025): each token; each sequence by the geometric mean over its tokens, the same for any length; or by their
    product, which is exact and weighs long responses down or up. A loss with one number a sequence (gspo, luspo, gmpo) takes no
    token weights: they would change its length weight."""
    sampler_correction_cap: float = Field(default=2.0, ge=1)
    """Largest of these weights."""
    router_replay: Literal["none", "old", "rollout"] = "none"
    """Of a model of experts: each pass takes the experts that its routers choose (`none`), the update those of the old log-probs'
    pass (`old`; verl's R2), or old log-probs and update those that the sampler met (`rollout`; R3)."""
    router_aux_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the routers' load-balancing loss, whose loads are those of the whole mini-batch; 0: there is none."""

    def faults(self) -> Iterator[str]:
        if self.sampler_correction == "none" and self.changed("sampler_correction_cap"):
            yield (
                "update.sampler_correction_cap needs update.sampler_correction = token, sequence or sequence-product"
            )
        if self.router_replay == "old" and self.mini_batches == 1:
            yield "update.router_replay = 'old' changes nothing with update.mini_batches = 1, which has no old log-probs"
        if self.moments != "float32" and self.optimizer != "adamw":
            yield (
                f"update.moments = '{self.moments}' goes with update.optimizer = 'adamw' alone: '{self.optimizer}' has moments"
                " of its own"
            )
        if self.offload_optimizer and self.optimizer != "adamw":
            yield "update.offload_optimizer goes with update.optimizer = 'adamw' alone: 8-bit moments stay on the GPU"


def broken_groups(problems: int, mini_batches: int) -> Iterator[str]:
    """The fault of a batch whose groups do not divide into the mini-batches; none where they do."""
    if problems % mini_batches:
        yield (
            f"rollout.problems ({problems}) must be a multiple of update.mini_batches ({mini_batches}):"
            " a mini-batch holds whole groups"
        )
