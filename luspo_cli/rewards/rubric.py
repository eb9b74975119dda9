"""From a rollout to its reward: the weighted sum of accuracy, format, length terms and own functions, with the breakdown kept.

Decided here: a truncated rollout is judged like any other. If it wrote a complete final answer before the limit cut it,
that answer counts; cut inside its box or its thought, it has no answer. What it is paid is decided by the terms, or by
`reward.truncated = "penalise"` in their place. The made tasks (`verifier = "exact"`) differ: there the end of the sequence is
part of the answer. The problem's own prompt says where the answer is looked for first, as in `luspo eval` (docs/grading.md).
Whoever wants the plain function of one response takes `score_text`.

Grading may begin while other responses are still sampled (`begin`): what a worker has to do for a response, a call of one's own
functions or a long comparison, is then given to it at once. The rewards are those of grading afterwards, which is what
`score_groups` does: whatever fails meanwhile is done again at the end (grading/tasks.py). With functions of one's own their
calls alone go ahead; the verifier's comparisons follow them, so that neither takes the cores from the other's time limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Self

from luspo_cli.config.reward import LENGTH_KEYS, RewardConfig
from luspo_cli.errors import UsageError
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.grading.grader import Grader, Response
from luspo_cli.grading.majority import answer_key_of
from luspo_cli.grading.prompts import mark_of_prompt
from luspo_cli.grading.tasks import TasksUnderWay
from luspo_cli.grading.verdict import Verdict
from luspo_cli.machine import has_cuda
from luspo_cli.records import FunctionScore, Problem, Reward, Rollout
from luspo_cli.rewards.exact import score_exact
from luspo_cli.rewards.functions import FailedCalls, RewardFunctions, Written
from luspo_cli.rewards.lengths import length_terms
from luspo_cli.rewards.shaping import format_reward, overlong_penalty


class Rubric:
    """Scores rollouts with one `RewardConfig`; holds worker processes, so close it or use it in a `with`."""

    def __init__(self, config: RewardConfig, max_response_tokens: int) -> None:
        """`max_response_tokens` is the limit that the overlong term refers to."""
        if config.overlong_buffer >= max_response_tokens > 0:
            raise UsageError(
                f"reward.overlong_buffer is {config.overlong_buffer} tokens, but a response may have only "
                f"{max_response_tokens}: choose a smaller buffer, or 0 to switch the penalty off."
            )
        self._config = config
        self._limit = max_response_tokens
        self._grader = Grader(workers=config.workers, timeout_s=config.timeout_s)
        self._functions = RewardFunctions(config)
        self.look = FailedCalls().look
        """Given the rewards of a whole batch: says once that calls of own functions failed, and raises where all did."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the worker processes."""
        self._grader.close()
        self._functions.close()

    def score(self, problems: Sequence[Problem], rollouts: Sequence[Rollout]) -> list[Reward]:
        """Return one reward a rollout; `problems[i]` is rollout i's. Each is a group by itself where a group is asked about."""
        pairs = list(zip(problems, rollouts, strict=True))
        return [reward for (reward,) in self.score_groups(problems, [(rollout,) for _, rollout in pairs])]

    def score_groups(
        self, problems: Sequence[Problem], groups: Sequence[Sequence[Rollout]]
    ) -> list[tuple[Reward, ...]]:
        """Return the rewards of every group's rollouts; `groups[i]` are the rollouts of `problems[i]`. One batch of checks."""
        for problem, rollout in _pairs(problems, groups):
            _refuse_other(problem, rollout)
        written = [[Written.of(rollout) for rollout in group] for group in groups]
        scores = [own for group in self._functions.score_groups(problems, written) for own in group]
        return self._rewards(problems, groups, scores)

    @property
    def grades_while_sampling(self) -> bool:
        """Whether there is something to `begin` with, and `reward.while_sampling` has it so: by default where there is a GPU."""
        asked = self._config.while_sampling
        any_work = bool(self._functions.names) or self._config.verifier == "math"
        return any_work and (has_cuda() if asked is None else asked)

    @contextmanager
    def begin(self, problems: Sequence[Problem], group_size: int) -> Iterator[GradingUnderWay]:
        """Grade rollouts as they come within the block; one that fails ends the workers."""
        grading = GradingUnderWay(self, problems, group_size)
        try:
            yield grading
        except BaseException:
            grading.cancel()
            raise

    def _rewards(
        self,
        problems: Sequence[Problem],
        groups: Sequence[Sequence[Rollout]],
        scores: Sequence[Mapping[str, FunctionScore]],
        verdicts: Sequence[Verdict] | None = None,
    ) -> list[tuple[Reward, ...]]:
        """The rewards of every group, from the functions' scores of each rollout; `verdicts` where they were given already."""
        pairs = _pairs(problems, groups)
        if verdicts is None:
            verdicts = self._judge([problem for problem, _ in pairs], [rollout for _, rollout in pairs], scores)
        lengths = iter(self._length_terms(groups, verdicts))
        rewards = iter(
            self._reward(
                one.response, one.response_length, one.truncated, one.thought_open, verdict, own, next(lengths)
            )
            for (_, one), verdict, own in zip(pairs, verdicts, scores, strict=True)
        )
        return [tuple(next(rewards) for _ in group) for group in groups]

    def score_text(
        self,
        response: str,
        gold: str,
        *,
        mark: AnswerMark = AnswerMark.BOX,
        length: int = 0,
        truncated: bool = False,
        thought_open: bool = False,
    ) -> Reward:
        """Return the reward of one decoded response; `length` in tokens, for the overlong term only.

        Functions of one's own take whole problems, and length terms whole groups: with them it is `score_groups`.
        """
        if self._functions.names or any(getattr(self._config, key) for key in LENGTH_KEYS):
            raise ValueError("reward.function and length terms score groups of rollouts: use Rubric.score_groups")
        if self._config.verifier == "exact":
            verdict = score_exact(response, gold, ended=not truncated)
        else:
            (verdict,) = self._grader.judge([Response(response, gold, mark, thought_open)])
        return self._reward(response, length, truncated, thought_open, verdict, {}, {})

    def check_golds(self, problems: Sequence[Problem]) -> list[str]:
        """Return the ids of problems whose gold answer no response can match: empty, or not readable as mathematics."""
        golds = [problem.answer for problem in problems]
        if self._config.verifier == "function":
            return []
        if self._config.verifier == "exact":
            unreadable = [not gold or "#" in gold for gold in golds]
        else:
            unreadable = self._grader.unreadable(golds)
        return [problem.id for problem, bad in zip(problems, unreadable, strict=True) if bad]

    def check_functions(self, problems: Sequence[Problem]) -> None:
        """UsageError where a function of one's own cannot be imported or called for these problems; the first one is tried."""
        self._functions.check(problems)
        if problems and self._functions.names:
            self._functions.refuse_broken(problems[0])

    def answer_key(self, extracted: str) -> str:
        """Return a key that equal answers share, for maj@k."""
        return answer_key_of(self._config.verifier)(extracted)

    def _judge(
        self,
        problems: Sequence[Problem],
        rollouts: Sequence[Rollout],
        scores: Sequence[Mapping[str, FunctionScore]],
    ) -> list[Verdict]:
        if self._config.verifier == "function":
            return [self._functions.verdict(own) for own in scores]
        if self._config.verifier == "exact":
            return [
                score_exact(rollout.response, problem.answer, ended=not rollout.truncated)
                for problem, rollout in zip(problems, rollouts, strict=True)
            ]
        marks = {problem.id: _mark(problem) for problem in {problem.id: problem for problem in problems}.values()}
        responses = [_response(*pair, marks[pair[0].id]) for pair in zip(problems, rollouts, strict=True)]
        return self._grader.judge(responses)

    def _length_terms(self, groups: Sequence[Sequence[Rollout]], verdicts: Sequence[Verdict]) -> list[dict[str, float]]:
        """The length terms of every rollout, group after group."""
        of_rollouts, found = iter(verdicts), []
        for group in groups:
            lengths, cut = [one.response_length for one in group], [one.truncated for one in group]
            correct = [next(of_rollouts).correct for _ in group]
            found += length_terms(self._config, self._limit, lengths, cut, correct)
        return found

    def _reward(
        self,
        response: str,
        length: int,
        truncated: bool,
        thought_open: bool,
        verdict: Verdict,
        functions: Mapping[str, FunctionScore],
        lengths: Mapping[str, float],
    ) -> Reward:
        config = self._config
        accuracy = float(verdict.correct)
        form = format_reward(response, config.format, thought_open=thought_open)
        overlong = overlong_penalty(length, self._limit, config.overlong_buffer, truncated=truncated)
        task = (config.accuracy_weight or 0.0) * accuracy + config.format_weight * form
        task += self._functions.total(functions) if functions else 0.0
        punished = truncated and config.truncated == "penalise"
        added = {name: value for name, value in lengths.items() if name != "gr3"}
        return Reward(
            total=config.truncated_reward
            if punished
            else lengths.get("gr3", 1.0) * task
            + config.overlong_weight * overlong
            + sum(getattr(config, f"{name}_weight") * value for name, value in added.items()),
            accuracy=accuracy,
            format=form,
            overlong=overlong,
            verdict=verdict,
            functions=functions,
            lengths=lengths,
        )


