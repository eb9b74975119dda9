"""TensorBoard's event files as rows of a step each: what TRL, verl, OpenRLHF and we write through `SummaryWriter`.

A folder is one run; each of its files is one session of it, in the order in which they were begun, so that a resumed training
that went back to an earlier step is seen as such. Read with the package tensorboard, an extra of ours (`luspo[track]`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luspo_cli.errors import UsageError

_MARK = b"brain.Event:"
"""Every event file begins with its version, behind a header of 12 bytes."""


def is_event_file(path: Path) -> bool:
    """Whether a file holds TensorBoard's events, by what it holds."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _MARK in file.read(64)


def event_files(folder: Path) -> list[Path]:
    """The event files in a folder, in the order in which they were begun; their names carry that time."""
    return sorted(path for path in folder.glob("*tfevents*") if is_event_file(path))


def read_events(path: Path) -> list[dict[str, Any]]:
    """Read all sessions in the folder of an event file; one row a step and session, `step` and tag -> number."""
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray
    except ImportError:
        raise UsageError(
            f"{path} is an event file of TensorBoard, and the package tensorboard is not installed: pip install 'luspo[track]'."
        ) from None
    rows: list[dict[str, Any]] = []
    for file in event_files(path.parent) or [path]:
        # 0: keep every event. What a restart made void is seen from the steps, and counted, not dropped unseen.
        events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 0}, purge_orphaned_data=False)
        events.Reload()
        found: dict[int, dict[str, Any]] = {}
        for tag in events.Tags()["scalars"]:
            for event in events.Scalars(tag):
                found.setdefault(event.step, {})[tag] = event.value
        for tag in events.Tags()["tensors"]:
            for event in events.Tensors(tag):
                number = make_ndarray(event.tensor_proto)
                if number.shape == () and number.dtype.kind in "fiu":
                    found.setdefault(event.step, {})[tag] = float(number)
        rows += [{"step": step, **found[step]} for step in sorted(found)]
    return rows
