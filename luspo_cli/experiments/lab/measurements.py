"""What stored rollouts say about a policy and about one update, in the lab's terms: when it stops, what it answers, what moved.

The lab has filler tokens, a decision to stop, answer tokens and an end. Which token of a real response is which is known only
where a token is a character, as in the made tasks: the answer is where the grader read it, the token before it is the decision
to stop unless it is a filler, the filler is the token that there is most of. Elsewhere only whole responses are measured.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from luspo_cli.errors import UsageError
from luspo_cli.metrics.intervals import Estimate, student_quantile
from luspo_cli.runs.stored_rollouts import groups_of, read_columns, stored_steps

COLUMNS = (
    "problem_id", "response", "extracted", "reward_accuracy", "response_length", "stop_reason", "rollout_logprobs",
    "response_tokens", "mini_batch", "sequence_ratio", "token_log_ratios",
)  # fmt: skip
UPDATE_COLUMNS = ("mini_batch", "sequence_ratio", "token_log_ratios")
PROFILE_BINS = 12
"""Bins of positions in which the chance of stopping is counted."""
PROFILE_COVERS = 0.95
"""Share of the responses that end before the last bin's end would be, were it as wide as the others."""
CHARACTERS = 0.9
"""Tokens are characters where more than this share of the ended responses has as many tokens as characters and an end."""
MAX_SPREAD = 6.0
"""Largest spread of skill that is looked for, in logits."""


class Kinds(NamedTuple):
    """Places of a response's tokens: the first `fillers` are filler; None where there is no such token."""

    fillers: int
    stop: int | None
    answer: int
    end: int | None


@dataclass(frozen=True, slots=True)
class StoredStep:
    """The rollouts of one step, column by column; a column that an older run lacks is absent."""

    step: int
    columns: Mapping[str, list[Any]]

    @property
    def has_updates(self) -> bool:
        return all(name in self.columns for name in UPDATE_COLUMNS)


def read_steps(run: Path, last: int) -> list[StoredStep]:
    """The stored rollouts of the steps up to `last`; UsageError where a file lacks what every version writes."""
    found = []
    for step, file in stored_steps(run).items():
        if step > last:
            break
        columns = read_columns(file, COLUMNS).to_pydict()
        missing = [name for name in COLUMNS[:6] if name not in columns]
        if missing:
            raise UsageError(f"{file} has no column {', '.join(missing)}; restore it, or delete it and go without.")
        found.append(StoredStep(step, columns))
    return found


