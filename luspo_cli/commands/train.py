"""`luspo train`: options in, one configuration out, one call into the engine."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from typer import Option

from luspo_cli.errors import RunError, UsageError
from luspo_cli.machine import libraries_stay
from luspo_cli.processes.allocator import CHOICE, preloaded, start_again_with_allocator
from luspo_cli.processes.local import check_processes, how_to_go_on, launch
from luspo_cli.processes.place import is_first_process, one_of_a_machine_speaks, says
from luspo_cli.processes.supervise import stop_with_supervisor

if TYPE_CHECKING:
    from luspo_cli.config.run import TrainRun
    from luspo_cli.runs.folder import IfExists

logger = logging.getLogger(__name__)

TRAIN_EXAMPLES = [
    "luspo train --preset tiny --objective luspo",
    "luspo train --preset tiny --objective gspo --set run.seed=1 --set update.mini_batches=8",
    "luspo train --preset qwen2.5-7b --objective luspo --dry-run",
    "luspo train --preset tiny --objective luspo --probe",
    "luspo train --run runs/tiny-luspo-seed0 --resume",
    "luspo train --preset qwen2.5-7b --processes 8 --set model.sharding=full",
    "luspo train --preset qwen3-30b-a3b --engine verl --ray-address auto --verl-python .venv-verl/bin/python",
]


def train_cli(
    objective: Annotated[str | None, Option(help="grpo, gspo, luspo, ...; see `luspo objectives`. [luspo]")] = None,
    preset: Annotated[str | None, Option(help="Model, data, budget and rewards: a name from presets/.")] = None,
    config: Annotated[Path | None, Option(help="A TOML file of your own, on top of the preset.")] = None,
    sets: Annotated[
        list[str] | None, Option("--set", help="section.key=value, on top of everything; can be repeated.")
    ] = None,
    run: Annotated[
        Path | None, Option(help="Run folder. [runs/PRESET-OBJECTIVE-seedK, with verl followed by -verl]")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Go on from the newest whole checkpoint of --run.")] = False,
    if_exists: Annotated[
        str, Option(help="What to do with a run folder that is there: refuse, resume or replace.")
    ] = "refuse",
    processes: Annotated[
        int | None, Option(help="Train in so many processes of this machine, one a GPU where there are GPUs. [1]")
    ] = None,
    engine: Annotated[
        str | None, Option(help="luspo, or verl: on Ray, in an environment of its own (docs/verl.md). [luspo]")
    ] = None,
    ray_address: Annotated[
        str, Option(help="With verl: a Ray cluster that runs, auto or host:port. [a Ray of its own on this machine]")
    ] = "",
    verl_python: Annotated[
        Path | None, Option(help="With verl: the python of verl's environment. [.venv-verl/bin/python]")
    ] = None,
    allow_changed: Annotated[
        bool,
        Option(
            "--allow-changed",
            help="Go on although data, starting model or config.json changed since the run began; provenance.json says so.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print configuration, objective, memory and what is missing; do nothing.")
    ] = False,
    probe: Annotated[
        bool,
        Option(
            "--probe",
            help="Sample 32 responses of the base model (of a smaller step: all), say what their lengths and rewards imply;"
            " no run.",
        ),
    ] = False,
    as_json: Annotated[bool, Option("--json", help="Answer as one JSON object.")] = False,
) -> None:
    """Train one model with one objective; the run folder holds every number and how it was made."""
    with one_of_a_machine_speaks():
        if if_exists not in ("refuse", "resume", "replace"):
            raise UsageError(f"--if-exists must be refuse, resume or replace, not '{if_exists}'")
        if allow_changed and not resume and if_exists != "resume":
            raise UsageError("--allow-changed is for going on with a run: give --resume as well")
        if resume and if_exists == "replace":
            raise UsageError("--resume goes on with the run and --if-exists replace deletes it: give one of the two")
        if probe and (resume or dry_run or engine == "verl" or processes not in (None, 1)):
            other = (
                "--resume" if resume else "--dry-run" if dry_run else f"--engine {engine}" if engine else "--processes"
            )
            raise UsageError(
                f"--probe asks the base model before a run, in one process of our own engine: leave out {other}"
            )
        existing = cast("IfExists", "resume" if resume else if_exists)
        if engine not in (None, "luspo", "verl"):
            raise UsageError(f"--engine must be luspo or verl, not '{engine}'")
        copies = check_processes(processes)
        described = bool(objective or preset or config or sets)
        chosen = [*(sets or []), *([f"run.engine={engine}"] if engine and described else [])]
        resolved = _resolve(objective, preset, config, chosen, run, existing == "resume")
        if engine not in (None, resolved.run.engine):
            raise UsageError(f"--engine {engine}: the run in {run} was started with --engine {resolved.run.engine}")
        by_verl = resolved.run.engine == "verl"
        if probe and by_verl:
            raise UsageError("--probe samples with our own engine, and run.engine is verl: add --engine luspo")
        if not by_verl and (ray_address or verl_python):
            raise UsageError(
                f"{'--ray-address' if ray_address else '--verl-python'} is for verl: give --engine verl as well"
            )
        name = preset or (config.stem if config else "run")
        path = run or Path("runs") / f"{resolved.folder_name(name)}{'-verl' * by_verl}"
        from luspo_cli.config.layers import about_preset, unused_of_preset
        from luspo_cli.runs.resume import require_run

        if resume:
            require_run(path)
        unused = unused_of_preset(preset, resolved)
        warnings = [unused] if unused else []
        if by_verl and copies > 1:
            raise UsageError("--processes is for our own engine: verl has verl.nodes and verl.gpus_per_node")
        place = (verl_python, ray_address) if by_verl else None
        if dry_run:
            from luspo_cli.commands.display.plan import dry_run_text

            about = about_preset(preset) if preset else ()
            typer.echo(dry_run_text(resolved, copies, path, existing, about, warnings, verl=place, as_json=as_json))
            return
        if probe:
            from luspo_cli.commands.display.probe import probe_run

            # A folder of its own is never touched: one that is there is no reason to refuse, unless it was named.
            probe_run(resolved, path, existing if run else "replace", as_json=as_json, warnings=warnings)
            return
        if not by_verl:
            from luspo_cli.training.fit import crowded, refused_by_memory

            if reason := crowded(resolved, copies) or refused_by_memory(resolved, copies):
                raise UsageError(reason)
        if copies > 1:
            from luspo_cli.runs.folder import RunFolder
            from luspo_cli.runs.log import RunLogHandler

            RunFolder(path).check(resolved.model_dump(mode="json"), existing)
            try:
                launch(copies, path, [sys.executable, "-m", "luspo_cli", *sys.argv[1:]])
            except RunError as error:
                RunLogHandler(path).failed(error)
                raise
            return
    if not by_verl:
        start_again_with_allocator()
    stop_with_supervisor()
    train(resolved, path, existing, as_json=as_json, allow_changed=allow_changed, warnings=warnings, verl=place)


def train(
    config: TrainRun,
    path: Path,
    if_exists: IfExists,
    *,
    as_json: bool = False,
    allow_changed: bool = False,
    warnings: Sequence[str] = (),
    verl: tuple[Path | None, str] | None = None,
) -> None:
    """Run a training and report on stderr, `warnings` first; `verl`: its interpreter and Ray address, where it trains.

    Exits 128 + signal where one stopped it early: 130 for Ctrl-C, 143 for SIGTERM.
    """
    from rich.console import Console

    from luspo_cli.commands.display.steps import choose_step_display
    from luspo_cli.processes.signals import lasting_stderr
    from luspo_cli.runs.log import RunLogHandler, StderrHandler, messages_to

    if verl is None:
        with libraries_stay():
            from luspo_cli.training.session import run_training
    else:
        from luspo_cli.training.verl.launch import VerlPlace, run_verl

    with one_of_a_machine_speaks():
        first = is_first_process()
    run_log = RunLogHandler(path)
    handlers: list[logging.Handler] = [StderrHandler(), run_log] if first else []
    with lasting_stderr(), messages_to(handlers):
        if library := preloaded():
            logger.info(f"memory comes from {library} ({CHOICE}=system in the environment leaves it to glibc)")
        for sentence in warnings:
            logger.warning(sentence)
        console = Console(stderr=True)
        shown = choose_step_display(console, str(path), config.run.steps) if first else contextlib.nullcontext()
        with shown as display:
            on_step = display.show if display else _show_nothing
            try:
                if verl is None:
                    outcome = run_training(config, path, if_exists, on_step, allow_changed, run_log.begin)
                else:
                    outcome = run_verl(config, path, if_exists, on_step, VerlPlace(*verl), run_log.begin)
            except BaseException as error:
                # Stderr may be a terminal that is gone. Before the run has begun the folder may be another one's.
                if run_log.begun and says(error):
                    run_log.failed(error)
                raise
        if as_json and first:
            typer.echo(json.dumps({"run": str(path), "last_step": outcome.last_step, "finished": outcome.finished}))
        if not outcome.finished:
            logger.info(f"stopped after step {outcome.last_step}; {how_to_go_on(path)}")
            raise typer.Exit(128 + (outcome.stopped_by or signal.SIGINT))
        logger.info(f"done: {path}")


def _resolve(
    objective: str | None, preset: str | None, config: Path | None, sets: list[str], run: Path | None, resume: bool
) -> TrainRun:
    from luspo_cli.config.layers import preset_names, resolve_train
    from luspo_cli.runs.folder import RunFolder
    from luspo_cli.runs.resume import read_configuration

    alone = not (objective or preset or config or sets)
    if resume and alone and run is None:
        raise UsageError("--resume needs --run: the folder to go on in")
    if alone and run is not None and (resume or "run" in (RunFolder(run).stored_config() or ())):
        return read_configuration(run)
    if preset is None and config is None and resume:
        raise UsageError(
            "--resume reads the configuration from the run folder: leave out --objective and --set,"
            " or give the --preset or --config that the run was started with as well"
        )
    if preset is None and config is None:
        raise UsageError(f"say what to train: --preset NAME ({', '.join(preset_names())}) or --config FILE")
    return resolve_train(preset=preset, objective=objective, sets=sets, config_file=config)


def _show_nothing(_: object) -> None:
    """The display of a process that is not the run's first."""
