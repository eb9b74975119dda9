"""Checkpoints as they are found: which there are, whether one is whole, where its policy is. Nothing here imports torch.

A checkpoint is listed with sizes and sha256 in its `checkpoint.json`. `model/` is a plain Hugging Face folder with float32
weights; of a LoRA run `adapter/` is peft's own form (configuration, weights, tokenizer), a hundredth of the model's size, which
names its base model. `luspo merge` makes a plain folder of the two.
"""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.config.fork import ForkConfig
from luspo_cli.errors import UsageError
from luspo_cli.files import PARTIAL, file_sha256

MANIFEST = "checkpoint.json"
MODEL, ADAPTER = "model", "adapter"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    path: Path
    step: int

    @property
    def trainer(self) -> Path:
        """Folder of the optimizer's state and the step."""
        return self.path / "trainer"


def checkpoint_path(checkpoints: Path, step: int) -> Path:
    """Where the checkpoint of `step` is, or will be."""
    return checkpoints / f"step-{step:06d}"


def find_checkpoints(checkpoints: Path) -> list[Checkpoint]:
    """Checkpoints by step, damaged ones too. Leftovers of an interrupted write have another name and are passed over."""
    named = [(path, path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")]
    found = [Checkpoint(path, int(step)) for path, step in named if step.isdecimal() and path.is_dir()]
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def damage(checkpoint: Checkpoint) -> str | None:
    """Say which file of a checkpoint is missing, cut short or altered; None where all is as written."""
    try:
        listed = json.loads((checkpoint.path / MANIFEST).read_bytes())["files"]
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in listed.items()}
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is unreadable"
    for name, (size, checksum) in expected.items():
        file = checkpoint.path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if digest(file)["sha256"] != checksum:
            return f"{name} differs from its checksum"
    return None


def newest_whole(checkpoints: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest undamaged checkpoint, and a sentence for each newer one that was passed over."""
    notes: list[str] = []
    found = find_checkpoints(checkpoints)
    for checkpoint in reversed(found):
        reason = damage(checkpoint)
        if reason is None:
            return checkpoint, notes
        notes.append(f"checkpoint {checkpoint.path} is damaged ({reason})")
    if found:
        raise UsageError(
            f"{notes[0]} and no other checkpoint is whole; start again with --if-exists replace, or restore the file"
        )
    return None, notes


def manifest_sha256(checkpoint: Path) -> str:
    """What names a checkpoint by its content: the sha256 of its `checkpoint.json`, which lists the sums of all its files."""
    return file_sha256(checkpoint / MANIFEST)


def fork_checkpoint(fork: ForkConfig) -> Checkpoint | None:
    """The parent's checkpoint that a fork begins at; None of a run that is no fork. UsageError where it is not what it was."""
    if not fork.checkpoint:
        return None
    path = Path(fork.checkpoint).expanduser()
    if not path.is_dir():
        raise UsageError(f"fork.checkpoint {path} is not there; put it back, or fork from another one")
    checkpoint = Checkpoint(path, fork.step)
    if reason := damage(checkpoint):
        raise UsageError(f"fork.checkpoint {path} is damaged ({reason}); restore it, or fork from another one")
    if manifest_sha256(path) != fork.sha256:
        raise UsageError(
            f"fork.checkpoint {path} is not the one that the fork was made of (fork.sha256 {fork.sha256[:12]}…): its run was"
            " trained again since; fork anew into another folder"
        )
    return checkpoint


def policy_folder(checkpoint: Path) -> Path:
    """Where a checkpoint's policy is: its model folder, or its adapter's."""
    adapter = checkpoint / ADAPTER
    return adapter if adapter.is_dir() else checkpoint / MODEL


def remove_leftovers(checkpoints: Path, step: int, keep: int) -> None:
    """Remove what a killed process was writing or deleting; the checkpoint of `step` is the one to go on from."""
    remove_partial(checkpoints)
    for old in outdated(checkpoints, step, keep):
        shutil.rmtree(old.path, ignore_errors=True)  # not now, then with the next checkpoint


def remove_partial(checkpoints: Path) -> None:
    """Remove what a killed process was writing."""
    for leftover in checkpoints.glob(f".step-*{PARTIAL}"):
        shutil.rmtree(leftover, ignore_errors=True)


def outdated(checkpoints: Path, step: int, keep: int) -> list[Checkpoint]:
    """All but the newest `keep` up to `step`; a later one is damaged, and must not push out a whole one."""
    return [found for found in find_checkpoints(checkpoints) if found.step <= step][:-keep]


def remove_unasked(checkpoints: Path, every: int) -> None:
    """Remove what a stop wrote, to go on from: all checkpoints but those of each `every` steps (0: none of them)."""
    for found in find_checkpoints(checkpoints):
        if not every or found.step % every:
            shutil.rmtree(found.path, ignore_errors=True)
    with suppress(OSError):  # others are in it, or it was never made
        checkpoints.rmdir()


def digest(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as the manifest lists them."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
