"""The loss as a configuration executes it, with every number: what the report and `luspo objectives show` say, from one place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.objective_text import describe
from luspo_cli.config.stored import flatten, show

OF_THE_UPDATE = (
    "rollout.problems", "rollout.group_size", "rollout.max_response_tokens", "rollout.temperature", "rollout.lag",
    "reward.truncated", "update.mini_batches", "update.optimizer", "update.moments", "update.learning_rate", "update.betas",
    "update.gradient_clip", "update.sampler_correction", "update.sampler_correction_cap", "run.engine", "verl.loss",
    "verl.overrides",
)  # fmt: skip
"""Numbers that the formula is executed with, beside the objective's own."""
_USUAL = {"reward.truncated": "keep", "update.moments": "float32"}
"""Values that go without saying; `adamw-8bit` has moments of its own beside update.moments = float32."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What one optimizer step is made of; None where it is not known."""

    sequences: float | None = None
    """N, sequences of a mini-batch."""
    groups: float | None = None
    """B, groups of a mini-batch."""
    response_limit: int | None = None
    """L, in tokens."""
    updates: float | None = None
    """Optimizer steps that follow one batch of responses, all epochs together."""
    epochs: float = 1
    """How often each response is trained on."""
    masked: bool = False
    """Whether truncated sequences are taken out of the counts."""
    lag: int = 0
    """Steps between sampling and training."""


@dataclass(frozen=True, slots=True)
class Executed:
    """The equation, and title and text of all else in the order in which it is shown."""

    equation: str
    rows: tuple[tuple[str, str], ...]


def executed(stored: Mapping[str, Any]) -> Executed:
    """The loss of a resolved configuration (`config.json`); TypeError or ValueError for an objective of another version."""
    config = ObjectiveConfig(**stored["objective"])
    leaves = flatten(stored)
    text = describe(config)
    rows = [(title, said) for title, said in text.lines() if title != "equation"]
    rows += [(key, show(leaves[key])) for key in OF_THE_UPDATE if _says_something(key, leaves)]
    return Executed(text.equation, (*rows, *count_rows(config, counts_of_run(leaves))))


def counts_of_run(leaves: Mapping[str, Any]) -> Counts:
    """The counts that dotted keys of a configuration make; a folder of another program may lack some."""
    problems, size = leaves.get("rollout.problems"), leaves.get("rollout.group_size")
    parts, limit = leaves.get("update.mini_batches"), leaves.get("rollout.max_response_tokens")
    if not (isinstance(problems, int) and isinstance(size, int) and isinstance(parts, int)):
        return Counts(response_limit=limit)
    return Counts(
        sequences=problems * size / parts,
        groups=problems / parts,
        response_limit=limit,
        updates=parts,
        masked=leaves.get("reward.truncated") == "mask",
        lag=leaves.get("rollout.lag") or 0,
    )


def count_rows(config: ObjectiveConfig, counts: Counts) -> Iterator[tuple[str, str]]:
    """The denominators of the aggregation as numbers, and how far the weights are from those that drew the responses."""
    if counts.sequences is not None:
        less = ", less those that the limit cut" if counts.masked else ""
        yield "N, sequences of a mini-batch", f"{counts.sequences:g}{less}"
    if config.needs_group_ids and counts.groups is not None:
        yield "B, groups of a mini-batch", f"{counts.groups:g}"
    if counts.response_limit is not None:
        yield "L, the response limit", f"{counts.response_limit:g} tokens"
        if config.aggregation == "token-mean" and counts.sequences is not None:
            most = counts.sequences * counts.response_limit
            yield "M, tokens of a mini-batch", f"counted anew in each one, at most N L = {most:,.0f}"
    if counts.updates is not None:
        yield "off-policy by", off_policy(counts)


def off_policy(counts: Counts) -> str:
    """Where a ratio other than 1 can come from, in one sentence."""
    updates, lag = counts.updates or 1, counts.lag
    times = "once" if counts.epochs == 1 else f"{counts.epochs:g} times"
    trained = f"each response is trained on {times}, a batch makes {updates:g} optimizer step{'s' * (updates != 1)}"
    if lag:
        behind = f"a batch waits {lag} step{'s' * (lag != 1)} before it is trained on"
        return f"{trained}, and {behind}: its weights are up to {lag * updates + updates - 1:g} optimizer steps old"
    if updates > 1:
        return f"{trained}: in the first one every ratio is 1, in the last one the responses are {updates - 1:g} behind"
    return (
        f"nothing: {trained}, so every ratio is 1, no clip range acts, and token and sequence ratios have one gradient"
    )


def _says_something(key: str, leaves: Mapping[str, Any]) -> bool:
    """Whether a run has the key, and its value asks for anything that the others do not say."""
    if key == "update.sampler_correction_cap":
        return leaves.get("update.sampler_correction", "none") != "none"
    if key in ("run.engine", "verl.loss", "verl.overrides"):
        return leaves.get("run.engine") == "verl" and bool(leaves.get(key))
    if key in _USUAL:
        return leaves.get(key, _USUAL[key]) != _USUAL[key]
    return key in leaves and (key != "rollout.lag" or bool(leaves[key]))
