"""The configuration of `luspo lab`: an exact model of a policy over lengths, under the recipe of a training preset.

Sections and keys that training has too are called as there and mean the same. A preset gives the objective's free keys, the
batch, the mini-batches, betas, gradient limit and steps. The learning rate is the lab's own, since its parameters are logits and
not weights, and so is the response limit, which lies far away. `--set` goes on top.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from luspo_cli.config.base import Section
from luspo_cli.config.layers import all_keys, merge, nested, parse_set, preset_objective, resolve_train, validated
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.config.update import Beta, broken_groups
from luspo_cli.errors import UsageError

LAB_PRESET = "tiny"


class LabModelConfig(Section):
    """The policy at the start: filler tokens until it stops, then an answer, then the end of the response."""

    length: float = Field(default=21.5, gt=2)
    """Mean tokens of a response at the start, answer and end included, the response limit left aside."""
    accuracy: float = Field(default=0.45, gt=0, lt=1)
    """Share of right answers at the start."""
    prompt_types: int = Field(default=1, ge=1)
    """Kinds of prompts, each with answer logits of its own."""
    skill_spread: float = Field(default=0.0, ge=0)
    """Standard deviation over prompt types of the right answer's logit at the start."""
    answers: int = Field(default=2, ge=2)
    """Tokens that an answer token can be, one of them right; all logits but the last one's are parameters."""
    answer_tokens: int = Field(default=1, ge=1)
    """Tokens of an answer; it is right where all of them are."""
    answer_noise: float = Field(default=0.0, ge=0)
    """Standard deviation, in logits, by which the first optimizer step moves each wrong answer of prompts that it did not train
    on; later ones move them as far as AdamW moves a weight whose gradients are noise. 0: an update moves all prompts alike."""
    ending: float = Field(default=1.0, gt=0, le=1)
    """Chance of the end after the answer, a parameter; any other token spoils the answer. 1: certain, no parameter."""
    stop_bins: int = Field(default=1, ge=1)
    """Bins of positions with a stopping logit each; 1: the same chance everywhere."""
    stop_bin_tokens: int = Field(default=8, ge=1)
    """Positions of a bin; the last bin has all further ones."""
    stop_profile: tuple[float, ...] = Field(default=(), strict=False)
    """Fixed logits, one a bin of positions, added to one stopping logit: the shape of the length distribution. Empty: flat."""
    stop_by_type: bool = False
    """Stopping logits of each prompt type's own."""
    coupling: float = 0.0
    """One more parameter is added to every right answer's logit and, times this, to every stopping logit; 0: there is none."""

    @property
    def bins(self) -> int:
        """Bins of positions that are told apart."""
        return len(self.stop_profile) or self.stop_bins

    def faults(self) -> Iterator[str]:
        if self.answer_noise and self.answers == 2:
            yield "model.answer_noise moves wrong answers apart and needs several: set model.answers, for example to 10"
        if self.bins == 1 and self.changed("stop_bin_tokens"):
            yield "model.stop_bin_tokens needs model.stop_bins above 1 or a model.stop_profile: one bin has all positions"
        if self.stop_profile and self.stop_bins > 1:
            yield "model.stop_profile has bins of its own and one stopping logit for all: leave model.stop_bins out"
        for key in self.changed("skill_spread", "stop_by_type") if self.prompt_types == 1 else ():
            yield f"model.{key} needs model.prompt_types above 1: with one type there is nothing to tell apart"
        if self.accuracy >= self.ending:
            yield (
                f"model.accuracy ({self.accuracy:g}) must be below model.ending ({self.ending:g}): no response without its end"
                " is right"
            )


class LabDataConfig(Section):
    """What a response's length has to do with its reward."""

    profile: Literal["neutral", "coin", "pays", "costs"] = "neutral"
    """neutral: nothing. coin: the reward is a fair coin. pays, costs: a longer response is likelier, or less likely, right."""
    length_gain: float = Field(default=1.0, gt=0)
    """With pays and costs: logits that the right answer gains or loses where the filler is e times as long as at the start."""

    def faults(self) -> Iterator[str]:
        if self.profile in ("neutral", "coin") and self.changed("length_gain"):
            yield "data.length_gain needs data.profile = pays or costs; nothing else reads it"


class LabRolloutConfig(Section):
    """One batch of responses."""

    problems: int = Field(default=16, ge=1)
    """Problems a step."""
    group_size: int = Field(default=16, ge=2)
    """Rollouts a problem."""
    max_response_tokens: int = Field(default=2048, ge=2)
    """The response limit: a response that reaches it without its end is truncated and wrong, so that length has a price. So far
    away as here it has none; the preset's own limit is not taken over."""


