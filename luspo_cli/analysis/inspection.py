"""One run at a glance: its main metrics at the start, the middle and the end, and warnings with what to try.

A check that a run's record does not allow is listed as not made; a missing metric is never taken for a healthy one. Thresholds
are plain numbers below, so that a warning can be argued with. What to try stands in docs/collapse.md, in the order in which the
exact model (docs/length.md) found the causes to matter; what the run does already, or cannot be the cause in it, is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.analysis.axis import LENGTH, windows_of
from luspo_cli.analysis.history import RunHistory
from luspo_cli.config.objective import NAMED_OBJECTIVES
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
FALLEN, LEAST_SMOOTHED, LEAST_FALL = 0.4, 3, 0.1
"""A window's mean over the largest before it below which a metric fell, fewest steps of a window, least fall of accuracy."""
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
    seen = f"mean response length went from {start:.1f} to {final:.1f} tokens, {final / start:.2g} times the start"
    return _of_length(run, "collapse" if shorter else "explosion", seen, "low" if shorter else "high", "1-clip-range")


def _of_length(run: RunHistory, kind: str, seen: str, side: str, heading: str) -> Finding:
    """A finding about the length, with the known causes on that side of the clip that the run's record leaves open."""
    low, high = _may_clip(run, "low"), _may_clip(run, "high")
    on_side = {"low": low, "high": high}[side]
    divided = _divides_by_length(run)
    tries = {
        "clip range: another objective.clip_low and clip_high, wider and narrower": low or high,
        # Without a lower bound LUSPO's responses get shorter, so widening it is advice for the weight 1/|y| alone.
        f"which side clips: a wider {side} side (objective.clip_{side}), compared over 3 seeds or more": on_side
        and (divided or side == "high"),
        "update.mini_batches=1, in which nothing clips; then 2": (low or high)
        and run.setting("update", "mini_batches") != 1,
        "the weight: objective luspo in the place of gspo or grpo": on_side and divided,
    }
    left = tuple(one for one, fits in tries.items() if fits)
    if not left:
        seen += "; none of the known causes is visible in this run"
    return Finding(kind, seen, left, f"{PAGE}#{heading}")


def _may_clip(run: RunHistory, side: str) -> bool:
    """Whether that side of the clip cut anything in any step; True where it is not recorded."""
    cut = run.table.get(f"objective/clip_{side}_fraction")
    return cut is None or bool(cut.isna().all() or (cut > 0).any())


def _divides_by_length(run: RunHistory) -> bool:
    """Whether the objective weighs a sequence's tokens by 1/|y|; True where the log of another trainer does not say."""
    named = NAMED_OBJECTIVES.get(run.objective)
    aggregation = run.setting("objective", "aggregation") or (named and named.aggregation)
    return aggregation in (None, "seq-mean-token-mean")


@dataclass(frozen=True, slots=True)
class _Fall:
    """The deepest fall of a metric: the largest window before it, the lowest one, and their first and last steps."""

    before: float
    lowest: float
    steps_before: tuple[int, int]
    steps: tuple[int, int]


def _deepest_fall(run: RunHistory, name: str) -> _Fall | None:
    """The deepest fall between windows of a tenth of the steps; None where none is below `FALLEN`, or the run is too short."""
    known = run.table[name].dropna()
    first, last = windows_of([int(step) for step in known.index]).start
    size = max(LEAST_SMOOTHED, len(known.loc[first:last]))
    means = known.rolling(size).mean().dropna()
    shares = (means / means.cummax()).dropna()
    if shares.empty or shares.min() >= FALLEN:
        return None
    end = int(shares.argmin())
    top = int(means.iloc[: end + 1].argmax())
    # The window that ends with step means.index[i] begins with known.index[i].
    before, at = ((int(known.index[place]), int(means.index[place])) for place in (top, end))
    return _Fall(float(means.iloc[top]), float(means.iloc[end]), before, at)


