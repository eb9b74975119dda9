"""Where the records of metrics.jsonl go besides: TensorBoard, Weights & Biases, Trackio, on request (`run.track`).

One small class each, fed with the very records of metrics.jsonl under the same names; a number that a step does not have is
left out. The packages are imported when a writer is opened and not before. What happens between steps, on a resume and when a
writer fails is decided once for all of them, in training/tracking.py.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

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
        ...

    def close(self, failed: bool) -> None:
        """Send what is left and let go; `failed`: the run ends with an error."""
        ...


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
    """The record without its step and without the numbers that this step does not have."""
    return {name: value for name, value in record.items() if name != "step" and value is not None}
