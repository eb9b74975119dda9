"""Stored rollout batches: one parquet file a step, every number that the step's metrics were made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from luspo_cli.files import replacing, said_in_one_sentence
from luspo_cli.records import ScoredGroup


def store_rollouts(folder: Path, step: int, groups: Sequence[ScoredGroup], batch: Sequence[ScoredGroup]) -> None:
    """Write rollouts/step-NNNNNN.parquet, one row a rollout, whole or not at all; `batch` is what the update got of `groups`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    in_batch = {id(group.rollouts) for group in batch}  # a group may have let go of its images since
    rows = [
        {
            "problem_id": rollout.problem_id,
            "prompt": "\n\n".join(message.content for message in group.problem.prompt),
            "answer": group.problem.answer,
            "response": rollout.response,
            "extracted": reward.verdict.extracted,
            "status": reward.verdict.status,
            "reason": str(reward.verdict.reason),
            "read_from": str(reward.verdict.read_from),
            "decided_by": str(reward.verdict.decided_by),
            "reward": reward.total,
            "reward_accuracy": reward.accuracy,
            "reward_format": reward.format,
            "reward_overlong": reward.overlong,
            "advantage": advantage,
            "in_batch": id(group.rollouts) in in_batch,
            "response_length": rollout.response_length,
            "stop_reason": str(rollout.stop_reason),
            "thought_open": rollout.thought_open,
            "prompt_tokens": list(rollout.prompt_tokens),
            "response_tokens": list(rollout.response_tokens),
            "rollout_logprobs": list(rollout.rollout_logprobs),
        }
        for group in groups
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages, strict=True)
    ]
    final = folder / f"step-{step:06d}.parquet"
    with said_in_one_sentence(final), replacing(final) as stream:
        pq.write_table(pa.Table.from_pylist(rows), stream)
