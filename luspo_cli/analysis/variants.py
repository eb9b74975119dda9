"""Which runs count as seeds of one thing: equal configuration except for the seed, the length and the bookkeeping.

Averaging two learning rates as if they were two seeds would hide the effect under test, so runs of one objective that
differ anywhere else become variants with a label of their own, for example `luspo (update.learning_rate=0.0001)`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.config.kernels import KERNEL_KEYS
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.config.objective_text import clip_form
from luspo_cli.config.stored import flatten, show, with_defaults

SEED = "run.seed"
STEPS = "run.steps"
BOOKKEEPING = frozenset(
    {
        "run.checkpoint_every",
        "run.checkpoint_last",
        "run.keep_checkpoints",
        "run.rollouts_every",
        "run.threads",
        "run.wait_for_processes_s",
        "run.track",
        "reward.workers",
        "reward.while_sampling",
        "rollout.max_rows",
        "rollout.vllm.memory_share",
        "rollout.vllm.servers",
        "rollout.vllm.timeout_s",
        "update.tokens_per_micro_batch",
        "update.noise_floor_every",
        "update.exact_gradient_shares_every",
        "model.gradient_checkpointing",
        "model.sharding",
        *KERNEL_KEYS,
        "update.offload_optimizer",
        "update.spare_memory",
    }
)
"""Keys that change what is stored, how fast and in how much memory, and not what is learned."""
ABSENT = "absent"
"""Stands for a key that one of the configurations does not have."""
OBJECTIVE_ORDER = tuple(NAMED_OBJECTIVES)
"""Reading order of tables and legends; other names follow in alphabetical order."""
EXTRA_TERMS = frozenset({"objective.kl_coefficient", "objective.entropy_coefficient"})
"""Terms added to an objective: a comparison of objectives should hold them equal."""

MOST_NAMED = 4
"""Variants that a sentence names one by one although all have the same."""

ClipRange = tuple[float | None, float | None] | tuple[float | None, float | None, str]
"""`objective.clip_low` and `objective.clip_high`, then what else the range is where it is not fixed or not on the ratio; None and
None where the objective has no clip range, as sapo."""


@dataclass(frozen=True)
class Variant:
    """Runs that differ in nothing but seed, length and bookkeeping."""

    label: str
    objective: str
    runs: tuple[RunHistory, ...]


def differing_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return each dotted key whose value is not the same in all configurations, with its value in each, in order.

    A key that some do not have is left out where its default is what the others have: a run of an older version did just that.
    """
    flat = [flatten(config) for config in configs]
    keys = sorted({key for leaves in flat for key in leaves})
    columns = {key: [leaves.get(key, ABSENT) for leaves in flat] for key in keys}
    differing = {key: values for key, values in columns.items() if not _alike(values)}
    if not any(ABSENT in values for values in differing.values()):
        return differing
    whole = [flatten(with_defaults(config)) for config in configs]
    return {
        key: values
        for key, values in differing.items()
        if not _alike([whole[place].get(key) if value == ABSENT else value for place, value in enumerate(values)])
    }


def _alike(values: Sequence[Any]) -> bool:
    return len({show(value) for value in values}) <= 1


def split_into_variants(runs: Sequence[RunHistory]) -> list[Variant]:
    """Gather the runs of each objective, apart where their configurations differ, in reading order."""
    variants = []
    for objective in sorted({run.objective for run in runs}, key=reading_order):
        members = [run for run in runs if run.objective == objective]
        differing = differing_values([run.config for run in members])
        keys = [key for key in differing if key not in BOOKKEEPING and key not in (SEED, STEPS)]
        by_setting: dict[str, list[RunHistory]] = {}
        for place, run in enumerate(members):
            setting = ", ".join(f"{key}={show(differing[key][place])}" for key in keys)
            by_setting.setdefault(setting, []).append(run)
        for setting in sorted(by_setting):
            label = f"{objective} ({setting})" if setting else objective
            in_order = sorted(by_setting[setting], key=lambda run: (run.seed is None, run.seed or 0, run.name))
            variants.append(Variant(label, objective, tuple(in_order)))
    return variants


def clip_ranges(variants: Sequence[Variant]) -> dict[str, ClipRange]:
    """Return the clip range by label, of the variants whose configuration records one."""
    ranges: dict[str, ClipRange] = {}
    for variant in variants:
        objective = variant.runs[0].config.get("objective")
        if isinstance(objective, Mapping) and "clip_low" in objective and "clip_high" in objective:
            low, high = objective["clip_low"], objective["clip_high"]
            form = clip_form(objective.get("clip_on"), objective.get("clip_band")).strip()
            ranges[variant.label] = (low, high, form) if form else (low, high)
    return ranges


def clip_sentence(ranges: Mapping[str, ClipRange]) -> str:
    """Return "clip range: grpo 0.2 / 0.28, sapo none", or "" where no range is known; of many equal ones, "0.2 / 0.28 in all"."""
    many_alike = len(ranges) > MOST_NAMED and len(set(ranges.values())) == 1
    shown = [
        (f"{text} in all" if many_alike else f"{label} {text}")
        for label, (low, high, *form) in ranges.items()
        for text in ["none" if low is None and high is None else " ".join([f"{show(low)} / {show(high)}", *form])]
    ][: 1 if many_alike else None]
    return f"clip range: {', '.join(shown)}" if ranges else ""


def expected_to_differ(key: str) -> bool:
    """Whether a comparison of objectives over seeds changes this key by intention, or without consequence."""
    return key == SEED or key in BOOKKEEPING or (key.startswith("objective.") and key not in EXTRA_TERMS)


def reading_order(objective: str) -> tuple[int, str]:
    known = objective in OBJECTIVE_ORDER
    return (OBJECTIVE_ORDER.index(objective) if known else len(OBJECTIVE_ORDER), objective)


def in_which(values: Mapping[str, str]) -> list[str]:
    """Return "VALUE in RUN, RUN" for each distinct value of a run -> value table, in the order met."""
    by_value: dict[str, list[str]] = {}
    for run, value in values.items():
        by_value.setdefault(value, []).append(run)
    return [f"{shortened(value)} in {', '.join(runs)}" for value, runs in by_value.items()]


def shortened(value: str) -> str:
    """Return a long value, mostly a hash, by its first characters."""
    return value if len(value) <= 40 else f"{value[:12]}…"
