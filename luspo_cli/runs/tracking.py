"""The tracking writers of one run: opened once, fed from metrics.jsonl's records, closed on every way out, never in the way.

`tracking.json` in the run folder holds the run's key and the last step handed over to each writer. A resumed run therefore
sends each step once: a writer that can cut its series back does so with metrics.jsonl; the others skip the steps that they have,
which a resumed run computes again with the same numbers. Steps that were recorded and not handed over are handed over first.
A writer that cannot start ends the command before the first step; one that fails later is dropped with one warning.

The writers themselves (TensorBoard, Weights & Biases, Trackio, on request: `run.track`) are one small class each, fed with the
very records of metrics.jsonl under the same names; a number that a step does not have is left out. Their packages are imported
when a writer is opened and not before.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.files import require_object, write_json
from luspo_cli.metrics.names import BY_LENGTH
from luspo_cli.runs.folder import RunFolder

STATE = "tracking.json"
LOGIN = "; run `wandb login`, or set WANDB_MODE=offline"
PROJECT = "luspo"
"""Project name for services that group runs; `WANDB_PROJECT` and `TRACKIO_PROJECT` choose another."""


@dataclass(frozen=True, slots=True)
class Series:
    """Which series a writer continues."""

    run: Path
    """The run folder; its name is the name of the run."""
    key: str
    """Identifies the run in a service: the same after a resume, another one in a folder that was replaced."""
    first_step: int
    """The first step that will be written; a series that goes further is cut back to it where the writer can."""
    config: Mapping[str, Any]


class Writer(Protocol):
    """Takes one record a step, in order."""

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        """Hand over the numbers of one step; what reaches a file or a service may follow a little later."""

    def close(self, failed: bool) -> None:
        """Send what is left and let go; `failed`: the run ends with an error."""


class TensorboardWriter:
    """Event files in `RUN/tensorboard`; a resumed series is cut back to the checkpoint, as metrics.jsonl is."""

    cuts_back = True

    def __init__(self, series: Series) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._events = SummaryWriter(str(series.run / "tensorboard"), purge_step=series.first_step)

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._events.add_scalar(name, value, step)
        self._events.flush()

    def close(self, failed: bool) -> None:
        self._events.close()


class WandbWriter:
    """Weights & Biases, offline too (`WANDB_MODE=offline`); a step that the service has already is not sent again."""

    cuts_back = False

    def __init__(self, series: Series) -> None:
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=series.run.name,
            id=series.key,
            dir=str(series.run),
            config=dict(series.config),
            resume="allow",
            settings=wandb.Settings(console="off"),  # the live table stays ours
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TrackioWriter:
    """Trackio, a local dashboard; runs are known by their name, so it carries the key."""

    cuts_back = False

    def __init__(self, series: Series) -> None:
        import trackio

        self._trackio = trackio
        trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT),
            name=f"{series.run.name}-{series.key}",
            config=dict(series.config),
            resume="allow",
        )

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        self._trackio.log(dict(numbers), step=step)

    def close(self, failed: bool) -> None:
        self._trackio.finish()


WRITERS: Mapping[str, Callable[[Series], Writer]] = {
    "tensorboard": TensorboardWriter,
    "wandb": WandbWriter,
    "trackio": TrackioWriter,
}


def missing_packages(names: Sequence[str]) -> list[str]:
    """Return those of the writers' names whose package of the same name is not installed."""
    return [name for name in names if importlib.util.find_spec(name) is None]


def numbers_of(record: Mapping[str, Any]) -> dict[str, float]:
    """The record without its step, without numbers that this step does not have, and without lists over bins of lengths."""
    return {name: value for name, value in record.items() if name not in ("step", BY_LENGTH) and value is not None}


logger = logging.getLogger(__name__)


def writers_refused(names: Sequence[str]) -> str:
    """Why a writer could not start: its package is missing, or its service knows nobody; empty where all can be tried."""
    missing = missing_packages(names)
    if missing:
        return (
            f"run.track names {', '.join(missing)}, which is not installed: pip install 'luspo[track]', or leave it out"
        )
    if "wandb" in names and not _wandb_account():
        return "run.track names wandb, which has no API key here" + LOGIN + "; or leave it out of run.track"
    return ""


