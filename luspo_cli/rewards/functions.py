"""Rewards of one's own: Python functions that score rollouts in worker processes which can be killed (docs/own-reward.md).

Decided here: the training's own process never imports the user's file. A worker reads the signature, workers make the calls, so
that a file that hangs or ends its process costs one response (of a function that takes a group: one group) and never the run. A
failed call is paid `reward.function_failed_score`, counted, and said; a batch in which every call of a function
failed ends the run, for then the function is wrong and not the responses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

from luspo_cli.config.reward import RewardConfig, RewardFunction
from luspo_cli.errors import RunError, UsageError, nearest
from luspo_cli.function_path import parse_function_path, source_file
from luspo_cli.grading.grader import MOST_WORKERS
from luspo_cli.grading.pool import START_LIMIT_S, KillablePool
from luspo_cli.grading.tasks import Outcome, TasksUnderWay
from luspo_cli.grading.verdict import DecidedBy, ReadFrom, Reason, Verdict
from luspo_cli.machine import usable_cores
from luspo_cli.records import FunctionScore, Problem, Reward, Rollout
from luspo_cli.rewards.signature import GROUP_KEYWORDS, Signature

logger = logging.getLogger(__name__)

_WORKER = "luspo_cli.rewards.function_worker"
_RIGHT_PARTS = ("acc", "correct")
"""Parts by which a function says whether a response is right; the first is verl's."""
_ANSWER_TEXTS = ("pred", "extracted")
_OF_THE_CODE = ("NameError", "ImportError", "ModuleNotFoundError")
_NO_LIST = "and not a list of"
"""How errors of the code itself begin, and what is said of a function that takes a group and returns no list of its size."""
_ALWAYS_GIVEN = ("prompts", "completions", "completion_ids", "ground_truth", "data_source")
"""Columns of a group that a key of the data's `extra_info` does not replace."""


@dataclass(frozen=True, slots=True)
class Described:
    """A reward function as it was found: how it is called, and which file it is."""

    path: str
    signature: Signature
    file: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Written:
    """One response as a function gets it; what its sampler did not tell is None."""

    text: str
    tokens: tuple[int, ...] | None = None
    length: int | None = None
    truncated: bool | None = None

    @classmethod
    def of(cls, rollout: Rollout) -> Written:
        return cls(rollout.response, rollout.response_tokens, rollout.response_length, rollout.truncated)


def describe(functions: Sequence[RewardFunction], key: str = "reward.function") -> list[Described]:
    """Import every function in a worker and look at it; UsageError, with the key that names it, for one that cannot be used."""
    if not functions:
        return []
    for function in functions:
        path = parse_function_path(function.function)
        if path.is_file:
            try:
                source_file(path)
            except UsageError as error:
                raise UsageError(f"{key}: {error}") from None
    with KillablePool(f"{_WORKER}:describe", workers=1, timeout_s=START_LIMIT_S, memory_bytes=0) as pool:
        outcomes = pool.map([(function.function,) for function in functions])
    found = []
    for function, outcome in zip(functions, outcomes, strict=True):
        if not outcome.ok:
            how = f"took over {START_LIMIT_S:g} s" if outcome.timed_out else f"ended its process ({outcome.error})"
            raise UsageError(f"{key}: importing {function.function} {how}")
        if "error" in outcome.value:
            raise UsageError(f"{key}: {outcome.value['error']}")
        signature = Signature(**{entry.name: outcome.value[entry.name] for entry in fields(Signature)})
        found.append(Described(function.function, signature, outcome.value["file"], outcome.value["sha256"]))
    return found


