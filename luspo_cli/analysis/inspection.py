"""One run at a glance: its main metrics at the start, the middle and the end, and warnings with what to try.

A check that a run's record does not allow is listed as not made; a missing metric is never taken for a healthy one. Thresholds
are plain numbers below, so that a warning can be argued with. What to try stands in docs/collapse.md, in the order in which the
exact model (docs/length.md) found the causes to matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.analysis.axis import LENGTH, windows_of
from luspo_cli.analysis.history import RunHistory
from luspo_cli.errors import UsageError
from luspo_cli.metrics.intervals import rank_correlation
from luspo_cli.metrics.names import METRICS
from luspo_cli.runs.stored_rollouts import groups_of, read_columns, stored_steps

MAIN = (
    LENGTH, "response/truncated_fraction", "reward/total/mean", "reward/accuracy/mean", "evaluation/accuracy",
    "group/mixed_fraction", "objective/clip_low_fraction", "objective/clip_high_fraction", "policy/entropy", "policy/kl_old",
    "update/grad_norm", "sampler/logprob_difference_mean",
)  # fmt: skip
COLLAPSE, EXPLOSION = 0.5, 2.0
"""Final over first mean length below, and above, which the length is said to collapse, and to explode."""
TRUNCATED = 0.2
CLIPPED = 0.5
ONE_SIDED, LEAST_CLIPPED = 0.8, 0.01
"""Share of all clipped ratios on one side from which a clip is one-sided; counted where at least so many are clipped."""
MIXED = 0.25
MISMATCH_GROWTH, MISMATCH_CORRELATION, LEAST_MISMATCH = 1.5, 0.5, 1e-3
"""Growth of the mismatch from first to final window, its rank correlation with length over steps, nats that are noise."""
PAGE = "docs/collapse.md"
SHOWN_GROUPS, SHOWN_RESPONSES = 2, 3


@dataclass(frozen=True, slots=True)
class Trend:
    """One metric over a run: means over the windows of `luspo compare`, and every value for a sparkline."""

    name: str
    unit: str
    start: float
    middle: float
    final: float
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at: what was seen, what to try in order, and where it is explained."""

    kind: str
    seen: str
    try_next: tuple[str, ...]
    page: str


@dataclass(frozen=True, slots=True)
class ShownResponse:
    """One stored response with its verdict and numbers."""

    response: str
    status: str
    reward: float
    advantage: float
    length: int | None
    """Tokens; None, and never truncated, where they were not counted: in a run that verl trained."""
    truncated: bool


