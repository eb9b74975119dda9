"""The child of bench/step.py that trains with luspo, as `luspo train` does; with `--record FILE` it only samples.

python bench/shared/step_luspo.py SPECIFICATION [--record FILE]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luspo_cli.records import Problem, Prompt, Reward, Rollout, StopReason
from luspo_cli.training.loop import Stages, train
from shared.child import Phases, say, state_gib
from shared.engine import configuration, prepared_stages
from shared.forced import Spec, forced_reward, read_recorded, read_spec


class Replayed:
    """A sampler whose draws are made, and then replaced by recorded ones."""

    def __init__(self, sampler: Any, recorded: Sequence[Sequence[Sequence[int]]]) -> None:
        self.sampler, self.recorded, self.given = sampler, recorded, 0

    def sample_groups(self, prompts: Sequence[Prompt], options: Any, *rest: Any) -> list[list[Rollout]]:
        self.sampler.sample_groups(prompts, options, *rest)
        groups = self.recorded[self.given : self.given + len(prompts)]
        self.given += len(prompts)
        return [
            [Rollout(prompt.problem_id, prompt.tokens, tuple(tokens), "", StopReason.END) for tokens in group]
            for prompt, group in zip(prompts, groups, strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sampler, name)


class ForcedRubric:
    """Grades as the rubric does, and then pays what was decided before."""

    def __init__(self, rubric: Any, pay: Callable[[int, int], float]) -> None:
        self.rubric, self.pay = rubric, pay

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rubric, name)

    def score_groups(
        self, problems: Sequence[Problem], groups: Sequence[Sequence[Rollout]]
    ) -> list[tuple[Reward, ...]]:
        return [
            tuple(replace(reward, total=self.pay(group, row)) for row, reward in enumerate(rewards))
            for group, rewards in enumerate(self.rubric.score_groups(problems, groups))
        ]


def settings(spec: Spec) -> list[str]:
    """The configuration of a specification, beside `ONE_UPDATE`."""
    return [
        f"rollout.problems={spec['problems_a_step']}", f"rollout.group_size={spec['group_size']}",
        f"rollout.max_response_tokens={spec['tokens']}", f"run.steps={spec['steps']}", f"run.threads={spec['threads']}",
        f"update.tokens_per_micro_batch={spec['micro_tokens']}", "reward.while_sampling=false", *spec["sets"],
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("specification")
    parser.add_argument("--record", type=Path)
    options = parser.parse_args()
    spec = read_spec(options.specification)
    if "packed weights" in spec["off"]:
        from luspo_cli.rollout.in_process import packed

        packed.can_pack = lambda weight: False
    config = configuration(spec["model"], spec["data"], settings(spec))
    nothing_ends = spec["mode"] == "mixed"
    with (
        tempfile.TemporaryDirectory() as folder,
        prepared_stages(config, Path(folder) / "run", nothing_ends=nothing_ends) as (
            stages,
            run,
        ),
    ):
        if options.record:
            options.record.write_text(json.dumps(recorded(stages, config.run.steps)), encoding="utf-8")
            say({})
            return
        turn_off(stages, spec["off"])
        phases = Phases()
        if pay := forced_reward(spec["mode"]):
            stages = replace(stages, rubric=ForcedRubric(stages.rubric, pay))
        if spec["mode"] == "half":
            stages = replace(stages, sampler=Replayed(stages.sampler, read_recorded(spec)))
        phases.watch(stages.sampler, "sample_groups", "rollout")
        phases.watch(stages.rubric, "score_groups", "reward")
        records: list[dict[str, Any]] = []

        def on_step(record: dict[str, Any]) -> None:
            phases.step_done()
            records.append(record)

        phases.begin()
        train(config, stages, run, 0, on_step, lambda: False)
        measured = records[spec["warm_up"] :]
        rows = spec["problems_a_step"] * spec["group_size"]
        tokens = [record["response_length/mean"] * rows for record in measured]
        say(
            phases.summary(spec["warm_up"])
            | {
                "response tokens": sum(tokens) / len(tokens),
                "rows trained": sum(record["update/rows_trained"] for record in measured) / len(measured),
                "state GiB": state_gib(stages.updater.policy.parameters(), stages.updater.optimizer),
            }
        )


def recorded(stages: Stages, steps: int) -> list[list[list[int]]]:
    """[groups of all steps][rollouts] response tokens of the untrained policy."""
    from luspo_cli.training.sampling import training_draws

    found = []
    stages.refresh_sampler()
    for step in range(steps):
        prompts = [stages.to_prompt(problem) for problem in stages.problems.batch(step)]
        draws = replace(training_draws(stages.updater.config), seed=step)
        found += stages.sampler.sample_groups(prompts, draws)
    return [[list(rollout.response_tokens) for rollout in group] for group in found]


def turn_off(stages: Stages, tricks: Sequence[str]) -> None:
    """Do without these; `packed weights` was seen to before the sampler was made, what a setting turns off is in `sets`."""
    policy = getattr(stages.updater.policy, "module", stages.updater.policy)
    for trick in tricks:
        if trick == "prompt once":
            policy._joins = False
        elif trick == "recorded decode step":
            from luspo_cli.rollout.in_process.decode_step import DecodeStep

            stages.sampler.step = DecodeStep(stages.sampler.model, record=False)
        elif trick == "fused optimizer":
            for group in stages.updater.optimizer.param_groups:
                group["fused"], group["foreach"] = False, False
        elif trick != "packed weights":
            sys.exit(f"there is no switch for '{trick}'")


if __name__ == "__main__":
    main()
