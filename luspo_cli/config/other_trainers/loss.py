"""The loss that another trainer runs, in our words: its parts, which of our objectives it equals, and what to beware of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from luspo_cli.config.executed import Counts, count_rows
from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.objective_text import describe
from luspo_cli.config.stored import show
from luspo_cli.errors import UsageError, nearest

PARTS = ("advantage", "ratio", "surrogate", "aggregation")
WIDE_FOR_A_SEQUENCE = 0.1
"""A clip distance that is a token ratio's: the mean over a response's tokens hardly ever gets that far."""
TOKEN_MEAN = (
    "its mean over tokens is one over the whole mini-batch, as our dapo's: DAPO's paper averages within each prompt"
    " (dapo_prompt_mean), so here a prompt with long responses counts for more"
)
STEEP = (
    "each sequence's gradient is its length times that of a mean over its tokens: learning rate and gradient clip of a GSPO or"
    " GRPO run are no equal step here"
)


@dataclass(frozen=True, slots=True)
class PeerLoss:
    """What a trainer's settings make of the loss."""

    trainer: str
    called: str
    """How the trainer names its loss, for "nearest": our objective of that name comes first."""
    objective: ObjectiveConfig | None
    """The equation in our parts; None where they cannot say it."""
    missing: str = ""
    """Why they cannot."""
    counts: Counts = field(default_factory=Counts)
    differences: tuple[str, ...] = ()
    """What the trainer does beside or otherwise than the equation says."""
    notes: tuple[str, ...] = ()
    """What is to be known of the numbers and does not change which loss it is."""
    warnings: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Keys that the loss depends on and the file leaves at the trainer's own values."""
    unread: tuple[str, ...] = ()
    """Keys that are not understood and may bear on the loss."""

    def equals(self) -> str:
        """Which of our objectives it is, in one sentence."""
        if self.objective is None:
            return f"none of our objectives: {self.missing}"
        parts = "" if not self.differences else ", but for the differences below"
        if self.objective.name != "custom":
            others = _other_numbers(self.objective)
            numbers = f", with {', '.join(others)}" if others else ", with its own numbers"
            return f"{self.objective.name}{numbers}{parts}"
        return f"none of our names{parts}; nearest {'; '.join(_nearest(self.objective, self.called))}"

    def rows(self) -> list[tuple[str, str]]:
        """Title and text of everything but the equation, in the order in which it is shown."""
        rows = [("equals", self.equals())]
        if self.objective is not None:
            rows.append(("here", spelling(self.objective)))
            text = describe(self.objective)
            rows += [row for row in text.lines() if row[0] not in ("equation", "paper", "TRL", "verl")]
            rows += count_rows(self.objective, self.counts)
        rows += _titled("note", self.notes)
        rows += _titled("differs", self.differences)
        rows += _titled("warning", self.warnings)
        rows += _titled("not understood", self.unread)
        left = ", ".join(f"{key}={show(value)}" for key, value in self.defaults.items())
        return [*rows, *([("its own defaults", left)] if left else [])]

    def answer(self) -> dict[str, Any]:
        """What `--json` prints."""
        objective = self.objective
        return {
            "title": f"the loss of these settings in {self.trainer}",
            "trainer": self.trainer,
            "config": None
            if objective is None
            else {entry.name: getattr(objective, entry.name) for entry in fields(objective)},
            "equation": None if objective is None else describe(objective).equation,
            "equals": self.equals(),
            "notes": list(self.notes),
            "differences": list(self.differences),
            "warnings": list(self.warnings),
            "not_understood": list(self.unread),
            "rows": [list(row) for row in self.rows()],
        }


def objective_of(parts: Mapping[str, Any], numbers: Mapping[str, Any]) -> tuple[ObjectiveConfig | None, str]:
    """The objective of these parts under its name where there is one, else `custom`; or None, and why there is none."""
    name = next((name for name in NAMED_OBJECTIVES if not _other_parts(name, parts)), "custom")
    try:
        return resolve(name, **(parts if name == "custom" else {}), **numbers), ""
    except ValueError as error:
        return None, str(error)


def spelling(config: ObjectiveConfig) -> str:
    """The objective as options of `luspo train`."""
    if config.name == "custom":
        keys = [entry.name for entry in fields(config) if entry.default != getattr(config, entry.name)]
        keys = [key for key in keys if key not in ("name", "clip_band")]
    else:
        named = resolve(config.name)
        keys = [entry.name for entry in fields(config) if getattr(named, entry.name) != getattr(config, entry.name)]
    sets = [f"--set objective.{key}={show(getattr(config, key))}" for key in keys]
    return " ".join([f"--objective {config.name}", *sets])


