"""From a resolved configuration to a running loop: load or resume, build the stages, train, leave the folder whole.

Everything that can fail for a reason the user can mend (model, data, golds, sampler) is checked before the run folder is touched,
as far as nothing must be started for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.config.run import MADE, MADE_TERMS, TrainRun
from luspo_cli.data.batches import BatchSource, ProblemBatches
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError
from luspo_cli.policy import attention
from luspo_cli.policy.inputs import fitting
from luspo_cli.policy.loading import LoadedModel, load_model, no_progress_bars
from luspo_cli.policy.lora import add_adapters, load_adapter, require_peft
from luspo_cli.policy.model_files import unread_revision
from luspo_cli.processes.accelerate import rubric_workers, set_threads
from luspo_cli.processes.ranks import Ranks, joined
from luspo_cli.processes.signals import stop_on_signals
from luspo_cli.records import Problem
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.checkpoints import policy_folder
from luspo_cli.runs.folder import IfExists, RunFolder
from luspo_cli.runs.resume import open_run
from luspo_cli.runs.tracking import Tracking, check_writers
from luspo_cli.training.dynamic_sampling import SignalWatch
from luspo_cli.training.loop import train
from luspo_cli.training.made.model import made_model
from luspo_cli.training.made.terms import MadeTermsBatches, held_out_terms
from luspo_cli.training.memory import peak_memory_gib, shortage_explained
from luspo_cli.training.optimizer import check_optimizer
from luspo_cli.training.preflight import LongestPrompt, check_stages, longest_prompt
from luspo_cli.training.provenance import (
    Change,
    as_records,
    changed_inputs,
    configuration_fingerprint,
    provenance,
    record_provenance,
    refuse_changed,
)
from luspo_cli.training.stages import make_stages

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
    longest: LongestPrompt | None
    """Among the training problems."""
    longest_held_out: LongestPrompt | None


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
    with joined(config.run.wait_for_processes_s) as ranks, shortage_explained():
        say = say if ranks.is_first else _silent
        return _train_together(config, path, if_exists, say, on_step, allow_changed, ranks)


def _train_together(
    config: TrainRun,
    path: Path,
    if_exists: IfExists,
    say: Callable[[str], None],
    on_step: Callable[[dict[str, Any]], None],
    allow_changed: bool,
    ranks: Ranks,
) -> Outcome:
    """The part of one process; what concerns the run folder is the first one's, and its failure that of all."""
    ranks.first(lambda: check_writers(config.run.track))
    ranks.together(lambda: check_optimizer(config.update))
    # Before minutes of loading or warming up.
    there = ranks.first(lambda: RunFolder(path).check(config.model_dump(mode="json"), if_exists))
    goes_on = there and if_exists == "resume"
    ranks.first(lambda: None if goes_on else _check_revision(config))
    set_threads(config.run.threads, ranks)
    attention.register()
    no_progress_bars()  # a made model is saved before one is loaded
    made = ranks.first(lambda: _starting_folder(config, say))
    # The others read it, or make the same one where they are on another machine.
    starting = ranks.together(lambda: made if ranks.is_first else _starting_folder(config, say))
    loaded = ranks.together(lambda: _start(config, starting, say))
    problems = ranks.together(lambda: _problems(config, loaded, say))
    ranks.together(lambda: check_stages(config, loaded, problems.longest, problems.longest_held_out, ranks.size))
    origin, changes = ranks.first(lambda: _origin(config, path, starting, ranks.size, goes_on, allow_changed))
    reward = config.reward.model_copy(update={"workers": config.reward.workers or rubric_workers(ranks)})
    with RunFolder(path) as folder, Rubric(reward, config.rollout.max_response_tokens) as rubric:
        ranks.first(lambda: _check_golds(rubric, problems))
        checkpoint = ranks.first(lambda: open_run(folder, config, if_exists, bool(changes), say))
        first_step = checkpoint.step if checkpoint else 0
        if first_step >= config.run.steps:
            return Outcome(first_step, True)
        for change in changes:
            say(f"warning: going on all the same: {change}")
        ranks.first(lambda: record_provenance(path / "provenance.json", origin, first_step, as_records(changes)))
        reference = None
        if checkpoint and config.model.lora.rank:
            adapter = policy_folder(checkpoint.path)
            ranks.together(lambda: load_adapter(loaded.model, adapter))
        elif checkpoint:
            reference = loaded.model if config.objective.kl_coefficient > 0 else None
            del loaded  # its weights would stay in memory beside the checkpoint's until the run ends
            weights = config.model.model_copy(update={"path": str(checkpoint.path / "model")})
            loaded = ranks.together(lambda: load_model(weights, config.rollout.chat_template))
        stages = ranks.each(
            lambda: make_stages(
                config,
                loaded,
                problems.source,
                problems.held_out,
                problems.longest_held_out.tokens if problems.longest_held_out else 0,
                rubric,
                folder,
                checkpoint,
                reference,
                ranks,
            )
        )
        with _tracking_of(config, folder, say, ranks) as tracking, stop_on_signals(say) as stop_requested:
            before = folder.records() if ranks.is_first else ()
            noise, signal_watch = _NoiseWatch(config, say), SignalWatch(config, say, before)

            def report(metrics: dict[str, Any]) -> None:
                noise(metrics)
                if tracking is not None:
                    tracking.write(metrics)
                on_step(metrics)
                signal_watch(metrics)  # last: it may end the run

            last = train(config, stages, folder, first_step, report, stop_requested)
        say(f"peak memory of this process {peak_memory_gib():.1f} GiB")
    stopped_by = next((number for number in ranks.gather(stop_requested.signal) if number), None)
    return Outcome(last, last == config.run.steps, stopped_by)