class RewardFunctions:
    """The functions of one `RewardConfig` and their workers, which start with the first call."""

    def __init__(self, config: RewardConfig, key: str = "reward.function") -> None:
        """`key` is what messages call the place where the functions are named."""
        self._config, self._key = config, key
        self._limit = f"{key}_seconds" if key == "reward.function" else "its limit of seconds"
        self._pool: KillablePool | None = None

    @property
    def names(self) -> list[str]:
        return [one.name for one in self._config.function]

    @cached_property
    def described(self) -> list[Described]:
        """What was found; UsageError where a function cannot be used."""
        return describe(self._config.function, self._key)

    @property
    def called(self) -> Iterator[tuple[RewardFunction, Described]]:
        """The functions as they are configured and as they were found."""
        return zip(self._config.function, self.described, strict=True)

    def close(self) -> None:
        """End the workers; a later call starts new ones."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def check(self, problems: Sequence[Problem]) -> None:
        """UsageError where a function cannot be used, or wants a column that no problem has."""
        if reason := self.unmet(problems):
            raise UsageError(reason)

    def refuse_broken(self, problem: Problem) -> None:
        """UsageError where a function fails on a made group of two responses in a way that no response could have caused."""
        made = [Written(text, (), 0, False) for text in (problem.answer, "")]
        (scores,) = self.score_groups([problem], [made])
        for name in self.names:
            errors = [of_response[name].error for of_response in scores]
            if all(error.startswith(_OF_THE_CODE) or _NO_LIST in error for error in errors):
                raise UsageError(
                    f"{self._key}: '{name}' was called once for problem '{problem.id}' and fails whatever it is given:"
                    f" {errors[0]}; mend it, and start again"
                )

    def unmet(self, problems: Sequence[Problem]) -> str | None:
        """Say which column a function wants that no problem has; None where all are there."""
        columns = {key for problem in problems for key in problem.extra}
        for found in self.described:
            for name in found.signature.columns():
                if name not in columns:
                    known = sorted({*GROUP_KEYWORDS, *columns})
                    return (
                        f"{self._key}: {found.path} wants '{name}'{nearest(name, known)}, and the problems have"
                        f" {', '.join(known)}; give it a default, or add it to the data's extra_info"
                    )
        return None

    def score_groups(
        self, problems: Sequence[Problem], groups: Sequence[Sequence[Written]]
    ) -> list[list[dict[str, FunctionScore]]]:
        """[groups][responses] name → score; a failed call has `error`, and never raises.

        RunError where workers cannot be started, or a file was changed since it was first looked at.
        """
        calls = _Calls(self, problems, [len(group) for group in groups])
        for number, group in enumerate(groups):
            for place, written in enumerate(group):
                calls.add(number, place, written)
        return calls.scores(self._started().map(calls.tasks) if calls.tasks else [])

    def begin(self, problems: Sequence[Problem], group_size: int) -> ScoringUnderWay | None:
        """Score responses that come one by one, while something else goes on here; None without functions."""
        if not self._config.function:
            return None
        return ScoringUnderWay(_Calls(self, problems, [group_size] * len(problems)), self._started().begin(_is_sound))

    def total(self, scores: Mapping[str, FunctionScore]) -> float:
        """The weighted sum of the functions' scores; what a function left out adds nothing."""
        return sum(one.weight * (scores[one.name].score or 0.0) for one in self._config.function)

    def verdict(self, scores: Mapping[str, FunctionScore]) -> Verdict:
        """Right or wrong as the first function has it."""
        return verdict_of(scores[self.names[0]])

    def _started(self) -> KillablePool:
        if self._pool is None:
            self._pool = KillablePool(
                f"{_WORKER}:call",
                workers=self._config.workers or min(usable_cores(), MOST_WORKERS),
                timeout_s=self._config.function_seconds,
                memory_bytes=0,  # of address space: a library as torch takes more than any bound that would help
                setup=(f"{_WORKER}:load_all", [{one.path: one.sha256 for one in self.described}]),
            )
        return self._pool

    def scores_of(self, outcome: Outcome, responses: int) -> list[FunctionScore]:
        """What one call says of its responses, one that failed being paid as `reward.function_failed_score` has it."""
        if outcome.ok:
            scores: list[FunctionScore] = outcome.value
        else:
            limit = f"took longer than {self._limit} = {self._config.function_seconds:g}"
            error = limit if outcome.timed_out else f"ended its process ({outcome.error})"
            scores = [FunctionScore(None, error=error)] * responses
        paid = self._config.function_failed_score
        return [replace(score, score=paid) if score.error else score for score in scores]


def verdict_of(score: FunctionScore) -> Verdict:
    """What a function's score says of right and wrong: its part `acc` or `correct`, else whether the score is above 0."""
    answer = next((score.texts[name] for name in _ANSWER_TEXTS if name in score.texts), None)
    read_from = ReadFrom.NONE if answer is None else ReadFrom.GIVEN
    if score.error:
        return Verdict(answer, False, Reason.CRASHED, read_from, DecidedBy.FUNCTION)
    said = next((score.parts[name] for name in _RIGHT_PARTS if name in score.parts), score.score)
    right = said is not None and said > 0
    return Verdict(answer, right, Reason.FUNCTION if right else Reason.DIFFERENT, read_from, DecidedBy.FUNCTION)