def wide_clip(config: ObjectiveConfig | None) -> Iterator[str]:
    """A warning where a sequence ratio has the clip range of a token ratio."""
    if config is None or config.ratio != "sequence" or config.surrogate != "clip":
        return
    if max(config.clip_low or 0.0, config.clip_high or 0.0) >= WIDE_FOR_A_SEQUENCE:
        yield (
            f"a sequence's ratio is the geometric mean of its tokens' and stays near 1: the clip range {config.clip_low:g} /"
            f" {config.clip_high:g} is a token ratio's and hardly ever acts; GSPO has 0.0003 / 0.0004, LUSPO 0.002 / 0.0025"
        )


def by_length(config: ObjectiveConfig | None) -> Iterator[str]:
    """A warning where a sequence ratio's loss counts each sequence by its length under another name than LUSPO."""
    if config is None or config.ratio != "sequence" or config.surrogate != "clip":
        return
    over = {"token-mean": "the mini-batch's mean length", "seq-mean-token-sum-norm": "the response limit"}
    if config.aggregation in over:
        yield (
            f"a sequence ratio under {config.aggregation} counts each sequence by its length: it is LUSPO over"
            f" {over[config.aggregation]}, not GSPO, which takes seq-mean-token-mean"
        )


def known(key: str, value: Any, choices: Mapping[str, Any] | Sequence[str], place: str) -> Any:
    """The value where it is one of the trainer's; UsageError otherwise."""
    if value not in choices:
        raise UsageError(
            f"{place}: {key} = {value!r} is none of {', '.join(map(str, choices))}{nearest(str(value), choices)}"
        )
    return value


def typed(key: str, value: Any, like: Any, place: str, *, optional: bool = False) -> Any:
    """The value in the type of `like`, as the trainer's own parser would make it of text, or None where it is `optional`.

    Whole numbers are counts, from 1 on. UsageError for a value that is empty, of another type or out of range.
    """
    given = f"{place}: {key} = {value!r}"
    text = value.strip().lower() if isinstance(value, str) else value
    if isinstance(value, str) and "$" in value:
        raise UsageError(f"{place}: the loss depends on {key}, and its value {value} is not in this file: write it out")
    # "none" is a word to some keys.
    if text in (None, "", "null", "~") or (text == "none" and (optional or not isinstance(like, str))):
        if optional:
            return None
        raise UsageError(f"{place}: {key} is empty, and there is no loss without it: leave the key out, or set it")
    if isinstance(like, str):
        if not isinstance(value, str):
            raise UsageError(f"{given} is not a word")
        return value
    if isinstance(like, bool):
        truths = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}
        if str(text).lower() in truths:
            return truths[str(text).lower()]
        raise UsageError(f"{given} is neither true nor false")
    try:
        # YAML's yes and no are truths, and no 1 and 0.
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise UsageError(f"{given} is not a number")
    if isinstance(like, int):
        if not number.is_integer() or number < 1:
            raise UsageError(f"{given} is a count: give a whole number from 1 on")
        return int(number)
    name = key.rpartition(".")[2]
    if number < 0 and not name.startswith(_OF_ANY_SIGN):
        raise UsageError(f"{given} must not be negative")
    if number == 0 and any(word in name for word in _ABOVE_0):
        raise UsageError(f"{given} must be above 0")
    return number


_OF_ANY_SIGN = ("entropy_coef", "off_policy_mask_threshold")
_ABOVE_0 = ("temperature", "tau_", "clip_max", "sampling_cap", "rollout_is_threshold", "quantile")
"""Parts of the names of numbers that something is divided by, or that leave nothing of the loss at 0."""


def _titled(title: str, sentences: Sequence[str]) -> list[tuple[str, str]]:
    return [(title, sentence) for sentence in sentences]


def _other_parts(name: str, parts: Mapping[str, Any]) -> list[str]:
    return [part for part in PARTS if getattr(NAMED_OBJECTIVES[name], part) != parts[part]]


def _other_numbers(config: ObjectiveConfig) -> list[str]:
    """Values that are not the name's own: "clip_low 0.2 (luspo 0.002)"."""
    named = resolve(config.name)
    return [
        f"{entry.name} {show(value)} ({config.name}'s own is {show(usual)})"
        for entry in fields(config)
        if (value := getattr(config, entry.name)) != (usual := getattr(named, entry.name))
    ]


def _nearest(config: ObjectiveConfig, called: str) -> list[str]:
    """Our names with the fewest other parts, the trainer's own name for its loss first: "luspo (ratio token, not sequence)"."""
    parts = {part: getattr(config, part) for part in PARTS}
    others = {name: _other_parts(name, parts) for name in NAMED_OBJECTIVES if name != "length_power"}
    fewest = min(map(len, others.values()))
    close = sorted((name for name, keys in others.items() if len(keys) == fewest), key=lambda name: name != called)
    return [
        f"{name} ("
        + ", ".join(f"{part} {parts[part]}, not {getattr(NAMED_OBJECTIVES[name], part)}" for part in others[name])
        + ")"
        for name in close[:3]
    ]