def _passing_collapse(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    trend, fall = trends[LENGTH], _deepest_fall(run, LENGTH)
    if fall is None or trend.final < COLLAPSE * trend.start:  # the collapse at the end is said by _length
        return None
    seen = (
        f"mean response length fell from {fall.before:.1f} tokens in steps {fall.steps_before[0]} to {fall.steps_before[1]} to"
        f" {fall.lowest:.1f} in steps {fall.steps[0]} to {fall.steps[1]}, and is {trend.final:.1f} at the end"
    )
    return _of_length(run, "passing collapse", seen, "low", "a-collapse-that-passes")


def _accuracy(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    name = "reward/accuracy/mean"
    final, fall = trends[name].final, _deepest_fall(run, name)
    if fall is None or fall.before - fall.lowest < LEAST_FALL:
        return None
    after = "stayed low" if final < FALLEN * fall.before else "came back"
    seen = (
        f"accuracy fell from {fall.before:.2f} in steps {fall.steps_before[0]} to {fall.steps_before[1]} to {fall.lowest:.2f}"
        f" in steps {fall.steps[0]} to {fall.steps[1]} and {after}, {final:.2f} at the end"
    )
    bound = (
        () if _may_clip(run, "low") else ("a lower bound (objective.clip_low): nothing was clipped low in this run",)
    )
    tries = (*bound, "a lower update.learning_rate", "reading responses of these steps")
    return Finding("accuracy collapse", seen, tries, f"{PAGE}#accuracy-collapses")


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
        fewer = "" if run.setting("update", "mini_batches") == 1 else "fewer update.mini_batches or "
        loosen = ("a wider clip range", f"{fewer}a lower update.learning_rate")
        return Finding("clipping", f"{said}: more than half", loosen, f"{PAGE}#1-clip-range")
    if both < LEAST_CLIPPED or max(final) < ONE_SIDED * both:
        return None
    side, other = ("low", "high") if final[0] > final[1] else ("high", "low")
    wider = f"a wider objective.clip_{side} or " if side == "high" or _divides_by_length(run) else ""
    tries = (f"{wider}a narrower objective.clip_{other}, until both sides cut alike",)
    return Finding("one-sided clip", f"{said}: one side alone", tries, f"{PAGE}#2-which-side-clips")


def _mixed(run: RunHistory, trends: dict[str, Trend]) -> Finding | None:
    final = trends["group/mixed_fraction"].final
    if final >= MIXED:
        return None
    return Finding(
        "few mixed groups",
        f"{final:.0%} of the groups have right and wrong responses at the end; the others teach nothing",
        (
            *(() if run.setting("rollout", "dynamic_sampling") else ("rollout.dynamic_sampling=true",)),
            "a larger rollout.group_size",
            "easier or harder problems",
        ),
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
    corrected = run.setting("update", "sampler_correction") not in (None, "none")
    return Finding(
        "sampler mismatch",
        f"sampler and policy differ by {final:.2g} nats a token at the end, {start:.2g} at the start, and more in steps of longer"
        f" responses (rank correlation {correlation:.2f})",
        (
            *(() if corrected else ("update.sampler_correction=token",)),
            "the same compute type for sampler and policy",
        ),
        f"{PAGE}#the-sampler-drifts-from-the-policy",
    )


_Check = Callable[[RunHistory, dict[str, Trend]], Finding | None]
_CHECKS: Sequence[tuple[str, tuple[str, ...], _Check]] = (
    ("length", (LENGTH,), _length),
    ("passing collapse", (LENGTH,), _passing_collapse),
    ("accuracy", ("reward/accuracy/mean",), _accuracy),
    ("truncation", ("response/truncated_fraction",), _truncation),
    ("clip", ("objective/clip_low_fraction", "objective/clip_high_fraction"), _clipping),
    ("mixed groups", ("group/mixed_fraction",), _mixed),
    ("sampler mismatch", (LENGTH, "sampler/logprob_difference_mean"), _mismatch),
)