def stop_profile(steps: Sequence[StoredStep], tail: int) -> tuple[int, tuple[float, ...]]:
    """Width of a bin of positions, and the logit of stopping in each bin, centred; `tail`: tokens of answer and end.

    Truncated responses were at risk at every position and never stopped. One stop at the common rate is added to each bin.
    """
    fillers = [(length - tail, stop == "length") for step in steps for length, stop in _endings(step)]
    stopped = sorted(max(filler, 0) for filler, cut in fillers if not cut)
    if not stopped:
        raise UsageError("every stored response was cut by the response limit: there is no length to fit")
    reach = stopped[min(len(stopped) - 1, int(PROFILE_COVERS * len(stopped)))] + 1
    width = max(1, math.ceil(reach / PROFILE_BINS))
    bins = min(PROFILE_BINS, math.ceil(reach / width))
    stops, at_risk = [0.0] * bins, [0.0] * bins
    for filler, cut in fillers:
        for place in range(bins):
            first = place * width
            through = filler + (0 if cut else 1)  # the stop is a position too
            at_risk[place] += max(0, (through if place == bins - 1 else min(through, first + width)) - first)
        if not cut:
            stops[min(bins - 1, max(filler, 0) // width)] += 1
    common = sum(stops) / sum(at_risk)
    chances = [(stop + 1) / (risk + 1 / common) for stop, risk in zip(stops, at_risk, strict=True)]
    logits = [math.log(chance / (1 - chance)) if chance < 1 else 6.0 for chance in chances]
    middle = statistics.fmean(logits)
    return width, tuple(logit - middle for logit in logits)


def _endings(step: StoredStep) -> Iterator[tuple[int, str]]:
    return zip(step.columns["response_length"], step.columns["stop_reason"], strict=True)


def skill_spread(steps: Sequence[StoredStep]) -> float | None:
    """Standard deviation over problems of the logit of being right; None where no problem has two responses.

    The variance of the groups' accuracies less the binomial part of it, as a normal spread of logits that makes as much.
    """
    shares, binomial = [], []
    for step in steps:
        right = step.columns["reward_accuracy"]
        for rows in groups_of(step.columns["problem_id"]):
            share, size = statistics.fmean(right[rows.start : rows.stop]), len(rows)
            if size > 1:
                shares.append(share)
                binomial.append(share * (1 - share) / (size - 1))
    if len(shares) < 2:
        return None
    mean, between = statistics.fmean(shares), statistics.variance(shares) - statistics.fmean(binomial)
    if not 0 < mean < 1 or between <= 0:
        return 0.0
    low, high = 0.0, MAX_SPREAD
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if _variance_of_share(mean, middle) < between else (low, middle)
    return (low + high) / 2


def _variance_of_share(mean: float, spread: float) -> float:
    """Variance of sigmoid(shift + spread · z), z normal, whose mean is `mean`."""
    normal = statistics.NormalDist()
    z = [normal.inv_cdf((place + 0.5) / 200) for place in range(200)]

    def shares(shift: float) -> list[float]:
        return [1 / (1 + math.exp(-(shift + spread * value))) for value in z]

    low, high = -30.0, 30.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if statistics.fmean(shares(middle)) < mean else (low, middle)
    return statistics.pvariance(shares(low))


def squared_log_ratio(steps: Sequence[StoredStep]) -> dict[int, float]:
    """Of each step with such columns: mean square of the sequences' log-ratio, mean over mini-batches."""
    found = {}
    for step in steps:
        squares: dict[int, list[float]] = defaultdict(list)
        for number, ratio in zip(*(step.columns.get(name, ()) for name in UPDATE_COLUMNS[:2]), strict=True):
            if number is not None and ratio is not None:
                squares[number].append(math.log(ratio) ** 2)
        if squares:
            found[step.step] = statistics.fmean(statistics.fmean(values) for values in squares.values())
    return found


def kinds_of(steps: Sequence[StoredStep]) -> list[list[Kinds | None]]:
    """What the tokens of each rollout of each step are; None where it is not known."""
    counts: Counter[str] = Counter()
    fitting, ended = 0, 0
    for step in steps:
        counts.update("".join(step.columns["response"]))
        for response, (length, stop) in zip(step.columns["response"], _endings(step), strict=True):
            ended += stop != "length"
            fitting += stop != "length" and length == len(response) + 1
    filler = counts.most_common(1)[0][0] if counts else ""
    # By chance a few short responses of other tokenizers have as many tokens as characters.
    of_characters = fitting > CHARACTERS * ended
    columns = ("response", "extracted", "response_length", "stop_reason")
    return [
        [
            _kinds(response, answer, length, stop == "length", filler) if of_characters else None
            for response, answer, length, stop in zip(*(step.columns[name] for name in columns), strict=True)
        ]
        for step in steps
    ]


def _kinds(response: str, answer: str | None, length: int, cut: bool, filler: str) -> Kinds | None:
    if cut or not answer or length != len(response) + 1 or not response.endswith(answer):
        return None
    place = len(response) - len(answer)
    stop = place - 1 if place and response[place - 1] != filler else None
    return Kinds(place if stop is None else stop, stop, place, length - 1)


@dataclass(frozen=True, slots=True)
class Moves:
    """Log-ratios by kind of token in one mini-batch: mean and standard deviation over its responses."""

    step: int
    mini_batch: int
    responses: int
    accuracy: float
    kinds: dict[str, tuple[float, float] | None]
    """`filler` (mean of a response), `stop`, `right` and `wrong` (first answer token), `end`, `sequence` (mean over tokens)."""


KINDS = ("filler", "stop", "right", "wrong", "end", "sequence")


def moves(steps: Sequence[StoredStep]) -> list[Moves]:
    """The moves of every mini-batch whose responses were stored with token log-ratios."""
    found = []
    for step, kinds in zip(steps, kinds_of(steps), strict=True):
        if not step.has_updates:
            continue
        rows: dict[int, list[int]] = defaultdict(list)
        for row, number in enumerate(step.columns["mini_batch"]):
            if number is not None and step.columns["token_log_ratios"][row]:
                rows[number].append(row)
        found += [_moves(step, number, own, kinds) for number, own in sorted(rows.items())]
    return found


def _moves(step: StoredStep, number: int, rows: Sequence[int], kinds: Sequence[Kinds | None]) -> Moves:
    values: dict[str, list[float]] = {kind: [] for kind in KINDS}
    known = [(row, own) for row in rows if (own := kinds[row]) is not None]
    fillers = statistics.fmean(own.fillers for _, own in known) if known else 0.0
    token_log_ratios = step.columns["token_log_ratios"]
    values["sequence"] += [statistics.fmean(token_log_ratios[row]) for row in rows]
    for row, own in known:
        ratios = token_log_ratios[row]
        if own.fillers:
            values["filler"].append(statistics.fmean(ratios[: own.fillers]))
            if own.stop is None:
                # A move of the stopping logit changes log(1 - h) by -h of it, log h by 1 - h; (1 - h) / h is the mean filler.
                values["stop"].append(-values["filler"][-1] * fillers)
        if own.stop is not None:
            values["stop"].append(ratios[own.stop])
        if own.end is not None:
            values["end"].append(ratios[own.end])
    stopping = statistics.fmean(values["stop"]) if values["stop"] else 0.0
    for row, own in known:
        # Without a token of its own the decision to stop is part of the answer's.
        moved = token_log_ratios[row][own.answer] - (stopping if own.stop is None else 0.0)
        values["right" if step.columns["reward_accuracy"][row] > 0 else "wrong"].append(moved)
    summed = {kind: (statistics.fmean(own), statistics.pstdev(own)) if own else None for kind, own in values.items()}
    accuracy = statistics.fmean(step.columns["reward_accuracy"][row] for row in rows)
    return Moves(step.step, number, len(rows), accuracy, summed)


def squared_wrong(found: Sequence[Moves]) -> dict[int, float]:
    """Of each step: mean square of the wrong answers' log-ratio, mean over mini-batches."""
    squares: dict[int, list[float]] = defaultdict(list)
    for one in found:
        if (value := one.kinds["wrong"]) is not None:
            squares[one.step].append(value[0] ** 2 + value[1] ** 2)
    return {step: statistics.fmean(values) for step, values in squares.items()}


def increments(found: Sequence[Moves], kind: str) -> dict[tuple[int, int], float]:
    """By how much one optimizer step moved the mean log-ratio of a kind of token: from mini-batch to mini-batch of a step."""
    moved = {}
    means = {(one.step, one.mini_batch): value[0] for one in found if (value := one.kinds[kind]) is not None}
    for (step, number), mean in means.items():
        if number and (before := means.get((step, number - 1))) is not None:
            moved[step, number] = mean - before
    return moved


def coupling(of_runs: Sequence[Sequence[Moves]]) -> Estimate | None:
    """Slope of the stopping logit's moves on those of the right answer's logit, one an optimizer step; None for fewer than 3."""
    both = []
    for found in of_runs:
        stop, right = increments(found, "stop"), increments(found, "right")
        wrong = {(one.step, one.mini_batch): 1 - one.accuracy for one in found}
        # A move of the right answer's logit changes log p by 1 - p times it.
        both += [(right[at] / wrong[at], stop[at]) for at in stop if at in right and wrong[at] > 0]
    squares = math.fsum(x * x for x, _ in both)
    if len(both) < 3 or squares == 0:
        return None
    slope = math.fsum(x * y for x, y in both) / squares
    left = math.fsum((y - slope * x) ** 2 for x, y in both) / (len(both) - 1)
    half = student_quantile(len(both) - 1) * math.sqrt(left / squares)
    return Estimate(slope, slope - half, slope + half, len(both))