class GradingUnderWay:
    """Rollouts that are graded while others are still sampled; see `Rubric.begin`. One call at a time."""

    def __init__(self, rubric: Rubric, problems: Sequence[Problem], group_size: int) -> None:
        self._rubric, self._problems, self._size = rubric, problems, group_size
        self._scoring = rubric._functions.begin(problems, group_size)
        judges = self._scoring is None and rubric._config.verifier == "math"
        self._judging = rubric._grader.begin() if judges else None
        self._marks = [_mark(problem) for problem in problems] if judges else []
        self._known: dict[int, Rollout] = {}

    def add(self, row: int, rollout: Rollout) -> None:
        """Begin with one rollout, in row `row` of all: group number * group_size + its place there."""
        number, place = divmod(row, self._size)
        problem = self._problems[number]
        _refuse_other(problem, rollout)
        self._known[row] = rollout
        if self._scoring:
            self._scoring.add(number, place, Written.of(rollout))
        if self._judging:
            self._judging.add(_response(problem, rollout, self._marks[number]))

    def rewards(self, groups: Sequence[Sequence[Rollout]]) -> list[tuple[Reward, ...]]:
        """Wait for the workers; the rewards of all groups as `score_groups` returns them. What was not added yet is now."""
        rollouts = [rollout for group in groups for rollout in group]
        for row, rollout in enumerate(rollouts):
            if row not in self._known:
                self.add(row, rollout)
            elif self._known[row] != rollout:
                raise ValueError(f"row {row} is another rollout of problem {rollout.problem_id} than was graded")
        scored = self._scoring.collect() if self._scoring else []
        scores = [own for group in scored for own in group] or [{} for _ in rollouts]
        verdicts = None
        if self._judging:
            of_row = dict(zip(self._known, self._judging.collect(), strict=True))
            verdicts = [of_row[row] for row in range(len(rollouts))]
        return self._rubric._rewards(self._problems, groups, scores, verdicts)

    @property
    def busy_s(self) -> float:
        """Seconds in which workers graded before `rewards` was called."""
        return self._tasks.busy_s if self._tasks else 0.0

    def cancel(self) -> None:
        """End the workers at once."""
        if self._tasks:
            self._tasks.cancel()

    @property
    def _tasks(self) -> TasksUnderWay | None:
        under_way = self._scoring or self._judging
        return under_way.tasks if under_way else None


def _pairs(problems: Sequence[Problem], groups: Sequence[Sequence[Rollout]]) -> list[tuple[Problem, Rollout]]:
    return [(problem, one) for problem, group in zip(problems, groups, strict=True) for one in group]


def _refuse_other(problem: Problem, rollout: Rollout) -> None:
    if problem.id != rollout.problem_id:
        raise ValueError(f"rollout of {rollout.problem_id} given beside problem {problem.id}")


def _mark(problem: Problem) -> AnswerMark:
    return mark_of_prompt(turn.content for turn in problem.prompt)


def _response(problem: Problem, rollout: Rollout, mark: AnswerMark) -> Response:
    return Response(rollout.response, problem.answer, mark, rollout.thought_open)