class LabUpdateConfig(Section):
    """Optimizer steps on mini-batches of whole groups, for each seed on its own."""

    mini_batches: int = Field(default=4, ge=1)
    """Optimizer steps a rollout batch; 1 is strictly on-policy."""
    learning_rate: float = Field(default=0.02, gt=0)
    """In logits: with AdamW about the largest move of a logit in one optimizer step."""
    answer_rate: float = Field(default=1.0, gt=0)
    """Learning rate of the answers' logits, as a multiple of the others'."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.99), strict=False)
    """AdamW's decay rates of the gradient's mean and of its square."""
    gradient_clip: float = Field(default=1.0, ge=0)
    """Largest norm of a seed's gradient; 0: off."""


class LabStepsConfig(Section):
    """Length and seeds."""

    steps: int = Field(default=60, ge=1, le=10**5)
    """Training steps: one batch of rollouts each."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The first seed; the others follow. A seed's numbers do not depend on those beside it."""


class LabRun(Section):
    """Everything that an experiment in the lab depends on, but for the number of seeds."""

    objective: ObjectiveConfig
    model: LabModelConfig = LabModelConfig()
    data: LabDataConfig = LabDataConfig()
    rollout: LabRolloutConfig = LabRolloutConfig()
    update: LabUpdateConfig = LabUpdateConfig()
    run: LabStepsConfig = LabStepsConfig()

    def faults(self) -> Iterator[str]:
        model, rollout = self.model, self.rollout
        yield from broken_groups(rollout.problems, self.update.mini_batches)
        tail = model.answer_tokens + 1
        if not tail < model.length < rollout.max_response_tokens:
            yield (
                f"model.length ({model.length:g}) must lie between the tokens of answer and end ({tail}) and"
                f" rollout.max_response_tokens ({rollout.max_response_tokens})"
            )
        if (model.bins - 1) * model.stop_bin_tokens >= rollout.max_response_tokens:
            yield (
                f"the {model.bins} bins of model.stop_bin_tokens = {model.stop_bin_tokens} positions must begin before"
                f" rollout.max_response_tokens ({rollout.max_response_tokens})"
            )
        if self.objective.entropy_coefficient > 0:
            yield "objective.entropy_coefficient is not part of the lab's model: leave it out"


def resolve_lab(
    objective: str, *, preset: str = LAB_PRESET, sets: Sequence[str] = (), swept: tuple[str, Any] | None = None
) -> LabRun:
    """The experiment under `objective`: the preset's recipe, then `sets`, then the key and value of a sweep.

    UsageError, one sentence, for what is wrong.
    """
    recipe = resolve_train(preset=preset)
    layer: dict[str, Any] = {
        "rollout": {key: getattr(recipe.rollout, key) for key in ("problems", "group_size")},
        "update": {key: getattr(recipe.update, key) for key in ("mini_batches", "betas", "gradient_clip")},
        "run": {"steps": recipe.run.steps},
    }
    place = f"presets/{preset}.toml"
    named = {"objective": preset_objective(preset, objective)}
    return layered(((layer, place), (named, place if objective != "custom" else "--set")), sets, swept)


def layered(
    layers: Sequence[tuple[Mapping[str, Any], str]], sets: Sequence[str] = (), swept: tuple[str, Any] | None = None
) -> LabRun:
    """The experiment of `layers`, each with where it comes from and the later ones on top, then `sets`, then `swept`."""
    given = [(parse_set(assignment, "update.mini_batches=8"), "--set", assignment) for assignment in sets]
    if swept is not None:
        given.append((nested(*swept), "--sweep", swept[0]))
    for parsed, option, text in given:
        if "name" in parsed.get("objective", {}):
            raise UsageError(f"{option} {text}: the lab itself sets this; use --objectives.")
        key = text.partition("=")[0].strip()
        if key in _keys(TrainRun) - _keys(LabRun):
            raise UsageError(
                f"{option}: unknown key '{key}': the lab does not model this key of a training; leave it out."
            )
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, origin in (*layers, *((parsed, option) for parsed, option, _ in given)):
        merge(merged, origins, layer, origin, root=LabRun)
    config = validated(LabRun, merged, origins)
    if config.update.optimizer == "sgd" and (origin := origins["update.betas"]) in ("--set", "--sweep"):
        raise UsageError(f"{origin}: update.betas is AdamW's; leave it out with update.optimizer = 'sgd'")
    return config


def _keys(root: type[Section]) -> set[str]:
    return {key for key, _ in all_keys(root)}
