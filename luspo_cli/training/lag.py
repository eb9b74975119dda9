"""`rollout.lag`: a batch sampled at step t trains at step t + lag, as where sampling and training run side by side.

    step t        sampled under the policy of t - 1 updates; its log-probs of every token are computed at once and wait with it
    step t + lag  trained: the ratios compare the policy of now with the one that sampled, and clips act from the first mini-batch

What waits belongs to the run's state and lies in each checkpoint (runs/waiting.py). Steps in which nothing is due move no
weight and no moment of the optimizer; the batches of the last steps are never trained, unless the run is made longer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch

from luspo_cli.errors import RunError
from luspo_cli.policy.packing import policy_batch
from luspo_cli.records import ScoredGroup
from luspo_cli.runs.waiting import WaitingBatch
from luspo_cli.training.update import Updater


class LagQueue:
    """The batches that wait, oldest first."""

    def __init__(self, lag: int, waiting: Sequence[WaitingBatch] = ()) -> None:
        """`waiting`: those of the checkpoint that the run goes on from."""
        self.lag = lag
        self._waiting = deque(waiting)

    @property
    def waiting(self) -> list[WaitingBatch]:
        return list(self._waiting)

    def exchange(self, step: int, sampled: list[ScoredGroup], batch: list[ScoredGroup]) -> WaitingBatch | None:
        """Put in what was sampled at `step`; what is due then, which without a lag is the same, or None."""
        self._waiting.append(WaitingBatch(step, sampled, batch))
        if step <= self.lag:
            return None
        due = self._waiting.popleft()
        if due.step != step - self.lag:
            raise RunError(
                f"step {step} should train the batch of step {step - self.lag}, and the oldest one that waits is that of step"
                f" {due.step}: the checkpoint is not one of a run with rollout.lag = {self.lag}"
            )
        return due


@torch.no_grad()
def with_old_logprobs(updater: Updater, groups: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """The batch with the policy's log-probs of now, computed in the passes in which the update will compute the new ones.

    All processes of a run call this together.
    """
    places = {id(one): (g, r) for g, group in enumerate(groups) for r, one in enumerate(group.rollouts)}
    own: dict[tuple[int, int], tuple[float, ...]] = {}
    for piece in updater.passes(groups, updater.ranks.rank):
        logprobs, _ = updater.policy(policy_batch(piece.rows, updater.accelerator.device))
        if piece.filler:
            continue  # another process's rows
        for row, values in zip(piece.rows, logprobs.float().tolist(), strict=True):
            own[places[id(row.rollout)]] = tuple(values[: row.rollout.response_length])
    known = {place: values for part in updater.ranks.gather(own) for place, values in part.items()}
    return [
        replace(group, old_logprobs=tuple(known.get((g, r), ()) for r in range(len(group.rollouts))))
        for g, group in enumerate(groups)
    ]
