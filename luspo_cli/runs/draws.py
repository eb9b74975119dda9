"""What a fork is handed from a sibling, in its folder's `start/`: rollouts of its first step and the held-out draws.

Both were drawn under the parent's weights, which all forks of a replicate have before their first update. A file of stored
rollouts has the columns that are read here, and more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.errors import UsageError, first_line
from luspo_cli.files import replacing, said_in_one_sentence
from luspo_cli.records import Rollout, StopReason

FIRST_STEP = Path("start") / "rollouts.parquet"
"""In a run folder: what its first step trains on, in the place of rollouts of its own."""
HELD_OUT = Path("start") / "held-out.parquet"
"""In a run folder: the parent's responses to the held-out problems, with their log-probs under the parent's weights."""

Groups = list[tuple[Rollout, ...]]


@dataclass(frozen=True, slots=True)
class ParentDraws:
    """The parent's responses to the held-out problems; the two lists run over all of them, group after group."""

    groups: Groups
    correct: list[float]
    """1 where the answer is right, 0 elsewhere."""
    logprobs: list[list[float]]
    """[response tokens] of each response under the parent's weights, as training computes them."""


def store_parent_draws(file: Path, draws: ParentDraws) -> None:
    """Write the draws, whole or not at all; RunError on a full disk."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rollouts = [rollout for group in draws.groups for rollout in group]
    rows = [
        {
            "problem_id": rollout.problem_id,
            "response": rollout.response,
            "stop_reason": str(rollout.stop_reason),
            "thought_open": rollout.thought_open,
            "prompt_tokens": list(rollout.prompt_tokens),
            "response_tokens": list(rollout.response_tokens),
            "rollout_logprobs": list(rollout.rollout_logprobs),
            "correct": correct,
            "parent_logprobs": logprobs,
        }
        for rollout, correct, logprobs in zip(rollouts, draws.correct, draws.logprobs, strict=True)
    ]
    with said_in_one_sentence(file), replacing(file) as stream:
        pq.write_table(pa.Table.from_pylist(rows), stream)


def read_rollouts(file: Path, group_size: int) -> Groups | None:
    """The groups in `file`, in order; None where there is no such file, UsageError where it cannot be read."""
    rows = _rows(file)
    return None if rows is None else _groups(rows, group_size, file)


def read_parent_draws(file: Path, group_size: int) -> ParentDraws | None:
    """What `store_parent_draws` wrote; None where there is no such file, UsageError where it cannot be read."""
    rows = _rows(file)
    if rows is None:
        return None
    groups = _groups(rows, group_size, file)
    try:
        return ParentDraws(groups, [row["correct"] for row in rows], [row["parent_logprobs"] for row in rows])
    except KeyError as error:
        raise _unreadable(file, error) from None


def _groups(rows: Sequence[Mapping[str, Any]], group_size: int, file: Path) -> Groups:
    try:
        rollouts = [
            Rollout(
                row["problem_id"],
                tuple(row["prompt_tokens"]),
                tuple(row["response_tokens"]),
                row["response"],
                StopReason(row["stop_reason"]),
                tuple(row["rollout_logprobs"]),
                row["thought_open"],
            )
            for row in rows
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(file, error) from None
    return [tuple(rollouts[first : first + group_size]) for first in range(0, len(rollouts), group_size)]


def _rows(file: Path) -> list[dict[str, Any]] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(file).to_pylist()
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(file, error) from None
    return rows


def _unreadable(file: Path, error: Exception) -> UsageError:
    return UsageError(f"{file} cannot be read ({first_line(error)}); move the run away and fork again")
