"""From a resolved configuration to a running loop: load or resume, build the stages, train, leave the folder whole.

Everything that can fail for a reason the user can mend (model, data, golds) is checked before the run folder is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.config.run import MADE, MADE_TERMS, TrainRun
from luspo_cli.data.batches import BatchSource, ProblemBatches
from luspo_cli.data.problems import load_problems
from luspo_cli.data.terms import MadeTermsBatches, held_out_terms
from luspo_cli.errors import UsageError
from luspo_cli.policy import attention
from luspo_cli.policy.inputs import fitting, prompt_inputs
from luspo_cli.policy.loading import LoadedModel, freeze_vision, load_model, no_progress_bars
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Problem
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.in_process import InProcessSampler
from luspo_cli.rollout.packed_linear import bfloat16_copy
from luspo_cli.rollout.sampler import Prompt, SamplingOptions
from luspo_cli.run_folder import IfExists, RunFolder
from luspo_cli.training.changed_inputs import as_records, changed_inputs, configuration_fingerprint, refuse_changed
from luspo_cli.training.checkpoint import Checkpoint, load_optimizer, newest_whole, remove_leftovers, save_checkpoint
from luspo_cli.training.dynamic_sampling import SignalWatch
from luspo_cli.training.held_out import SEED_OFFSET, HeldOut
from luspo_cli.training.host_memory import peak_memory_gib
from luspo_cli.training.loop import Stages, train
from luspo_cli.training.made_model import made_model
from luspo_cli.training.provenance import provenance, record_provenance
from luspo_cli.training.stopping import stop_on_signals
from luspo_cli.training.tracking import Tracking, check_writers
from luspo_cli.training.update import Updater

NOISE_SHARE = 0.2
"""Of the clip range: noise beyond it is warned about."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a session ended."""

    last_step: int
    finished: bool
    stopped_by: int | None = None
    """The signal that asked for the end, where one did."""


@dataclass(frozen=True, slots=True)
class Problems:
    """What a run trains on and is checked with."""

    source: BatchSource
    held_out: list[Problem]
    everything: list[Problem]
    """Training problems from a file (empty for made ones): their golds are checked before the first step."""


def run_training(
    config: TrainRun,
    path: Path,
    if_exists: IfExists,
    say: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None],
    allow_changed: bool = False,
) -> Outcome:
    """Train as configured in run folder `path`; raises UsageError or RunError with one sentence.

    `allow_changed`: go on although data, starting model or config.json are not what the run began with.
    """
    import torch

    check_writers(config.run.track)
    there = RunFolder(path).check(config.model_dump(mode="json"), if_exists)  # before minutes of loading or warming up
    if config.run.threads:
        torch.set_num_threads(config.run.threads)
    attention.register()
    no_progress_bars()  # a made model is saved before one is loaded
    starting = _starting_folder(config, say)
    began_with = RunFolder(path).stored_config() if there and if_exists == "resume" else None
    changes = changed_inputs(path / "provenance.json", _origin(config, starting, began_with)) if began_with else []
    if not allow_changed:
        refuse_changed(changes)
    loaded = load_model(config.model.model_copy(update={"path": str(starting)}) if starting else config.model)
    problems = _problems(config, loaded, say)
    with RunFolder(path) as folder, Rubric(config.reward, config.rollout.max_response_tokens) as rubric:
        _check_golds(rubric, problems)
        resumed = folder.open(config.model_dump(mode="json"), if_exists)
        checkpoint = _checkpoint(folder, config.run.keep_checkpoints, say) if resumed else None
        first_step = checkpoint.step if checkpoint else 0
        if resumed:
            # From the very start with other inputs, the evaluation before step 1 is another one as well.
            folder.cut_back(-1 if changes and not checkpoint else first_step)
        if first_step >= config.run.steps:
            with Tracking(config, folder, say):  # hands over what a writer that failed does not have
                say(f"run {path} is finished: step {first_step} of {config.run.steps}")
            return Outcome(first_step, True)
        if resumed:
            say(f"going on after step {first_step}")
        for change in changes:
            say(f"warning: going on all the same: {change}")
        origin = _origin(config, starting, began_with or config.model_dump(mode="json"))
        record_provenance(path / "provenance.json", origin, first_step, as_records(changes))
        reference = None
        if checkpoint:
            reference = loaded.model if config.objective.kl_coefficient > 0 else None
            del loaded  # its weights would stay in memory beside the checkpoint's until the run ends
            loaded = load_model(config.model.model_copy(update={"path": str(checkpoint.path / "model")}))
        stages = _stages(config, loaded, problems, rubric, folder, checkpoint, reference)
        with Tracking(config, folder, say) as tracking, stop_on_signals(say) as stop_requested:
            noise, signal_watch = _NoiseWatch(config, say), SignalWatch(config, say, folder.records())

            def report(metrics: dict[str, Any]) -> None:
                noise(metrics)
                tracking.write(metrics)
                on_step(metrics)
                signal_watch(metrics)  # last: it may end the run

            last = train(config, stages, folder, first_step, report, stop_requested)
        say(f"peak memory of this process {peak_memory_gib():.1f} GiB")
    return Outcome(last, last == config.run.steps, stop_requested.signal)


