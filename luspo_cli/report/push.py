"""What `luspo push` sends to a Hugging Face hub, and the sending: one commit, all of it or nothing.

A checkpoint's model folder lies at the top of the repository, as transformers reads it; beside it the model card, and in luspo/
the figure, the configuration and the record of all steps. Rollouts stay here, and so do paths of this machine.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luspo_cli.analysis.history import read_run
from luspo_cli.analysis.length_curves import plot_length
from luspo_cli.errors import RunError, UsageError, first_line
from luspo_cli.files import read_object
from luspo_cli.policy.model_files import ADAPTER_CONFIG, is_hub_id
from luspo_cli.report.model_card import FIGURE, model_card, public_settings

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
BRANCH = re.compile(r"(?!.*(?:\.\.|//|/\.|\.lock(?:/|$)))[A-Za-z0-9_][\w./+-]*(?<![./])", re.ASCII)
"""Names that git takes for a branch and an address holds as they are."""
CARD = "README.md"
_TOKEN = re.compile(r"hf_[A-Za-z0-9]{30,}")
_READ_WHOLE = 2**20
"""Bytes up to which a JSON file of the model is looked through; longer ones are vocabularies."""


@dataclass(frozen=True, slots=True)
class Upload:
    """One commit that is to be made."""

    repository: str
    branch: str | None
    """None: the main one."""
    private: bool
    step: int
    objective: str
    files: Mapping[str, Path | bytes]
    """Path in the repository → a file here, or its content."""

    @property
    def sizes(self) -> dict[str, int]:
        """Path in the repository → bytes."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in self.files.items()
        }

    @property
    def card(self) -> str:
        """The text of the model card."""
        content = self.files[CARD]
        assert isinstance(content, bytes)
        return content.decode()


def plan_push(run: Path, model: Path, step: int, repository: str, branch: str | None, *, private: bool) -> Upload:
    """Gather what would be sent of the run whose weights of `step` are in the folder `model`; sends nothing.

    UsageError where `repository` is no OWNER/NAME, `branch` no name of one, the folder holds no model, or a file names a place of
    this machine or a token.
    """
    if not REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise UsageError(f"--to '{repository}' is no repository: give OWNER/NAME, as on the hub.")
    if branch is not None and not BRANCH.fullmatch(branch):
        raise UsageError(
            f"--revision '{branch}' is no name of a branch: give letters, digits and . _ - / +, as step-50, or leave it out."
        )
    if not (
        any(model.glob("*.safetensors")) and any((model / name).is_file() for name in ("config.json", ADAPTER_CONFIG))
    ):
        raise UsageError(
            f"{model} is no Hugging Face folder with weights, so there is nothing to push; let the run write a checkpoint"
            f" (luspo train --run {run} --resume), or choose another --step."
        )
    files: dict[str, Path | bytes] = {
        file.relative_to(model).as_posix(): file for file in sorted(model.rglob("*")) if file.is_file()
    }
    for name, file in files.items():
        if name.endswith(".json") and isinstance(file, Path) and file.stat().st_size <= _READ_WHOLE:
            _refuse_private(name, read_object(file) or {}, run)
    history = read_run(run)
    configuration = read_object(model / "config.json") or {}
    card = model_card(
        history, step, repository, adapter=(model / ADAPTER_CONFIG).is_file(), vision="vision_config" in configuration
    )
    with tempfile.TemporaryDirectory() as folder:
        figure = Path(folder) / "lengths.png"
        plot_length([history], figure)
        files[FIGURE] = figure.read_bytes()
    files["luspo/config.json"] = (json.dumps(public_settings(history.config), indent=1) + "\n").encode()
    files["luspo/metrics.jsonl"] = (run / "metrics.jsonl").read_bytes()
    files[CARD] = card.encode()
    for name, content in files.items():
        if name in (CARD, "luspo/config.json") and isinstance(content, bytes):
            _refuse_private(name, {"": content.decode()}, run)
    return Upload(repository, branch, private, step, history.objective, dict(sorted(files.items())))


def _refuse_private(name: str, entries: Mapping[str, Any], run: Path) -> None:
    """UsageError where a file would tell a token, or a path of this machine."""
    for key, value in entries.items():
        if isinstance(value, Mapping):
            _refuse_private(name, value, run)
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if _TOKEN.search(text):
            raise UsageError(f"{name} holds a token of the hub, so nothing is pushed; take it out.")
        if key == "base_model_name_or_path" and isinstance(value, str) and not is_hub_id(value):
            raise UsageError(
                f"the adapter's base model is a folder of this machine ({value}), which nobody else has: set {key} in {name} to"
                f" its hub id, or make a whole model (luspo merge {run} --out DIR)."
            )
        places = (f"{Path.home()}/", str(run.resolve()))
        if (os.path.isabs(text) and os.path.exists(text)) or any(place in text for place in places if len(place) > 2):
            where = f" under '{key}'" if key else ""
            raise UsageError(f"{name} names a path of this machine{where}, so nothing is pushed; take it out.")


def push(upload: Upload) -> str:
    """Make the commit and return its address; RunError, with what became of it, where the hub or the way to it fails."""
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars, logging

    disable_progress_bars()
    logging.set_verbosity_error()  # of each further attempt it would say a line; what became of them is one sentence
    hub = HfApi()
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=content if isinstance(content, bytes) else str(content))
        for name, content in upload.files.items()
    ]
    repository = upload.repository
    with _said(repository, "nothing was sent; give the same command again"):
        hub.create_repo(repository, private=True if upload.private else None, exist_ok=True)
        is_public = upload.private and not hub.repo_info(repository).private
        if upload.branch and not is_public:
            hub.create_branch(repository, branch=upload.branch, exist_ok=True)
    if is_public:
        raise RunError(
            f"{repository} is there already and public, and --private makes only new repositories private: change it on the hub,"
            " or leave --private out; nothing was sent"
        )
    with _said(repository, "no commit was made; give the same command again, and what arrived is not sent twice"):
        hub.preupload_lfs_files(repository, operations, revision=upload.branch, free_memory=False)
    message = f"Step {upload.step} of a luspo run with objective {upload.objective}"
    unknown = f"whether the commit was made is not known: look at {hub.endpoint}/{repository} before the same command"
    with _said(repository, "no commit was made; give the same command again", lost=unknown):
        made = hub.create_commit(repository, operations, commit_message=message, revision=upload.branch)
    return str(made.commit_url)


@contextmanager
def _said(repository: str, then: str, lost: str | None = None) -> Iterator[None]:
    """Turn whatever the hub's client raises into one sentence; `lost`: what to say where no answer came, else `then`."""
    from huggingface_hub.errors import HfHubHTTPError

    try:
        yield
    except Exception as error:  # of the client's many kinds, some around the answer of the hub
        found: BaseException | None = error
        while found is not None and not isinstance(found, HfHubHTTPError):
            found = found.__cause__
        status = found.response.status_code if found is not None else None
        if status is None:
            reason, then = f"the hub cannot be reached ({type(error).__name__}: {first_line(error)})", lost or then
        elif status in (401, 403):
            reason = f"the hub refuses the access ({status}): log in (hf auth login), or set HF_TOKEN to a token that may write"
        elif status >= 500:
            reason = f"the hub answered {status}, an error of its own"
        else:
            reason = f"the hub answered {status} ({first_line(error)})"
        raise RunError(f"cannot push to {repository}: {reason}; {then}") from error