def check_writers(names: Sequence[str]) -> None:
    """Raise UsageError where a writer could not start."""
    if reason := writers_refused(names):
        raise UsageError(reason)


def _wandb_account() -> bool:
    """Whether wandb finds its key, needs none, or can ask for it on the terminal."""
    if os.environ.get("WANDB_MODE", "online") in ("offline", "disabled", "dryrun") or sys.stdin.isatty():
        return True
    import wandb

    try:
        return bool(wandb.login(prompt=False, verify=False))
    except TypeError:  # an older wandb: it asks, or says so, when the run starts
        return True


class Tracking:
    """Use it in a `with` block, after `RunFolder.open` and `cut_back`; call `write` with each step's record."""

    def __init__(self, config: TrainRun, folder: RunFolder) -> None:
        self._names = config.run.track
        self._config, self._folder = config, folder
        self._path = folder.path / STATE
        self._state: dict[str, Any] = {"key": "", "last_step": {}}
        self._writers: dict[str, Writer] = {}

    def __enter__(self) -> Self:
        if not self._names:
            return self
        self._state = _read_state(self._path) or {"key": secrets.token_hex(4), "last_step": {}}
        records = self._folder.records()
        try:
            for name in self._names:
                self._open(name, records)
        except BaseException:
            self._close(failed=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._close(failed=kind is not None)

    def write(self, record: Mapping[str, Any]) -> None:
        """Hand a step's record to every writer that does not have it yet."""
        for name in list(self._writers):
            self._hand_over(name, [record])

    def _open(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        maker = WRITERS[name]
        recorded = int(records[-1]["step"]) if records else 0
        last = int(self._state["last_step"].get(name, 0))
        if getattr(maker, "cuts_back", False):
            last = min(last, recorded)
        series = Series(self._folder.path.resolve(), self._state["key"], last + 1, self._config.model_dump(mode="json"))
        try:
            self._writers[name] = maker(series)
        except Exception as error:  # whatever a service's package raises: no network, no login, no disk
            advice = LOGIN if name == "wandb" else ""
            raise UsageError(
                f"{name} could not start ({_short(error)}){advice}; or leave it out of run.track"
            ) from error
        self._state["last_step"][name] = last
        self._hand_over(name, records)

    def _hand_over(self, name: str, records: Sequence[Mapping[str, Any]]) -> None:
        last = self._state["last_step"]
        new = [record for record in records if record["step"] > last[name]]
        try:
            for record in new:
                self._writers[name].write(record["step"], numbers_of(record))
                last[name] = record["step"]
            if new:
                write_json(self._path, self._state)
        except Exception as error:
            logger.warning(
                f"{name} failed at step {new[0]['step']} ({_short(error)}) and is left out from here on;"
                " metrics.jsonl has every step, and --resume hands over what is missing"
            )
            self._close_one(name, failed=True, quiet=True)

    def _close(self, failed: bool) -> None:
        for name in list(self._writers):
            self._close_one(name, failed)

    def _close_one(self, name: str, failed: bool, quiet: bool = False) -> None:
        writer = self._writers.pop(name)
        try:
            writer.close(failed)
        except Exception as error:
            if not quiet:
                logger.warning(f"{name} could not be closed ({_short(error)}); its last steps may be missing there")


def _read_state(path: Path) -> dict[str, Any] | None:
    """What an earlier process left, or None."""
    if not path.exists():
        return None
    advice = "delete it to begin new series"
    state = require_object(path, advice)
    try:
        return {"key": str(state["key"]), "last_step": {str(k): int(v) for k, v in state["last_step"].items()}}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not readable ({_short(error)}); {advice}") from None


def _short(error: BaseException) -> str:
    """Kind and first line of an error, for the inside of a sentence."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first[:200]}" if first else type(error).__name__