@contextmanager
def _tracking_of(
    config: TrainRun, folder: RunFolder, say: Callable[[str], None], ranks: Ranks
) -> Iterator[Tracking | None]:
    """The writers, opened by the first process before the first step; another process has none."""
    with ExitStack() as stack:
        tracking = Tracking(config, folder, say) if ranks.is_first else None

        def begin() -> None:
            if tracking is not None:
                stack.enter_context(tracking)

        ranks.first(begin)
        yield tracking


def _silent(text: str) -> None:
    """What another process says already."""


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


def _check_revision(config: TrainRun) -> None:
    """Of a new run alone: one of an older version may hold a revision that nothing read, and must resume."""
    if reason := unread_revision(config.model.path, config.model.revision):
        raise UsageError(reason)


def _start(config: TrainRun, starting: Path | None, say: Callable[[str], None]) -> LoadedModel:
    """The model that the run starts from, with new adapters where they are asked for."""
    if config.model.lora.rank:
        require_peft()
    model = config.model.model_copy(update={"path": str(starting)}) if starting else config.model
    loaded = load_model(model, config.rollout.chat_template)
    if config.model.lora.rank:
        number = add_adapters(loaded.model, config.model, config.run.seed, str(starting or config.model.path))
        say(f"training {number:,} weights of adapters; the base model stays as it is")
    return loaded


def _origin(
    config: TrainRun, path: Path, starting: Path | None, processes: int, goes_on: bool, allow_changed: bool
) -> tuple[dict[str, Any], list[Change]]:
    """What the run is made with, and what of it is not as it was when the run began; UsageError unless that is allowed."""
    origin = provenance(config, starting, processes)
    began_with = RunFolder(path).stored_config() if goes_on else None
    origin["configuration"] = configuration_fingerprint(began_with or config.model_dump(mode="json"))
    changes = changed_inputs(path / "provenance.json", origin) if began_with else []
    if not allow_changed:
        refuse_changed(changes)
    return origin, changes


def _starting_folder(config: TrainRun, say: Callable[[str], None]) -> Path | None:
    return made_model(config, say) if config.model.path == MADE else None


def _problems(config: TrainRun, loaded: LoadedModel, say: Callable[[str], None]) -> Problems:
    data, seed = config.data, config.run.seed
    if not data.train:
        raise UsageError("data.train is empty; set it to a file or folder from `luspo prepare-data`")
    held_out: list[Problem] = []
    if config.evaluation.every:
        held_out = _held_out(config)
    longest_held_out = longest_prompt(held_out, [loaded.prompt_length(problem) for problem in held_out])
    if data.train == MADE_TERMS:
        made = MadeTermsBatches(data.profile, config.rollout.problems, seed)
        first = made.batch(0)  # they differ by a few tokens
        longest = longest_prompt(first, [loaded.prompt_length(problem) for problem in first])
        return Problems(made, held_out, [], longest, longest_held_out)
    found = load_problems(data.train)
    problems, lengths = fitting(found, loaded.prompt_length, data.max_prompt_tokens)
    if too_long := len(found) - len(problems):
        say(f"{too_long} of {len(found)} problems have prompts over {data.max_prompt_tokens} tokens: left out")
    if not problems:
        raise UsageError(
            f"no problem of {data.train} has a prompt within data.max_prompt_tokens={data.max_prompt_tokens}"
        )
    source = ProblemBatches(problems, config.rollout.problems, seed, data.shuffle)
    return Problems(source, held_out, problems, longest_prompt(problems, lengths), longest_held_out)


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