class _NoiseWatch:
    """Warns once where arithmetic alone moves sequence ratios by more than a fifth of the clip range."""

    def __init__(self, config: TrainRun, say: Callable[[str], None]) -> None:
        widths = [width for width in (config.objective.clip_low, config.objective.clip_high) if width]
        self._limit = NOISE_SHARE * min(widths) if widths and config.objective.ratio == "sequence" else None
        self._say = say

    def __call__(self, metrics: dict[str, Any]) -> None:
        noise = metrics.get("ratio/noise_floor")
        if noise is not None and self._limit is not None and noise > self._limit:
            self._say(
                f"warning: the ratio noise floor {noise:.1e} is above a fifth of the clip range ({self._limit:.1e}):"
                " part of the clipping is arithmetic, not learning; model.compute_dtype=float32 avoids it"
            )
            self._limit = None


def _starting_folder(config: TrainRun, say: Callable[[str], None]) -> Path | None:
    return made_model(config, say) if config.model.path == MADE else None


def _origin(config: TrainRun, starting: Path | None, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """What this session's numbers can be traced to; `configuration` as config.json has it."""
    return {**provenance(config, starting), "configuration": configuration_fingerprint(configuration)}


def _checkpoint(folder: RunFolder, keep: int, say: Callable[[str], None]) -> Checkpoint | None:
    checkpoint, notes = newest_whole(folder.checkpoints)
    for note in notes:
        say(f"warning: {note}; going back to the one before")
    if checkpoint:
        remove_leftovers(folder.checkpoints, checkpoint.step, keep)
    return checkpoint


def _problems(config: TrainRun, loaded: LoadedModel, say: Callable[[str], None]) -> Problems:
    data, seed = config.data, config.run.seed
    if not data.train:
        raise UsageError("data.train is empty; set it to a file or folder from `luspo prepare-data`")
    held_out: list[Problem] = []
    if config.evaluation.every:
        held_out = _held_out(config)
    if data.train == MADE_TERMS:
        return Problems(MadeTermsBatches(data.profile, config.rollout.problems, seed), held_out, [])
    problems, too_long = fitting(
        load_problems(data.train),
        loaded.tokenizer,
        data.max_prompt_tokens,
        loaded.processor,
        _image_folder(data.train),
    )
    if too_long:
        say(
            f"{too_long} of {too_long + len(problems)} problems have prompts over {data.max_prompt_tokens} tokens: left out"
        )
    if not problems:
        raise UsageError(
            f"no problem of {data.train} has a prompt within data.max_prompt_tokens={data.max_prompt_tokens}"
        )
    return Problems(ProblemBatches(problems, config.rollout.problems, seed, data.shuffle), held_out, problems)


def _image_folder(path: str) -> Path:
    """Where the images of a data file or folder lie: beside the file."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def _held_out(config: TrainRun) -> list[Problem]:
    number = config.evaluation.problems
    if config.data.held_out == MADE_TERMS:
        return held_out_terms(config.data.profile, number, config.run.seed)
    problems = load_problems(config.data.held_out, split="test")
    if len(problems) < number:
        raise UsageError(
            f"{config.data.held_out} has {len(problems)} problems, fewer than evaluation.problems={number}"
        )
    return problems[:number]


def _check_golds(rubric: Rubric, problems: Problems) -> None:
    """A gold answer that cannot be read would score every response wrong: refuse before the first step."""
    bad = rubric.check_golds([*problems.everything, *problems.held_out])
    if bad:
        raise UsageError(
            f"{len(bad)} gold answers cannot be read (first: problem '{bad[0]}'); run the data through luspo prepare-data,"
            " which filters such rows"
        )


def _stages(
    config: TrainRun,
    loaded: LoadedModel,
    problems: Problems,
    rubric: Rubric,
    folder: RunFolder,
    checkpoint: Checkpoint | None,
    reference_model: Any,
) -> Stages:
    import copy

    import torch
    from accelerate import Accelerator

    low_precision = config.model.compute_dtype == "bfloat16"
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if low_precision else "no")
    reference = None
    if config.objective.kl_coefficient > 0:
        frozen = (reference_model or copy.deepcopy(loaded.model)).requires_grad_(False).eval().to(accelerator.device)
        reference = Policy(frozen, config.rollout.temperature)
    if config.model.freeze_vision:
        freeze_vision(loaded.model)
    policy = Policy(loaded.model, config.rollout.temperature).train()
    names, optimizer = _optimizer(policy, config)
    if checkpoint:
        load_optimizer(checkpoint, optimizer, names)
    prepared, optimizer = accelerator.prepare(policy, optimizer)
    sampling_model = bfloat16_copy(policy.model) if low_precision else policy.model

    sampler = InProcessSampler(sampling_model, loaded.tokenizer, loaded.end_tokens, config.rollout.max_rows)

    def save(step: int) -> Path:
        folder.check_still_here()
        return save_checkpoint(
            folder.checkpoints,
            step,
            policy.model,
            loaded.processor or loaded.tokenizer,
            optimizer,
            names,
            config.run.keep_checkpoints,
        )

    def prompts_of(path: str) -> Callable[[Problem], Prompt]:
        def to_prompt(problem: Problem) -> Prompt:
            inputs = prompt_inputs(problem, loaded.tokenizer, loaded.processor, _image_folder(path))
            return Prompt(problem.id, inputs.tokens, inputs.image_inputs)

        return to_prompt

    return Stages(
        problems=problems.source,
        to_prompt=prompts_of(config.data.train),
        sampler=sampler,
        rubric=rubric,
        updater=Updater(prepared, optimizer, accelerator, config, reference),
        held_out=_held_out_check(config, problems, prompts_of(config.data.held_out), rubric),
        refresh_sampler=lambda: sampler.load_weights(policy.model),
        save=save,
    )


def _optimizer(policy: Policy, config: TrainRun) -> tuple[list[str], Any]:
    """AdamW; weight decay on matrices only. Returns the parameters' names in the optimizer's order with it."""
    import torch

    named = [(name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad]
    matrices = [(name, parameter) for name, parameter in named if parameter.dim() >= 2]
    others = [(name, parameter) for name, parameter in named if parameter.dim() < 2]
    settings = config.update
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter for _, parameter in matrices], "weight_decay": settings.weight_decay},
            {"params": [parameter for _, parameter in others], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )
    return [name for name, _ in (*matrices, *others)], optimizer


def _held_out_check(
    config: TrainRun, problems: Problems, to_prompt: Callable[[Problem], Prompt], rubric: Rubric
) -> HeldOut | None:
    if not config.evaluation.every:
        return None
    settings = config.evaluation
    options = SamplingOptions(
        group_size=settings.samples,
        max_response_tokens=settings.max_response_tokens or config.rollout.max_response_tokens,
        temperature=settings.temperature,
        seed=config.run.seed + SEED_OFFSET,
    )
    return HeldOut(problems.held_out, [to_prompt(problem) for problem in problems.held_out], options, rubric)