class _Calls:
    """The calls that score groups of known sizes, as their responses come, in whatever order."""

    def __init__(self, functions: RewardFunctions, problems: Sequence[Problem], sizes: Sequence[int]) -> None:
        self.tasks: list[tuple[str, dict[str, Any], int | None]] = []
        self._functions, self._problems = functions, problems
        self._written: list[list[Written | None]] = [[None] * size for size in sizes]
        self._places: list[tuple[str, int, Sequence[int]]] = []

    def add(self, number: int, place: int, written: Written) -> None:
        """Add to `tasks` the calls that are due with this response of group `number`: its own, and the whole group's."""
        group, problem = self._written[number], self._problems[number]
        group[place] = written
        whole = [one for one in group if one is not None]
        for function, described in self._functions.called:
            if described.signature.called == "response":
                self.tasks.append((function.function, _response_call(described.signature, problem, written), None))
                self._places.append((function.name, number, [place]))
            elif len(whole) == len(group):
                arguments = _group_call(function, described.signature, problem, whole)
                self.tasks.append((function.function, arguments, len(group)))
                self._places.append((function.name, number, range(len(group))))

    def scores(self, outcomes: Sequence[Outcome]) -> list[list[dict[str, FunctionScore]]]:
        """[groups][responses] name → score, functions in their order, from one outcome a task."""
        names = self._functions.names
        found: list[list[dict[str, FunctionScore]]] = [[{} for _ in group] for group in self._written]
        for (name, number, responses), outcome in zip(self._places, outcomes, strict=True):
            for place, score in zip(responses, self._functions.scores_of(outcome, len(responses)), strict=True):
                found[number][place][name] = score
        return [[{name: own[name] for name in names} for own in group] for group in found]


class ScoringUnderWay:
    """Responses that are scored while others are still to come; to be collected before the functions' next call."""

    def __init__(self, calls: _Calls, tasks: TasksUnderWay) -> None:
        self._calls, self.tasks = calls, tasks

    def add(self, number: int, place: int, written: Written) -> None:
        """Begin with the calls that are due with this response of group `number`."""
        begun = len(self._calls.tasks)
        self._calls.add(number, place, written)
        if due := self._calls.tasks[begun:]:
            self.tasks.add(due)

    def collect(self) -> list[list[dict[str, FunctionScore]]]:
        """As `RewardFunctions.score_groups`, when all responses have come."""
        return self._calls.scores(self.tasks.collect())


def _is_sound(outcome: Outcome) -> bool:
    """Whether every score is the function's own: a failed call may have failed at its own time limit, on a busy machine."""
    return outcome.ok and not any(score.error for score in outcome.value)


def _response_call(signature: Signature, problem: Problem, written: Written) -> dict[str, Any]:
    """The arguments of a call for one response."""
    facts = {
        "id": problem.id,
        "response_length": written.length,
        "truncated": written.truncated,
        "images": [image.name for image in problem.images],
    }
    values = {
        "data_source": problem.data_source,
        "solution_str": written.text,
        "ground_truth": problem.answer,
        "extra_info": {**facts, **problem.extra},
    }
    return signature.chosen(values)


def _group_call(
    function: RewardFunction, signature: Signature, problem: Problem, group: Sequence[Written]
) -> dict[str, Any]:
    """The arguments of a call for a whole group."""
    prompt: Any = [{"role": turn.role, "content": turn.content} for turn in problem.prompt]
    completions: list[Any] = [written.text for written in group]
    if function.completions == "messages":
        completions = [[{"role": "assistant", "content": text}] for text in completions]
    else:
        prompt = "\n\n".join(turn.content for turn in problem.prompt)
    same = {"id": problem.id, "answer": problem.answer, **dict.fromkeys(signature.columns()), **problem.extra}
    own = {
        "prompts": [prompt] * len(group),
        "completions": completions,
        "completion_ids": [None if written.tokens is None else list(written.tokens) for written in group],
        "ground_truth": [problem.answer] * len(group),
        "data_source": [problem.data_source] * len(group),
        "response_length": [written.length for written in group],
        "truncated": [written.truncated for written in group],
    }
    columns = {key: [value] * len(group) for key, value in same.items() if key not in _ALWAYS_GIVEN}
    return signature.chosen({**own, **columns})


def refuse_always_failing(what: str, scores: Sequence[FunctionScore]) -> None:
    """RunError, which begins with `what`, where there are scores and every call failed."""
    errors = [score.error for score in scores if score.error]
    if errors and len(errors) == len(scores):
        raise RunError(f"{what} failed for all {len(scores)} responses, first: {errors[0]}; mend it, and start again")


class FailedCalls:
    """Looks at the rewards of a step: says once that calls of a function failed, and ends a run in which all of them did."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def look(self, where: str, rewards: Sequence[Reward], *, aloud: bool = True) -> None:
        """`rewards`: of the whole batch that `where` names. RunError, alike on every process, where every call of one failed."""
        for name in rewards[0].functions if rewards else ():
            scores = [reward.functions[name] for reward in rewards]
            refuse_always_failing(f"{where}: reward function '{name}'", scores)
            errors = [score.error for score in scores if score.error]
            if errors and aloud and name not in self._said:
                self._said.add(name)
                logger.warning(
                    f"{where}: reward function '{name}' failed for {len(errors)} of {len(rewards)} responses, first:"
                    f" {errors[0]}; they are paid reward.function_failed_score. Said once; reward/{name}/failed in"
                    " metrics.jsonl counts them"
                )
