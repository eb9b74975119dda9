"""Small recorded histories: run folders written as training writes them, with numbers chosen by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

WriteRun = Callable[..., Path]


def config_of(objective: str, seed: int, steps: int) -> dict[str, Any]:
    clip = (0.2, 0.2) if objective == "grpo" else (2e-3, 2.5e-3)
    return {
        "objective": {"name": objective, "clip_low": clip[0], "clip_high": clip[1]},
        "model": {"path": "made", "shape": {"width": 96}},
        "data": {"train": "made:terms"},
        "update": {"learning_rate": 3e-4, "betas": [0.9, 0.99]},
        "run": {"steps": steps, "seed": seed, "checkpoint_every": 50},
    }


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run folder below `tmp_path` from columns of equal length; step numbers count from 1."""

    def write(
        name: str,
        objective: str = "luspo",
        seed: int = 0,
        *,
        lengths: Sequence[float] = (10.0, 20.0, 30.0),
        planned: int | None = None,
        change: Mapping[str, Mapping[str, Any]] | None = None,
        **columns: Sequence[float | None],
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        config = config_of(objective, seed, len(lengths) if planned is None else planned)
        for section, values in (change or {}).items():
            config[section] = {**config.get(section, {}), **values}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "provenance.json").write_text(json.dumps({"seed": seed}), encoding="utf-8")
        named = {"response_length/mean": lengths} | {key.replace("__", "/"): values for key, values in columns.items()}
        rows = [
            {"step": step, **{key: values[step - 1] for key, values in named.items()}}
            for step in range(1, len(lengths) + 1)
        ]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
        return folder

    return write
