"""verl's own way from a mini-batch to losses: its configuration, its `ppo_loss` on nested tensors, its split over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from peer_cases import Batch

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.peers import PeerSettings, verl_text


@lru_cache(maxsize=1)
def _base() -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=["actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"])


def composed(overrides: list[str]) -> Any:
    """verl's own configuration with the overrides, read by Hydra's grammar: a key that it does not have raises."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    config = deepcopy(_base())
    for override in OverridesParser.create().parse_overrides(overrides):
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def actor(settings: PeerSettings) -> Any:
    """verl's configuration of the actor with our overrides, as its workers get it."""
    from verl.utils.config import omega_conf_to_dataclass

    overrides = verl_text(type(settings)(settings.values)).split()
    return omega_conf_to_dataclass(composed(overrides).actor_rollout_ref.actor)


@dataclass
class Host:
    """verl's engine around one loss: micro-batches of nested tensors, each with the counts of the whole mini-batch."""

    actor: Any
    config: ObjectiveConfig
    batch: Batch
    rollout_weights: torch.Tensor | None = None
    sequences: int | None = None
    """N; None: the rows of the batch."""

    def micro_batch(self, rows: Sequence[int], ranks: int = 1) -> tuple[torch.Tensor, dict[str, Any]]:
        """`ppo_loss` of these rows."""
        from tensordict import TensorDict
        from verl.utils import tensordict_utils
        from verl.workers.utils.losses import ppo_loss

        batch, lengths = self.batch, [int(self.batch.lengths[row]) for row in rows]

        def nested(values: torch.Tensor) -> torch.Tensor:
            parts = [values[row, :length] for row, length in zip(rows, lengths, strict=True)]
            return torch.nested.as_nested_tensor(parts, layout=torch.jagged)

        def flat(values: torch.Tensor) -> torch.Tensor:
            """One value a token of prompt (one token) and response; a response token's stands at the token before it."""
            return torch.cat(
                [torch.cat([values[row, :n], values[row, :1] * 0]) for row, n in zip(rows, lengths, strict=True)]
            )

        width = batch.mask.shape[1]
        fields = {
            "prompts": torch.nested.as_nested_tensor(
                [torch.ones(1, dtype=torch.long) for _ in rows], layout=torch.jagged
            ),
            "responses": nested(torch.ones_like(batch.mask, dtype=torch.long)),
            "response_mask": nested(batch.mask.long()),
            "old_log_probs": nested(batch.old_logprobs),
            "advantages": nested(batch.advantages[:, None].expand(-1, width)),
            "ref_log_prob": nested(batch.ref_logprobs),
        }
        if self.rollout_weights is not None:
            fields["rollout_is_weights"] = nested(self.rollout_weights)
        data = TensorDict(fields, batch_size=len(rows))
        tensordict_utils.assign_non_tensor(
            data,
            dp_size=ranks,
            batch_num_tokens=int(batch.mask.sum()),
            global_batch_size=len(batch.mask) if self.sequences is None else self.sequences,
        )
        output = {"log_probs": flat(batch.logprobs)}
        if self.config.entropy_coefficient > 0:
            output["entropy"] = flat(batch.entropy)
        return ppo_loss(self.actor, output, data)

    def loss(self, size: int | None = None, ranks: int = 1) -> torch.Tensor:
        """Of the mini-batch: each rank sums its micro-batches of `size` rows, and gradients are averaged over ranks."""
        rows = list(range(len(self.batch.mask)))
        total = torch.zeros((), dtype=self.batch.logprobs.dtype)
        for rank in range(ranks):
            own = rows[rank::ranks]
            step = size or len(own)
            for start in range(0, len(own), step):
                total = total + self.micro_batch(own[start : start + step], ranks)[0] / ranks
        return total
