"""Stored responses: rollout batches, one parquet file a step with every number that the step's metrics were made from, and the
answers of each held-out evaluation without their text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from luspo_cli.files import replacing, said_in_one_sentence
from luspo_cli.records import FunctionScore, Problem, Reward, Rollout, RowUpdate, ScoredGroup


@dataclass(frozen=True, slots=True)
class HeldOutAnswer:
    """What is kept of one held-out response: enough for votes, for lengths by outcome and for accuracy at equal length."""

    problem_id: str
    sample: int
    """Counted from 0 within its problem."""
    extracted: str | None
    status: str
    response_length: int
    """In tokens, the end-of-sequence token included."""
    stop_reason: str
    functions: Mapping[str, FunctionScore] = field(default_factory=dict)
    """What own reward functions said of it."""

    @classmethod
    def of(cls, sample: int, rollout: Rollout, reward: Reward) -> Self:
        """The answer of response number `sample` of its problem."""
        verdict = reward.verdict
        return cls(
            rollout.problem_id,
            sample,
            verdict.extracted,
            verdict.status,
            rollout.response_length,
            str(rollout.stop_reason),
            reward.functions,
        )


def step_file(folder: Path, step: int) -> Path:
    """Where the responses of `step` are, or will be, in a folder of them."""
    return folder / f"step-{step:06d}.parquet"


def store_rollouts(
    folder: Path,
    step: int,
    groups: Sequence[ScoredGroup],
    batch: Sequence[ScoredGroup],
    updates: Sequence[RowUpdate | None] | None = None,
) -> None:
    """Write rollouts/step-NNNNNN.parquet, one row a rollout, whole or not at all.

    `batch` is what the update got of `groups`, and `updates` what it did with the batch's rollouts, group after group; without
    them (an update that failed) the columns that tell of it are left out.
    """
    in_batch = {id(rollout) for group in batch for rollout in group.rollouts}  # of groups some rollouts may be masked
    of_rollouts = dict(zip((id(rollout) for group in batch for rollout in group.rollouts), updates or (), strict=False))
    rows = [
        {
            **judged_columns(group.problem, rollout, reward),
            "reward": reward.total,
            "reward_accuracy": reward.accuracy,
            "reward_format": reward.format,
            "reward_overlong": reward.overlong,
            **{f"reward_{name}": value for name, value in reward.lengths.items()},
            **_of_functions(reward.functions),
            "advantage": advantage,
            "in_batch": id(rollout) in in_batch,
            "response_length": rollout.response_length,
            "stop_reason": str(rollout.stop_reason),
            "thought_open": rollout.thought_open,
            "prompt_tokens": list(rollout.prompt_tokens),
            "response_tokens": list(rollout.response_tokens),
            "rollout_logprobs": list(rollout.rollout_logprobs),
            **(_of_update(of_rollouts.get(id(rollout))) if updates is not None else {}),
        }
        for group in groups
        for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages, strict=True)
    ]
    functions = [f"reward_{name}" for group in groups[:1] for name in group.rewards[0].functions]
    store_rows(folder, step, rows, functions if updates is None else [*functions, *_of_update(None)])


def judged_columns(problem: Problem, rollout: Rollout, reward: Reward) -> dict[str, Any]:
    """The columns of a response, its problem and its verdict, which every trainer's rollouts have."""
    verdict = reward.verdict
    return {
        "problem_id": rollout.problem_id,
        "prompt": "\n\n".join(message.content for message in problem.prompt),
        "answer": problem.answer,
        "response": rollout.response,
        "extracted": verdict.extracted,
        "status": verdict.status,
        "reason": str(verdict.reason),
        "read_from": str(verdict.read_from),
        "decided_by": str(verdict.decided_by),
    }


def store_held_out(folder: Path, step: int, answers: Sequence[HeldOutAnswer]) -> None:
    """Write step-NNNNNN.parquet, one row a response to a held-out problem, whole or not at all."""
    rows = [asdict(answer) for answer in answers]
    for row, answer in zip(rows, answers, strict=True):
        del row["functions"]
        row |= _of_functions(answer.functions)
    store_rows(folder, step, rows, ["extracted", *(f"reward_{name}" for name in answers[0].functions)])


def _of_functions(functions: Mapping[str, FunctionScore]) -> dict[str, Any]:
    """The columns of own reward functions: the score of each, and everything that they said as JSON; none without functions."""
    if not functions:
        return {}
    scores = {f"reward_{name}": one.score for name, one in functions.items()}
    return {**scores, "reward_functions": json.dumps({name: asdict(one) for name, one in functions.items()})}


def store_rows(folder: Path, step: int, rows: list[dict[str, Any]], maybe_null: Sequence[str] = ()) -> None:
    """Write step-NNNNNN.parquet, one row a response, whole or not at all.

    `maybe_null`: columns that may hold nulls alone, and would have no type then."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {"mini_batch": pa.int64(), "token_log_ratios": pa.list_(pa.float32()), "extracted": pa.string()}
    types["experts_changed"] = pa.list_(pa.int16())
    table = pa.Table.from_pylist(rows)
    for column in maybe_null:
        place = table.schema.get_field_index(column)
        table = table.set_column(place, column, table[column].cast(types.get(column, pa.float64())))
    final = step_file(folder, step)
    with said_in_one_sentence(final), replacing(final) as stream:
        pq.write_table(table, stream)


def _of_update(row: RowUpdate | None) -> dict[str, Any]:
    """The columns that tell what the update did with a rollout; null where it did not compute it."""
    if row is None:
        return dict.fromkeys(RowUpdate.__slots__)
    lists = {"token_log_ratios": list(row.token_log_ratios), "experts_changed": list(row.experts_changed)}
    return {name: getattr(row, name) for name in RowUpdate.__slots__} | lists
