"""Which weights `luspo eval MODEL_OR_RUN` means: a run's newest whole checkpoint, a folder of a model or an adapter, or a hub id.

The weights' fingerprint goes into the result's settings, so an evaluation that goes on after a kill cannot mix two
models under one path.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.config.rollout import TemplateValue
from luspo_cli.errors import UsageError
from luspo_cli.files import file_sha256, read_object
from luspo_cli.policy.model_files import ADAPTER_CONFIG, hub_commit, read_adapter_config

WEIGHT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.py")
DEFAULT_OUT = Path("evals")


@dataclass(frozen=True, slots=True)
class Weights:
    """Weights to evaluate, and what is known of how they were trained."""

    name: str
    """As the user named them."""
    path: str
    """A folder (of a model, or of an adapter that names its base model) or a hub id."""
    out: Path
    """Where results go unless the user says otherwise."""
    step: int | None = None
    """Training steps behind a run's checkpoint."""
    run_config: dict[str, Any] | None = None
    revision: str = "main"
    """Of a hub id."""
    notes: tuple[str, ...] = ()
    """Newer checkpoints that were passed over, one sentence each."""

    @property
    def max_response_tokens(self) -> int | None:
        """The response limit of the run's training."""
        value = ((self.run_config or {}).get("rollout") or {}).get("max_response_tokens")
        return value if isinstance(value, int) else None

    @property
    def compute_dtype(self) -> str | None:
        """The compute type of the run's training."""
        value = ((self.run_config or {}).get("model") or {}).get("compute_dtype")
        return value if isinstance(value, str) else None

    @property
    def template_arguments(self) -> dict[str, TemplateValue]:
        """Arguments of the chat template in the run's training."""
        value = ((self.run_config or {}).get("rollout") or {}).get("chat_template")
        return value if isinstance(value, dict) else {}

    @property
    def base(self) -> str | None:
        """Of an adapter's folder: the folder or hub id of its base model."""
        folder = Path(self.path).expanduser()
        if not (folder / ADAPTER_CONFIG).is_file():
            return None
        return str(read_adapter_config(folder)["base_model_name_or_path"])

    def fingerprint(self) -> str | None:
        """Return a hash of the folder's weights and tokenizer, a hub id's commit, or None while it is not on the disk."""
        folder = Path(self.path).expanduser()
        if not folder.is_dir():
            return hub_commit(self.path, self.revision)
        total = hashlib.sha256()
        if self.base is not None:
            total.update(f"{Weights(self.base, self.base, self.out).fingerprint()}\n".encode())
        for file in sorted({file for pattern in WEIGHT_FILES for file in folder.glob(pattern)}):
            total.update(f"{file.name} {file_sha256(file)}\n".encode())
        return total.hexdigest()

    def reads_images(self) -> bool | None:
        """Return whether the configuration names a vision part; None where it is not on the disk."""
        config = read_object(Path(self.base or self.path).expanduser() / "config.json")
        return None if config is None else "vision_config" in config


def find_weights(model_or_run: str, step: int | None, revision: str | None = None, *, command: str = "eval") -> Weights:
    """Return the weights that are meant by an argument of `luspo COMMAND`, after looking at the disk only.

    Raises:
        UsageError: nothing is there, a run has no whole checkpoint (or not that step), --step goes with no run, or
            --revision with no hub id.
    """
    folder = Path(model_or_run).expanduser()
    if revision is not None and folder.exists():
        raise UsageError(f"--revision is of a hub id, and {model_or_run} is a folder on this machine; leave it out.")
    config = read_object(folder / "config.json") if folder.is_dir() else None
    if config is not None and "objective" in config and "rollout" in config:
        return _run_weights(model_or_run, folder, config, step)
    if (folder / "checkpoint.json").is_file():
        run = folder.parent.parent
        number = folder.name.removeprefix("step-").lstrip("0")
        raise UsageError(f"{folder} is a checkpoint; name its run: luspo {command} {run} --step {number}.")
    if step is not None:
        raise UsageError(f"--step chooses a checkpoint of a run, and {model_or_run} is no run folder; leave it out.")
    name = folder.resolve().name if folder.is_dir() else model_or_run.rpartition("/")[2]
    weights = Weights(model_or_run, model_or_run, DEFAULT_OUT / name, revision=revision or "main")
    _require_model(model_or_run, folder, is_model=config is not None or (folder / ADAPTER_CONFIG).is_file())
    return weights


def _require_model(model: str, folder: Path, *, is_model: bool) -> None:
    if folder.is_dir():
        if not is_model:
            raise UsageError(f"{folder} has no config.json, so it is neither a run nor a model; name one that has.")
        return
    owner, _, name = model.partition("/")
    if not owner or not name or "/" in name or owner in (".", "..", "~", "runs"):
        raise UsageError(
            f"There is no run or model '{model}'; name a run folder, a model folder or a hub id (owner/name)."
        )


def _run_weights(name: str, folder: Path, config: dict[str, Any], step: int | None) -> Weights:
    from luspo_cli.runs.checkpoints import Checkpoint, damage, find_checkpoints, newest_whole, policy_folder

    checkpoints = folder / "checkpoints"
    chosen: Checkpoint | None
    notes: list[str] = []
    if step is None:
        chosen, notes = newest_whole(checkpoints)
    else:
        there = {checkpoint.step: checkpoint for checkpoint in find_checkpoints(checkpoints)}
        if step not in there:
            known = ", ".join(map(str, there)) or "none"
            raise UsageError(f"{folder} has no checkpoint of step {step}; it has: {known}.")
        chosen = there[step]
        if reason := damage(chosen):
            raise UsageError(f"The checkpoint of step {step} in {folder} is damaged ({reason}); choose another --step.")
    if chosen is None:
        raise UsageError(
            f"{folder} has no whole checkpoint yet; let it train on (luspo train --run {folder} --resume)."
        )
    return Weights(name, str(policy_folder(chosen.path)), folder / "evals", chosen.step, config, notes=tuple(notes))
