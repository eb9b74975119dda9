"""The dry run's plan as text, in the order in which a reader asks: which objective, which settings, how much, with what."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from luspo_cli.config.objective_text import ObjectiveText
from luspo_cli.config.run import MADE, TrainRun
from luspo_cli.runs.folder import IfExists
from luspo_cli.training.dry_run import Plan, make_plan


def dry_run_text(
    config: TrainRun,
    processes: int,
    run: Path,
    if_exists: IfExists,
    about: Sequence[str],
    warnings: Sequence[str],
    *,
    verl: tuple[Path | None, str] | None,
    as_json: bool,
) -> str:
    """Return what `luspo train --dry-run` prints; `verl`: its interpreter and Ray address, where it trains."""
    if verl:
        from luspo_cli.training.verl.dry_run import verl_plan_text

        python, ray_address = verl
        return verl_plan_text(config, run, if_exists, ray_address, python, as_json=as_json)
    plan = make_plan(config, processes, run, if_exists, tuple(about), list(warnings))
    return json.dumps(asdict(plan), indent=2) if as_json else plan_text(plan)


def plan_text(plan: Plan) -> str:
    """Return the plan as the lines that `luspo train --dry-run` prints."""
    return "\n".join(_lines(plan))


def _lines(plan: Plan) -> Iterator[str]:
    objective, work = ObjectiveText(**plan.objective), plan.work
    yield f"objective {objective.name}"
    yield from (f"  {title:<12} {text}" for title, text in objective.lines())
    forks = bool(plan.configuration["fork"]["checkpoint"])
    warms_up = plan.configuration["model"]["path"] == MADE and not forks
    idle = ["objective", *["warmup"] * (not warms_up), *["fork"] * (not forks)]
    yield "\nconfiguration"
    for section, values in plan.configuration.items():
        if section not in idle:
            yield f"  [{section}] " + ", ".join(f"{key}={value}" for key, value in values.items())
    yield (
        f"\nwork  {work['steps']:,} steps of {work['rollouts_per_step']:,} rollouts,"
        f" {work['optimizer_steps']:,} optimizer steps of {work['rollouts_per_optimizer_step']:,.0f} rollouts,"
        f" at most {work['response_tokens_at_most']:,} response tokens"
    )
    if lag := plan.configuration["rollout"]["lag"]:
        yield (
            f"\nlag  a batch trains {lag} steps after it was sampled, under old log-probs of the policy that sampled it: steps 1"
            f" to {lag} train nothing, and the last {lag} batches are never trained"
        )
    for one in plan.rewards:
        yield (
            f"\nreward  {one['name']} (weight {one['weight']:g}): {one['function']}, called once a {one['called']} as"
            f" {one['signature']}; sha256 {one['sha256'][:12]}"
        )
    unasked = "; whether its servers answer is not asked here" if plan.sampler["name"] == "vllm-server" else ""
    yield f"\nsampler  {plan.sampler['name']} ({plan.sampler['reason']}){unasked}"
    of = "" if plan.processes == 1 else f" of {plan.processes}"
    yield f"\nmemory on one device{of} (estimate, GiB; {plan.parameters:,} parameters, {plan.trained:,} trained)"
    if images := plan.images:
        gib = 4 * images["parameters"] / 2**30
        tower = "trained" if images["trained"] else "not trained, so it has neither gradients nor moments, and"
        yield (
            f"  images: a vision tower of {images['parameters']:,} parameters ({gib:.2f} GiB in float32), {tower} at most"
            f" {images['tokens']:,} tokens an image"
        )
    for name, size in plan.memory_gib.items():
        yield f"  {name.replace('_', ' '):<16} {size:8.2f}"
    yield from (f"  note: {note}" for note in plan.memory_notes)
    yield from (f"\nwarning: {sentence}" for sentence in plan.warnings)
    if plan.about:
        yield "\nabout this preset"
        yield from (f"  {line}" for line in plan.about)
    yield "\nmissing" if plan.missing else "\nnothing is missing"
    yield from (f"  {sentence}" for sentence in plan.missing)
