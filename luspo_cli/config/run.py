"""The root of a training configuration, and the rules between its sections."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, field_validator

from luspo_cli.config.base import Section
from luspo_cli.config.data import DataConfig
from luspo_cli.config.evaluation import EvaluationConfig
from luspo_cli.config.fork import ForkConfig
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.own_objective import label_of
from luspo_cli.config.reward import RewardConfig
from luspo_cli.config.rollout import RolloutConfig
from luspo_cli.config.update import UpdateConfig, broken_groups
from luspo_cli.config.verl import VerlConfig
from luspo_cli.config.warmup import WarmupConfig

MADE = "made"
MADE_TERMS = "made:terms"
MADE_PICTURES = "made:pictures"
PICTURE_KINDS = ("shapes", "bars", "clock", "table")
MADE_TASKS = (MADE_TERMS, MADE_PICTURES, *(f"{MADE_PICTURES}/{kind}" for kind in PICTURE_KINDS))
"""What `data.train` and `data.held_out` call the tasks made on the spot: of pictures a mix, or one kind."""
STORED_ONLY = frozenset(
    {
        "run.checkpoint_every",
        "run.checkpoint_last",
        "run.keep_checkpoints",
        "run.rollouts_every",
        "run.track",
        "run.wait_for_processes_s",
    }
)
"""Keys that change what is stored and no number of the run: a resumed run takes them as they are given."""


class RunConfig(Section):
    """Length, seed and bookkeeping of the run."""

    engine: Literal["luspo", "verl"] = "luspo"
    """Who trains: this program, or verl on Ray in an environment of its own, as [verl] says (docs/verl.md)."""
    steps: int = Field(default=60, ge=1, le=10**7)
    """Training steps: one batch of rollouts each."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of everything drawn: problems, responses, and for a made model its weights and demonstrations."""
    threads: int = Field(default=0, ge=0)
    """CPU threads of this process; 0: as torch chooses, and with several processes a machine's cores shared out. Changes the last
    bits of results."""
    wait_for_processes_s: float = Field(default=3600, gt=0)
    """With several processes: seconds that one waits for an answer of the others before it stops. The end of one is noticed
    without this; it bounds a process that hangs, so it must exceed what the slowest one takes longer than the fastest."""
    checkpoint_every: int = Field(default=50, ge=0)
    """Training steps between checkpoints; the last step has one too. 0: the last only."""
    checkpoint_last: bool = True
    """Whether the last step has one. Without it a finished run has its numbers and no weights to evaluate or to go on from."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """Newest checkpoints kept."""
    rollouts_every: int = Field(default=10, ge=0)
    """Training steps between stored rollout batches (parquet), the first step's included; 0: none."""
    track: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(default=(), strict=False)
    """Where the numbers of metrics.jsonl go besides; needs the extra `track`."""

    @field_validator("track")
    @classmethod
    def _each_once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) < len(names):
            raise ValueError(f"run.track names a writer twice: {', '.join(names)}")
        return names