@dataclass(frozen=True, slots=True)
class ShownGroup:
    """One problem of the last stored step, with a few of its responses from the largest reward to the smallest."""

    step: int
    problem_id: str
    prompt: str
    answer: str
    right: int
    size: int
    responses: tuple[ShownResponse, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """What `luspo inspect` shows."""

    name: str
    objective: str
    seed: int | None
    last_step: int
    planned_steps: int | None
    trends: tuple[Trend, ...]
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    """Checks that the record does not allow, each with the metric that is missing."""
    groups: tuple[ShownGroup, ...]
    notes: tuple[str, ...]


def inspect_run(run: RunHistory) -> Inspection:
    """Return trends, warnings and the last groups of one run; UsageError where it recorded no response length.

    Rollouts of steps that are not recorded, as where metrics.jsonl was cut, are passed over with a note.
    """
    if not run.column(LENGTH).notna().any():
        raise UsageError(f"{run.path} recorded no response length in any step; there is nothing to inspect.")
    trends = {name: trend for name in MAIN if (trend := _trend(run, name)) is not None}
    findings, not_checked = [], []
    for kind, needed, check in _CHECKS:
        missing = [name for name in needed if name not in trends]
        if missing:
            not_checked.append(f"{kind}: no {', '.join(missing)} is recorded")
        elif (found := check(run, trends)) is not None:
            findings.append(found)
    stored = stored_steps(run.path)
    recorded = {step: file for step, file in stored.items() if step <= run.last_step}
    newer = [str(step) for step in stored if step not in recorded]
    return Inspection(
        name=run.name,
        objective=run.objective,
        seed=run.seed,
        last_step=run.last_step,
        planned_steps=run.planned_steps,
        trends=tuple(trends.values()),
        findings=tuple(findings),
        not_checked=tuple(not_checked),
        groups=last_groups(recorded),
        notes=(*run.notes, *([_not_shown(newer, run.last_step)] if newer else [])),
    )


def _not_shown(newer: Sequence[str], last_step: int) -> str:
    steps = f"step {newer[0]}" if len(newer) == 1 else f"steps {', '.join(newer)}"
    return f"the metrics end at step {last_step}; stored rollouts of {steps} are newer and not shown."


def last_groups(files: Mapping[int, Path]) -> tuple[ShownGroup, ...]:
    """The first mixed groups of the last of the stored steps, else its first ones; empty where no rollouts are stored."""
    if not files:
        return ()
    step, file = list(files.items())[-1]
    names = [
        "problem_id",
        "prompt",
        "answer",
        "response",
        "status",
        "reward",
        "advantage",
        "response_length",
        "stop_reason",
    ]
    table = read_columns(file, names)
    rows = table.to_pylist()
    groups = [[rows[place] for place in group] for group in groups_of([row["problem_id"] for row in rows])]
    groups.sort(key=lambda group: len({row["status"] == "correct" for row in group}) == 1)  # stable: mixed ones first
    shown = []
    for group in groups[:SHOWN_GROUPS]:
        by_reward = sorted(group, key=lambda row: -row["reward"])
        places = sorted({0, len(by_reward) // 2, len(by_reward) - 1})[:SHOWN_RESPONSES]
        right = sum(row["status"] == "correct" for row in group)
        responses = tuple(_shown(by_reward[place]) for place in places)
        first = group[0]
        shown.append(
            ShownGroup(step, first["problem_id"], first["prompt"], first["answer"], right, len(group), responses)
        )
    return tuple(shown)


def _shown(row: dict[str, Any]) -> ShownResponse:
    length, truncated = row.get("response_length"), row.get("stop_reason") == "length"
    return ShownResponse(row["response"], row["status"], row["reward"], row["advantage"], length, truncated)


def _trend(run: RunHistory, name: str) -> Trend | None:
    source = run.evaluations if name.startswith("evaluation/") and name in run.evaluations else run.table
    if name not in source or source[name].isna().all():
        return None
    known = source[name].dropna()
    windows = windows_of([int(step) for step in known.index])
    start, middle, final = (
        float(known.loc[first:last].mean()) for first, last in (windows.start, windows.middle, windows.final)
    )
    values = tuple(None if math.isnan(value) else float(value) for value in source[name])
    return Trend(name, METRICS[name].unit, start, middle, final, values)


def _length(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    start, final = trends[LENGTH].start, trends[LENGTH].final
    if start <= 0 or COLLAPSE * start <= final <= EXPLOSION * start:
        return None
    shorter = final < start
    what = "collapse" if shorter else "explosion"
    side = "low" if shorter else "high"
    return Finding(
        what,
        f"mean response length went from {start:.1f} to {final:.1f} tokens, {final / start:.2g} times the start",
        (
            "clip range: another objective.clip_low and clip_high, wider and narrower",
            f"which side clips: a wider {side} side (objective.clip_{side}), compared over 3 seeds or more",
            "update.mini_batches=1, in which nothing clips; then 2",
            "the weight: objective luspo in the place of gspo or grpo",
        ),
        f"{PAGE}#1-clip-range",
    )


def _truncation(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    final = trends["response/truncated_fraction"].final
    if final <= TRUNCATED:
        return None
    return Finding(
        "truncation",
        f"{final:.0%} of the responses are cut by the response limit at the end",
        ("a larger rollout.max_response_tokens", "reading cut responses: do they repeat themselves?"),
        f"{PAGE}#responses-are-cut",
    )


def _clipping(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    final = trends["objective/clip_low_fraction"].final, trends["objective/clip_high_fraction"].final
    both = sum(final)
    said = f"at the end {final[0]:.1%} of the ratios are clipped low and {final[1]:.1%} high"
    if both > CLIPPED:
        loosen = ("a wider clip range", "fewer update.mini_batches or a lower update.learning_rate")
        return Finding("clipping", f"{said}: more than half", loosen, f"{PAGE}#1-clip-range")
    if both < LEAST_CLIPPED or max(final) < ONE_SIDED * both:
        return None
    side, other = ("low", "high") if final[0] > final[1] else ("high", "low")
    tries = (f"a wider objective.clip_{side} or a narrower clip_{other}, until both sides cut alike",)
    return Finding("one-sided clip", f"{said}: one side alone", tries, f"{PAGE}#2-which-side-clips")


def _mixed(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    final = trends["group/mixed_fraction"].final
    if final >= MIXED:
        return None
    return Finding(
        "few mixed groups",
        f"{final:.0%} of the groups have right and wrong responses at the end; the others teach nothing",
        ("rollout.dynamic_sampling=true", "a larger rollout.group_size", "easier or harder problems"),
        f"{PAGE}#few-groups-are-mixed",
    )


def _mismatch(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    name = "sampler/logprob_difference_mean"
    trend = trends[name]
    start, final = trend.start, trend.final
    if final < LEAST_MISMATCH or final < MISMATCH_GROWTH * start:
        return None
    together = run.table[[LENGTH, name]].dropna()
    correlation = rank_correlation(together[LENGTH].tolist(), together[name].tolist())
    if correlation is None or correlation <= MISMATCH_CORRELATION:
        return None
    return Finding(
        "sampler mismatch",
        f"sampler and policy differ by {final:.2g} nats a token at the end, {start:.2g} at the start, and more in steps of longer"
        f" responses (rank correlation {correlation:.2f})",
        ("update.sampler_correction=token", "the same compute type for sampler and policy"),
        f"{PAGE}#the-sampler-drifts-from-the-policy",
    )


_Check = Callable[[RunHistory, dict[str, Trend]], Finding | None]
_CHECKS: Sequence[tuple[str, tuple[str, ...], _Check]] = (
    ("length", (LENGTH,), _length),
    ("truncation", ("response/truncated_fraction",), _truncation),
    ("clip", ("objective/clip_low_fraction", "objective/clip_high_fraction"), _clipping),
    ("mixed groups", ("group/mixed_fraction",), _mixed),
    ("sampler mismatch", (LENGTH, "sampler/logprob_difference_mean"), _mismatch),
)
