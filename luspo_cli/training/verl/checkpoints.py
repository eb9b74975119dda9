"""verl's sharded checkpoints as ours: a plain Hugging Face folder, made by verl's own merger, listed in `checkpoint.json`.

verl keeps shards and optimizer state in `RUN/verl/checkpoints/global_step_N` and resumes from there. What anybody can load is
`RUN/checkpoints/step-NNNNNN/model`, in the type that the merger writes (bfloat16). It has no `trainer/`: our engine cannot go on
from it.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError
from luspo_cli.files import replacing_folder, said_in_one_sentence, write_json
from luspo_cli.runs.checkpoints import MANIFEST, MODEL, checkpoint_path, digest, find_checkpoints, outdated
from luspo_cli.training.verl.overrides import VerlFiles

logger = logging.getLogger(__name__)
_STEP = "global_step_"
LATEST = "latest_checkpointed_iteration.txt"


def latest_step(files: VerlFiles) -> int:
    """The step of the checkpoint that verl would go on from; 0 for none."""
    try:
        return int((files.checkpoints / LATEST).read_text().strip())
    except (OSError, ValueError):
        return 0


def sharded(files: VerlFiles) -> dict[int, Path]:
    """Step → folder of the policy's shards, for every checkpoint that verl finished."""
    latest = latest_step(files)
    named = [(path.name.removeprefix(_STEP), path / "actor") for path in files.checkpoints.glob(f"{_STEP}*")]
    return {
        int(step): actor for step, actor in sorted(named) if step.isdecimal() and actor.is_dir() and int(step) <= latest
    }


def merge_command(python: str, strategy: str, shards: Path, target: Path) -> list[str]:
    """verl's merger on the shards of one checkpoint."""
    backend = "megatron" if strategy == "megatron" else "fsdp"
    merger = [python, "-m", "verl.model_merger", "merge", "--backend", backend]
    return [*merger, "--local_dir", str(shards), "--target_dir", str(target)]


def merge_checkpoints(config: TrainRun, files: VerlFiles, checkpoints: Path, python: str) -> list[int]:
    """Make a model folder of every checkpoint of verl's that has none yet; returns their steps. RunError where that fails."""
    done = {checkpoint.step for checkpoint in find_checkpoints(checkpoints)}
    made = []
    for step, shards in sorted(sharded(files).items()):
        if step in done:
            continue
        final = checkpoint_path(checkpoints, step)
        logger.info(f"merging verl's checkpoint of step {step} into {final / MODEL}")
        with said_in_one_sentence(f"the checkpoint of step {step} in {checkpoints}"), replacing_folder(final) as folder:
            _merge(merge_command(python, config.verl.strategy, shards, folder / MODEL), shards)
            listed = {str(f.relative_to(folder)): digest(f) for f in sorted(folder.rglob("*")) if f.is_file()}
            write_json(folder / MANIFEST, {"step": step, "files": listed, "made_by": "verl.model_merger"})
        made.append(step)
    for old in outdated(checkpoints, max(done | set(made), default=0), config.run.keep_checkpoints):
        shutil.rmtree(old.path, ignore_errors=True)
    return made


def _merge(command: list[str], shards: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise RunError(f"verl's merger cannot be started: {command[0]}: {error.strerror}") from None
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise RunError(
            f"verl's merger failed on {shards} ({said[-1] if said else f'exit status {done.returncode}'}); its shards are whole:"
            " give luspo train --resume again once that is mended"
        )
