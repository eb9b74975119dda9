"""Our grading as verl's reward function: `reward.custom_reward_function.path=pkg://luspo_cli.verl_plugin.reward`.

The verdict on a response is that of training's `Rubric`: the same code is called. verl's workers call `compute_score` from
several threads, one response a call, so a call takes a rubric of its own from a shelf and puts it back: a comparison that has to
be killed holds up nobody else. A comparison that ran out of time, or crashed, is wrong and counted under a key of its own.

verl does not tell a reward function how many tokens a response has, nor whether the limit cut it. So what needs to know is
refused here: the made tasks' verifier, and the overlong penalty, which verl's `dapo` reward manager adds.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from luspo_cli.config.reward import LENGTH_KEYS, RewardConfig
from luspo_cli.errors import UsageError, nearest
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.grader import MOST_WORKERS
from luspo_cli.grading.verdict import Reason
from luspo_cli.machine import usable_cores
from luspo_cli.rewards.rubric import Rubric

_NOT_OURS = ("reward_router_address", "reward_model_tokenizer")
"""What verl passes to a reward function beside a reward model."""
_SHELVES: dict[tuple[Any, ...], queue.LifoQueue[Rubric]] = {}
_LOCK = threading.Lock()
_ELSEWHERE = {
    **dict.fromkeys(
        ("function", "function_seconds", "function_failed_score"),
        "verl calls a function of your own itself: give it as reward.custom_reward_function",
    ),
    "overlong_buffer": "verl does not tell a reward function the length: use reward.reward_manager.name=dapo",
    "overlong_weight": "verl does not tell a reward function the length: use reward.reward_manager.name=dapo",
    **dict.fromkeys(
        (
            "truncated",
            "truncated_reward",
            *LENGTH_KEYS,
            "lazy_length_tolerance",
            *(f"cosine_length_{key}" for key in ("correct", "wrong", "at_limit")),
        ),
        "verl calls a reward function once a response, without its length and its group",
    ),
    "while_sampling": "verl calls it when a response is there",
    "workers": "a call judges one response; verl's reward.num_workers is how many run side by side",
}


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: Mapping[str, Any] | None = None,
    *,
    mark: str | None = None,
    thought_open: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """verl's reward of one decoded response: `score`, `acc`, and the parts that verl averages into metrics.

    `settings` are keys of our [reward] section; `mark` is the answer mark that the prompt asks for (without it the row's own
    `answer_mark`, else the box), `thought_open` whether the chat template opens a thought: all of them from verl's
    `reward.custom_reward_function.reward_kwargs`. UsageError for one that is not known or has no meaning here.
    """
    asked_for = mark or (extra_info or {}).get("answer_mark") or AnswerMark.BOX
    with borrowed({key: value for key, value in settings.items() if key not in _NOT_OURS}) as rubric:
        reward = rubric.score_text(
            solution_str, str(ground_truth), mark=_mark(asked_for), thought_open=bool(thought_open)
        )
    reason = reward.verdict.reason
    return {
        "score": reward.total,
        "acc": reward.accuracy,
        "format": reward.format,
        "no_answer": float(reason is Reason.NO_ANSWER),
        "grading_timeout": float(reason is Reason.TIMEOUT),
        "grading_crashed": float(reason is Reason.CRASHED),
        "pred": reward.verdict.extracted or "",
        "reason": str(reason),
    }


@contextmanager
def borrowed(settings: Mapping[str, Any]) -> Iterator[Rubric]:
    """A rubric that nobody else uses meanwhile; what is put back last is taken first, so that few start a worker process."""
    with _LOCK:
        key = tuple(sorted(settings.items()))
        if key not in _SHELVES:
            _SHELVES[key] = _shelf(_configured(settings))
        shelf = _SHELVES[key]
    rubric = shelf.get()
    try:
        yield rubric
    finally:
        shelf.put(rubric)


def _shelf(config: RewardConfig) -> queue.LifoQueue[Rubric]:
    shelf: queue.LifoQueue[Rubric] = queue.LifoQueue()
    for _ in range(max(2, min(usable_cores(), MOST_WORKERS))):
        shelf.put(Rubric(config, 0))
    return shelf


def _configured(settings: Mapping[str, Any]) -> RewardConfig:
    known = [field.name for field in fields(RewardConfig)]
    for key in settings:
        if key in _ELSEWHERE:
            raise UsageError(f"reward_kwargs.{key} has no effect here: {_ELSEWHERE[key]}.")
        if key not in known:
            raise UsageError(
                f"reward_kwargs.{key} is not known{nearest(key, known)}: use a key of luspo's [reward] section."
            )
    config = RewardConfig(**settings, workers=1)
    if config.verifier != "math":
        raise UsageError(
            f"reward_kwargs.verifier = '{config.verifier}' is not possible here: verl does not say how a response ended, and no "
            "function is called; leave it out, for math."
        )
    return config


def _mark(name: str) -> AnswerMark:
    try:
        return AnswerMark(name)
    except ValueError:
        raise UsageError(
            f"answer mark '{name}' is not known{nearest(name, list(AnswerMark))}: use one of {', '.join(AnswerMark)}."
        ) from None