class TrainRun(Section):
    """Everything that a training run depends on; `config.json` is this, resolved."""

    objective: ObjectiveConfig
    model: ModelConfig = ModelConfig()
    warmup: WarmupConfig = WarmupConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    update: UpdateConfig = UpdateConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    run: RunConfig = RunConfig()
    fork: ForkConfig = ForkConfig()
    verl: VerlConfig = VerlConfig()

    def folder_name(self, preset: str) -> str:
        """What a run's folder is called where nothing else is said: PRESET-OBJECTIVE-seedK."""
        return f"{preset}-{label_of(self.objective.name)}-seed{self.run.seed}"

    def faults(self) -> Iterator[str]:
        rollout, update, data, reward = self.rollout, self.update, self.data, self.reward
        yield from broken_groups(rollout.problems, update.mini_batches)
        if rollout.max_rows < rollout.group_size:
            yield (
                f"rollout.max_rows ({rollout.max_rows}) must be at least rollout.group_size ({rollout.group_size}):"
                " a group shares its prompt's computation"
            )
        if rollout.sampler != "auto" and (reason := self.graph_refused(rollout.sampler)):
            yield reason
        if reward.overlong_buffer >= rollout.max_response_tokens:
            yield (
                f"reward.overlong_buffer ({reward.overlong_buffer}) must be smaller than rollout.max_response_tokens"
                f" ({rollout.max_response_tokens})"
            )
        if reward.format_weight and reward.format == "none":
            yield "reward.format_weight needs reward.format: one of boxed, gsm8k, answer-line"
        for key, task in (("train", data.train), ("held_out", data.held_out)):
            if task.startswith(f"{MADE}:") and task not in MADE_TASKS:
                yield f"data.{key} = '{task}' is no made task: choose one of {', '.join(MADE_TASKS)}"
        if self.model.path == MADE:
            yield from self._faults_of_made_data()
        if reward.overlong_weight != 1.0 and not reward.overlong_buffer:
            yield "reward.overlong_weight changes nothing while reward.overlong_buffer is 0: set the buffer too"
        yield from self._correction_faults()
        yield from self._lag_faults()
        pays = reward.accuracy_weight or reward.cosine_length_weight or reward.verifier == "function"
        if self.rollout.dynamic_sampling and not pays:
            yield (
                "rollout.dynamic_sampling looks for groups with right and wrong answers, and reward.accuracy_weight is 0: set"
                " one of them otherwise"
            )
        if self.model.sharding == "full" and (
            update.offload_optimizer or update.optimizer != "adamw" or update.moments != "float32"
        ):
            yield (
                "model.sharding = full shares out AdamW's float32 moments: leave out update.optimizer, update.moments and"
                " update.offload_optimizer, or set model.sharding = none"
            )
        if update.ramp_steps > (spanned := self.fork.schedule_steps or self.run.steps):
            yield f"update.ramp_steps ({update.ramp_steps}) must not exceed run.steps ({spanned})"
        if self.evaluation.temperature == 0 and self.evaluation.samples > 1:
            yield "evaluation.temperature = 0 gives the same response each time: set evaluation.samples = 1"
        yield from self._faults_of_made_parts()
        if self.fork.checkpoint:
            yield from self._fork_faults()
        if self.evaluation.every and not data.held_out:
            yield "evaluation.every needs data.held_out: a file or folder from luspo prepare-data"
        if self.model.path == MADE:
            yield from self._shape_faults()

    def _lag_faults(self) -> Iterator[str]:
        lag = self.rollout.lag
        if not lag:
            return
        if self.fork.checkpoint:
            yield (
                "a fork trains its parent's rollouts at once and leaves out the batches that wait in its parent's checkpoint: set"
                " rollout.lag = 0"
            )
        elif lag >= self.run.steps:
            yield f"rollout.lag ({lag}) must be smaller than run.steps ({self.run.steps}): no batch would be trained"
        if self.data.train.startswith(MADE_PICTURES) and (reason := self.lag_refused(has_images=True)):
            yield reason
        if self.update.router_replay != "none":
            yield (
                f"update.router_replay = '{self.update.router_replay}' needs the experts that were met when a batch was sampled,"
                " which do not wait with it: set rollout.lag = 0, or update.router_replay = 'none'"
            )

    def lag_refused(self, *, has_images: bool) -> str | None:
        """Say why batches cannot wait to be trained."""
        if not self.rollout.lag or not has_images:
            return None
        return "rollout.lag keeps batches in the checkpoint, and images are not kept there: set rollout.lag = 0 for such problems"

    def _correction_faults(self) -> Iterator[str]:
        objective, rollout = self.objective, self.rollout
        one_a_sequence = objective.by_sequence or objective.surrogate == "gmpo"
        if self.update.sampler_correction == "token" and one_a_sequence:
            yield (
                f"update.sampler_correction = 'token' would put the sum of token weights in the place of the length in"
                f" {objective.name}, whose loss is one number a sequence: set update.sampler_correction = 'sequence'"
            )
        if rollout.sampler != "auto" and (reason := self.correction_refused(rollout.sampler)):
            yield reason

    def correction_refused(self, sampler: str, *, never_drawn: bool = False) -> str | None:
        """Say why `update.sampler_correction` cannot be had with this sampler, which `rollout.sampler = auto` may stand for.

        `never_drawn`: whether the model has tokens that are never drawn, as those of images.
        """
        rollout = self.rollout
        cut = rollout.top_p < 1 or rollout.top_k > 0 or never_drawn
        if self.update.sampler_correction == "none" or sampler == "in-process" or not cut or rollout.temperature == 1:
            return None
        return (
            "update.sampler_correction needs log-probs that vLLM does not return with rollout.top_p or rollout.top_k, or of a"
            " vision model, at this rollout.temperature: set the temperature to 1, or rollout.sampler = 'in-process'"
        )

    def graph_refused(self, sampler: str) -> str | None:
        """Say why this sampler replays no decode step as a graph; None where it does, and where nobody asks."""
        if self.model.kernels.decode != "graph" or sampler == "in-process":
            return None
        return (
            f"model.kernels.decode = 'graph' is the in-process sampler's, and '{sampler}' draws: set it to 'layers', or"
            " rollout.sampler = 'in-process'"
        )

    def routing_refused(self, sampler: str, *, has_experts: bool) -> str | None:
        """Say why what `update` asks of routers cannot be had with this sampler and model."""
        update = self.update
        key = "router_replay" if update.router_replay != "none" else "router_aux_coefficient"
        if update.router_replay == "none" and not update.router_aux_coefficient:
            return None
        if not has_experts:
            return (
                f"update.{key} is for models of experts (Qwen3-MoE, Qwen2-MoE), and model '{self.model.path}' is none: leave"
                " it out"
            )
        if update.router_replay == "rollout" and sampler != "in-process":
            return (
                "update.router_replay = 'rollout' needs the experts that the sampler met, which the one in the process alone"
                " hands over: set rollout.sampler = 'in-process', or update.router_replay = 'old'"
            )
        return None

    def _faults_of_made_data(self) -> Iterator[str]:
        train, has_tower = self.data.train, bool(self.model.shape.vision.depth)
        if train not in MADE_TASKS and not has_tower:
            yield (
                f"model.path = 'made' knows only data.train = '{MADE_TERMS}', or with model.shape.vision '{MADE_PICTURES}' and"
                " files of problems with images; set model.path for other data"
            )
        if train not in MADE_TASKS and self.reward.verifier != "exact":
            yield "model.path = 'made' writes #ANSWER: set reward.verifier = 'exact', or model.path"
        if train in MADE_TASKS and (train != MADE_TERMS) != has_tower:
            yield (
                f"data.train = '{MADE_PICTURES}' and model.shape.vision.depth belong together: a made model has a vision tower"
                f" for pictures, and none for '{MADE_TERMS}'"
            )

    def _faults_of_made_parts(self) -> Iterator[str]:
        warmup = self.warmup
        if self.model.path != MADE and warmup != WarmupConfig():
            yield "[warmup] is for model.path = 'made' alone: leave it out with another model"
        if self.data.train != MADE_TERMS and self.data.profile != "neutral":
            yield "data.profile is for data.train = 'made:terms' alone: leave it out with other data"
        if warmup.router_aux_coefficient and not self.model.shape.experts.number:
            yield (
                "warmup.router_aux_coefficient is for a made model of experts: leave it out, or set model.shape.experts.number"
            )
        if not warmup.min_accuracy <= warmup.stop_accuracy <= warmup.max_accuracy:
            yield (
                f"warmup.stop_accuracy ({warmup.stop_accuracy}) must lie between warmup.min_accuracy ({warmup.min_accuracy})"
                f" and warmup.max_accuracy ({warmup.max_accuracy}): no check could pass"
            )

    def _fork_faults(self) -> Iterator[str]:
        last, schedule = self.fork.step + self.run.steps, self.update.schedule
        if schedule != "constant" and last > self.fork.schedule_steps:
            yield (
                f"a fork up to step {last} goes past the end of its parent's learning rate (update.schedule = '{schedule}', step"
                f" {self.fork.schedule_steps}): take fewer steps or an earlier checkpoint, or set update.schedule = 'constant'"
            )
        if self.objective.kl_coefficient > 0:
            yield (
                "objective.kl_coefficient needs a reference, the weights that its run began with, and a fork has only its"
                " checkpoint: set objective.kl_coefficient=0"
            )
        if self.update.router_replay == "rollout":
            yield (
                "a fork begins with its parent's rollouts, whose experts are not stored: set update.router_replay = 'old'"
            )
        if self.evaluation.blind != "none":
            yield "a fork has no blind control: set evaluation.blind=none"
        if self.evaluation.every and self.evaluation.temperature != self.rollout.temperature:
            yield (
                "a fork measures KL and entropy on its held-out draws, so evaluation.temperature"
                f" ({self.evaluation.temperature:g}) must be rollout.temperature ({self.rollout.temperature:g})"
            )

    def _shape_faults(self) -> Iterator[str]:
        shape = self.model.shape
        if shape.experts.number and shape.vision.depth:
            yield "model.shape.experts and model.shape.vision exclude each other: no model with a tower has experts here"
        if self.model.kernels.decode == "graph" and (shape.experts.number or shape.vision.depth):
            yield (
                "model.kernels.decode = graph computes plain decoders alone, and the model of model.shape has"
                f" {'experts' if shape.experts.number else 'a vision tower'}: set it to layers"
            )
        if shape.experts.number and shape.experts.dense_layers >= shape.layers:
            yield (
                f"model.shape.experts.dense_layers ({shape.experts.dense_layers}) must be smaller than model.shape.layers"
                f" ({shape.layers}): some layer has the experts"
            )
        if shape.width % shape.heads:
            yield f"model.shape.width ({shape.width}) must be a multiple of model.shape.heads ({shape.heads})"
        if shape.width // shape.heads % 2:
            yield (
                f"model.shape.width ({shape.width}) over model.shape.heads ({shape.heads}) must be even:"
                " rotary positions turn pairs of numbers"
            )
        if shape.heads % shape.key_value_heads:
            yield (
                f"model.shape.heads ({shape.heads}) must be a multiple of model.shape.key_value_heads ({shape.key_value_heads})"
            )
