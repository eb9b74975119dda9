"""`verl.overrides`: what a user adds in verl's own spelling, refused where verl would ignore it or not know it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luspo_cli.config.peers import ACTOR
from luspo_cli.errors import UsageError, nearest

TOP_GROUPS = (
    "actor_rollout_ref", "data", "critic", "reward", "algorithm", "distillation", "transfer_queue", "trainer",
    "global_profiler", "skip", "ray_kwargs",
)  # fmt: skip
"""What verl's configuration has at its top, but groups of older releases."""
LEGACY_REWARD = ("custom_reward_function", "reward_model", "sandbox_fusion")
_DEAD = {
    f"{ACTOR}.grad_clip": "update.gradient_clip",
    f"{ACTOR}.clip_ratio": "objective.clip_low and objective.clip_high",
    "data.truncation": "data.max_prompt_tokens: longer prompts are left out",
    "algorithm.filter_groups.max_num_gen_batches": "nothing: verl's trainer ignores it",
}
"""Keys that verl takes and nothing reads, and what to set instead."""


class Verbatim(str):
    """A value that is written as the user wrote it."""


def further_settings(overrides: Sequence[str], decided: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Key and value of each override, as they are; UsageError for a key that `decided` holds, or that verl lacks or ignores."""
    bare = {key.lstrip("+") for key in decided}
    for override in overrides:
        key, _, value = override.partition("=")
        name = key.lstrip("+~").strip()
        if name.split(".")[0] in LEGACY_REWARD:
            raise UsageError(
                f"verl.overrides: '{name}' is a key of older releases that verl 0.9.1 takes and ignores: its rewards are under"
                " reward., and [reward] decides them"
            )
        if name in _DEAD:
            raise UsageError(f"verl.overrides: verl takes '{name}' and nothing reads it; set {_DEAD[name]}")
        if name in bare or name in ("model_engine", "trainer.use_legacy_worker_impl"):
            raise UsageError(
                f"verl.overrides: '{name}' is decided by the other keys of this run: docs/verl.md says which"
            )
        top = name.split(".")[0]
        if top in ("actor", "rollout", "model", "ref"):
            raise UsageError(f"verl.overrides: '{name}' has no group: its full name is 'actor_rollout_ref.{name}'")
        if top not in (*TOP_GROUPS, "hydra") and not key.startswith("+"):
            raise UsageError(
                f"verl.overrides: verl's configuration has no '{top}'{nearest(top, TOP_GROUPS)}: its groups are"
                f" {', '.join(TOP_GROUPS)}"
            )
        if inside := next((one for one in bare if one.startswith(f"{name}.")), None):
            raise UsageError(
                f"verl.overrides: '{name}' as a whole holds '{inside}', which is decided by the other keys of this run: set"
                " its other keys one by one"
            )
        yield key.strip(), Verbatim(value)
