"""The rollouts that verl dumps, graded again by the code that rewarded them: verdicts and groups, which verl does not log.

A dumped row has the prompt and the response as text, the gold answer, the reward and verl's own name of its group. It has neither
tokens nor their number, nor why the response ended: those columns are absent from what is stored.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luspo_cli.advantages import advantages_of
from luspo_cli.config.run import TrainRun
from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.metrics.rollout_metrics import reward_metrics
from luspo_cli.records import Message, Problem, Rollout, ScoredGroup, StopReason
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.rollouts import judged_columns, store_rows

GRADED = (
    "reward/accuracy/mean", "reward/format/mean", "reward/no_answer_fraction", "reward/verification_timeouts",
    "reward/verification_crashes", "reward/read_from/own_mark", "reward/read_from/box", "reward/read_from/other_mark",
    "reward/read_from/phrase", "reward/decided_by/math-verify", "group/all_correct_fraction", "group/all_wrong_fraction",
    "group/mixed_fraction",
)  # fmt: skip
"""What the verdicts of a step's rollouts give; what needs token counts is not among it."""
Row = Mapping[str, Any]


class DumpedRollouts:
    """Reads `ROLLOUTS/STEP.jsonl` as verl writes them, and grades them."""

    def __init__(
        self, config: TrainRun, folder: Path, problems: Sequence[Problem], rubric: Rubric, thought_open: bool
    ) -> None:
        self._config, self._folder, self._rubric, self._thought_open = config, folder, rubric, thought_open
        self._by_answer: dict[str, list[Problem]] = {}
        for problem in problems:
            self._by_answer.setdefault(problem.answer, []).append(problem)

    def rows(self, step: int) -> list[Row] | None:
        """The step's rows; None while verl has not written all of them."""
        file, rollout = self._folder / f"{step}.jsonl", self._config.rollout
        try:
            lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        except OSError:
            return None
        if len(lines) < rollout.problems * rollout.group_size:
            return None
        try:
            return [json.loads(line) for line in lines]
        except ValueError:
            return None

    def groups(self, rows: Sequence[Row]) -> list[tuple[ScoredGroup, list[Row]]]:
        """The rows as groups with verdicts and advantages, each beside its rows; tokens are unknown and stay empty."""
        members: dict[str, list[Row]] = {}
        for row in rows:
            # verl's key of a row is GROUP_ROLLOUT_OUTPUT.
            members.setdefault(str(row["uid"]).rsplit("_", 2)[0], []).append(row)
        problems = [self._problem(group, own[0]) for group, own in members.items()]
        rollouts = [
            tuple(Rollout(problem.id, (), (), row["output"], StopReason.END, (), self._thought_open) for row in own)
            for problem, own in zip(problems, members.values(), strict=True)
        ]
        rewards = self._rubric.score_groups(problems, rollouts)
        paid = [[float(row["score"]) for row in own] for own in members.values()]
        advantages = advantages_of(self._config.objective.advantage or "", paid)
        return [
            (ScoredGroup(problem, of_group, scored, tuple(of_rows)), own)
            for problem, of_group, scored, of_rows, own in zip(
                problems, rollouts, rewards, advantages, members.values(), strict=True
            )
        ]

    def metrics(self, groups: Sequence[tuple[ScoredGroup, list[Row]]]) -> dict[str, Any]:
        """The numbers of `GRADED`."""
        found = reward_metrics([group for group, _ in groups])
        return {name: found[name] for name in GRADED}

    def store(self, folder: Path, step: int, groups: Sequence[tuple[ScoredGroup, list[Row]]]) -> None:
        """Write rollouts/step-NNNNNN.parquet with the columns that are known."""
        rows = [
            {
                **judged_columns(group.problem, rollout, reward),
                "reward": float(row["score"]),
                "reward_accuracy": reward.accuracy,
                "reward_format": reward.format,
                "advantage": advantage,
                "in_batch": True,
            }
            for group, own in groups
            for rollout, reward, advantage, row in zip(
                group.rollouts, group.rewards, group.advantages, own, strict=True
            )
        ]
        store_rows(folder, step, rows, ["extracted"])

    def _problem(self, group: str, row: Row) -> Problem:
        """The problem that the row's prompt shows; one named by verl's group where that cannot be told."""
        text, answer = str(row["input"]), "" if row["gts"] is None else str(row["gts"])
        shown = [
            problem
            for problem in self._by_answer.get(answer, ())
            if all(part.strip() in text for turn in problem.prompt for part in turn.content.split(IMAGE_MARK))
        ]
        if len(shown) == 1:
            return shown[0]
        return Problem(group, (Message("user", text),), answer, "")
