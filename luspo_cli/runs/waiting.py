"""Batches that wait to be trained (`rollout.lag`) as they lie in a checkpoint's trainer folder: exact, and without pickle.

`waiting.safetensors` has the tokens and log-probs of each batch end to end, `waiting.json` everything else and how long each
response is. Of a problem what nothing reads after its responses were scored (`extra`, images) is left out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from luspo_cli.errors import RunError
from luspo_cli.files import write_json
from luspo_cli.grading.verdict import DecidedBy, ReadFrom, Reason, Verdict
from luspo_cli.records import FunctionScore, Message, Problem, Reward, Rollout, ScoredGroup, StopReason

ARRAYS, REST = "waiting.safetensors", "waiting.json"
_TYPES = {"prompt": np.int32, "response": np.int32, "rollout_logprobs": np.float64, "old_logprobs": np.float32}


@dataclass(frozen=True, slots=True)
class WaitingBatch:
    """What was sampled at one step and trains at a later one."""

    step: int
    """The one at which it was sampled."""
    sampled: list[ScoredGroup]
    """All groups of that step, in sampling order."""
    batch: list[ScoredGroup]
    """Those that the update gets, in the same order, with their old log-probs; rollouts of a group may be masked."""


def store_waiting(folder: Path, batches: Sequence[WaitingBatch]) -> None:
    """Write the batches, oldest first; nothing where none waits."""
    from safetensors.numpy import save_file

    if not batches:
        return
    arrays = {
        f"{waiting.step}.{name}": np.array(values, dtype=_TYPES[name])
        for waiting in batches
        for name, values in _flat(waiting).items()
    }
    save_file(arrays, folder / ARRAYS)
    write_json(folder / REST, [_rest(waiting) for waiting in batches])


def read_waiting(folder: Path) -> list[WaitingBatch]:
    """What `store_waiting` wrote, oldest first; RunError where it cannot be read."""
    from safetensors.numpy import load_file

    if not (folder / REST).is_file():
        return []
    try:
        arrays, rest = load_file(folder / ARRAYS), json.loads((folder / REST).read_bytes())
        return [_waiting(one, arrays) for one in rest]
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise RunError(
            f"the batches that wait in {folder} cannot be read ({error}); go on from another checkpoint"
        ) from None


def _flat(waiting: WaitingBatch) -> dict[str, list[Any]]:
    """Every list of numbers of a batch, end to end."""
    rollouts = [rollout for group in waiting.sampled for rollout in group.rollouts]
    return {
        "prompt": [token for group in waiting.sampled for token in group.rollouts[0].prompt_tokens],
        "response": [token for rollout in rollouts for token in rollout.response_tokens],
        "rollout_logprobs": [value for rollout in rollouts for value in rollout.rollout_logprobs],
        "old_logprobs": [value for group in waiting.batch for row in group.old_logprobs or () for value in row],
    }


def _rest(waiting: WaitingBatch) -> dict[str, Any]:
    places = {id(rollout): place for group in waiting.sampled for place, rollout in enumerate(group.rollouts)}
    return {
        "step": waiting.step,
        "sampled": [
            {
                "problem": {
                    "id": group.problem.id,
                    "prompt": [asdict(turn) for turn in group.problem.prompt],
                    "answer": group.problem.answer,
                    "data_source": group.problem.data_source,
                },
                "prompt_tokens": len(group.rollouts[0].prompt_tokens),
                "rollouts": [
                    {
                        "response": rollout.response,
                        "stop_reason": str(rollout.stop_reason),
                        "thought_open": rollout.thought_open,
                        "response_tokens": rollout.response_length,
                        "rollout_logprobs": len(rollout.rollout_logprobs),
                        "reward": asdict(reward),
                        "advantage": advantage,
                    }
                    for rollout, reward, advantage in zip(group.rollouts, group.rewards, group.advantages, strict=True)
                ],
            }
            for group in waiting.sampled
        ],
        "batch": [
            {
                "group": number,
                "rollouts": [places[id(rollout)] for rollout in group.rollouts],
                "old_logprobs": [len(row) for row in group.old_logprobs or ()],
                "masked": list(group.masked),
            }
            for number, group in _numbered(waiting)
        ],
    }


def _numbered(waiting: WaitingBatch) -> Iterator[tuple[int, ScoredGroup]]:
    """Each group of the batch with its number among those sampled; both lists are in the same order."""
    numbers = iter(enumerate(waiting.sampled))
    for group in waiting.batch:
        yield next(number for number, sampled in numbers if _is_of(group, sampled)), group


def _is_of(group: ScoredGroup, sampled: ScoredGroup) -> bool:
    if group.rollouts:
        return any(rollout is group.rollouts[0] for rollout in sampled.rollouts)
    return group.problem is sampled.problem  # every one of its rollouts is masked


def _waiting(rest: Mapping[str, Any], arrays: Mapping[str, Any]) -> WaitingBatch:
    parts = {name: iter(arrays[f"{rest['step']}.{name}"].tolist()) for name in _TYPES}

    def taken(name: str, number: int) -> tuple[Any, ...]:
        return tuple(next(parts[name]) for _ in range(number))

    sampled = []
    for group in rest["sampled"]:
        own = group["problem"]
        turns = tuple(Message(**turn) for turn in own["prompt"])
        problem = Problem(own["id"], turns, own["answer"], own["data_source"])
        prompt = taken("prompt", group["prompt_tokens"])
        rollouts = tuple(
            Rollout(
                problem.id,
                prompt,
                taken("response", one["response_tokens"]),
                one["response"],
                StopReason(one["stop_reason"]),
                taken("rollout_logprobs", one["rollout_logprobs"]),
                one["thought_open"],
            )
            for one in group["rollouts"]
        )
        rewards = tuple(_reward(one["reward"]) for one in group["rollouts"])
        sampled.append(ScoredGroup(problem, rollouts, rewards, tuple(one["advantage"] for one in group["rollouts"])))
    batch = []
    for one in rest["batch"]:
        group = sampled[one["group"]]
        kept = one["rollouts"]
        batch.append(
            replace(
                group,
                rollouts=tuple(group.rollouts[place] for place in kept),
                rewards=tuple(group.rewards[place] for place in kept),
                advantages=tuple(group.advantages[place] for place in kept),
                old_logprobs=tuple(taken("old_logprobs", number) for number in one["old_logprobs"]),
                masked=tuple(one["masked"]),
            )
        )
    return WaitingBatch(rest["step"], sampled, batch)


def _reward(stored: Mapping[str, Any]) -> Reward:
    verdict = stored["verdict"]
    words = {"reason": Reason, "read_from": ReadFrom, "decided_by": DecidedBy}
    return Reward(
        **{
            **stored,
            "verdict": Verdict(**{**verdict, **{name: kind(verdict[name]) for name, kind in words.items()}}),
            "functions": {name: FunctionScore(**one) for name, one in stored["functions"].items()},
        }
    )
