"""Tracking writers: the numbers of metrics.jsonl and no others, each step once however often a run stopped, never in the way."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from doubles.messages import heard
from doubles.runs import records, train
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.runs import tracking
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.tracking import Series, Tracking, check_writers, numbers_of
from luspo_cli.training.dry_run import make_plan


class Service:
    """A stand-in for a tracking service: what every opened writer was given."""

    def __init__(self) -> None:
        self.opened: list[Series] = []
        self.steps: list[int] = []
        self.numbers: list[Mapping[str, float]] = []
        self.closed: list[bool] = []
        self.fail_at: int | None = None

    def writer(self, cuts_back: bool) -> Any:
        service = self

        class Scripted:
            def __init__(self, series: Series) -> None:
                service.opened.append(series)
                if self.cuts_back:
                    service.steps[:] = [step for step in service.steps if step < series.first_step]

            def write(self, step: int, numbers: Mapping[str, float]) -> None:
                if step == service.fail_at:
                    raise ConnectionError("no route\nto host")
                service.steps.append(step)
                service.numbers.append(numbers)

            def close(self, failed: bool) -> None:
                service.closed.append(failed)

        Scripted.cuts_back = cuts_back  # type: ignore[attr-defined]
        return Scripted


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    found = {"tensorboard": Service(), "wandb": Service()}
    made = {name: service.writer(cuts_back=name == "tensorboard") for name, service in found.items()}
    monkeypatch.setattr(tracking, "WRITERS", made)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[RunFolder]:
    with RunFolder(tmp_path / "run") as opened:
        opened.open({"a": 1}, "refuse")
        yield opened


CONFIG = resolve_train(preset="tiny", sets=['run.track=["tensorboard", "wandb"]'])


def session(folder: RunFolder, steps: range, said: list[str] | None = None, crash: bool = False) -> None:
    """One process: cut back to before `steps`, then record and track them."""
    folder.cut_back(steps.start - 1)
    with heard(said), Tracking(CONFIG, folder) as tracker:
        for step in steps:
            record = {"step": step, "tokens/total": 10 * step, "response_length/correct": None}
            folder.append_metrics(record)
            tracker.write(record)
        if crash:
            raise ZeroDivisionError


def test_numbers_are_the_record_without_step_and_nulls() -> None:
    assert numbers_of({"step": 3, "a/b": 1.5, "c": None, "d": 0}) == {"a/b": 1.5, "d": 0}
    assert numbers_of({"step": 3, "a/b": 1.5, "by_length": {"from": [1, 2]}}) == {"a/b": 1.5}


def test_every_step_once_over_a_crash_and_a_resume(folder: RunFolder, services: dict[str, Service]) -> None:
    with pytest.raises(ZeroDivisionError):
        session(folder, range(1, 6), crash=True)
    session(folder, range(4, 8))  # the checkpoint was step 3: steps 4 and 5 are computed again
    for service in services.values():
        assert service.steps == [1, 2, 3, 4, 5, 6, 7]
        assert service.closed == [True, False]
        assert service.opened[0].key == service.opened[1].key
        assert service.numbers[0] == {"tokens/total": 10}
    assert [one.first_step for one in services["tensorboard"].opened] == [1, 4]  # cut back and written anew
    assert len(services["tensorboard"].numbers) == 9
    assert len(services["wandb"].numbers) == 7  # never sent twice
    state = json.loads((folder.path / "tracking.json").read_text())
    assert state == {"key": services["wandb"].opened[0].key, "last_step": {"tensorboard": 7, "wandb": 7}}


def test_steps_that_a_killed_process_recorded_and_did_not_hand_over_come_first(
    folder: RunFolder, services: dict[str, Service]
) -> None:
    session(folder, range(1, 3))
    folder.append_metrics({"step": 3, "tokens/total": 30})  # killed here, with a checkpoint of step 3
    session(folder, range(4, 5))
    assert [service.steps for service in services.values()] == [[1, 2, 3, 4]] * 2


def test_a_writer_that_fails_is_dropped_with_one_warning_and_caught_up_later(
    folder: RunFolder, services: dict[str, Service]
) -> None:
    services["wandb"].fail_at = 2
    said: list[str] = []
    session(folder, range(1, 5), said)
    assert services["wandb"].steps == [1]
    assert services["tensorboard"].steps == [1, 2, 3, 4]
    assert said == [
        "warning: wandb failed at step 2 (ConnectionError: no route) and is left out from here on;"
        " metrics.jsonl has every step, and --resume hands over what is missing"
    ]
    assert services["wandb"].closed == [True]
    services["wandb"].fail_at = None
    session(folder, range(5, 6), said)
    assert services["wandb"].steps == [1, 2, 3, 4, 5]
    assert len(said) == 1


def test_a_writer_that_cannot_close_is_said_and_the_others_close(
    folder: RunFolder, services: dict[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(services["tensorboard"].writer(True)):  # type: ignore[misc]
        def close(self, failed: bool) -> None:
            raise OSError("disk full")

    monkeypatch.setitem(tracking.WRITERS, "tensorboard", Stuck)  # type: ignore[arg-type]
    said: list[str] = []
    session(folder, range(1, 2), said)
    assert said == [
        "warning: tensorboard could not be closed (OSError: disk full); its last steps may be missing there"
    ]
    assert services["wandb"].closed == [False]


def test_a_writer_that_cannot_start_ends_the_command_and_closes_the_others(
    folder: RunFolder, services: dict[str, Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(series: Series) -> Any:
        raise RuntimeError("api_key not configured")

    monkeypatch.setitem(tracking.WRITERS, "wandb", refuse)  # type: ignore[arg-type]
    with pytest.raises(
        UsageError, match=r"wandb could not start \(RuntimeError: api_key not configured\); run `wandb login`"
    ):
        session(folder, range(1, 2))
    assert services["tensorboard"].closed == [True]


def test_a_damaged_state_is_refused_in_one_sentence(folder: RunFolder, services: dict[str, Service]) -> None:
    (folder.path / "tracking.json").write_text("[1")
    with pytest.raises(UsageError, match=r"tracking\.json is not readable .* delete it"):
        session(folder, range(1, 2))


def test_without_writers_nothing_is_left_behind(folder: RunFolder) -> None:
    with Tracking(resolve_train(preset="tiny"), folder) as tracker:
        tracker.write({"step": 1})
    assert not (folder.path / "tracking.json").exists()


def test_a_missing_package_is_one_sentence_before_anything_is_made(
    small_run: Callable[..., TrainRun], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_writers([])
    real = tracking.importlib.util.find_spec
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None if name == "trackio" else real(name))
    with pytest.raises(
        UsageError, match=r"run\.track names trackio, which is not installed: pip install 'luspo\[track\]'"
    ):
        train(small_run('run.track=["trackio"]'), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mode", "known"), [("online", False), ("online", True), ("offline", False)])
def test_wandb_without_a_key_is_said_by_the_plan(monkeypatch: pytest.MonkeyPatch, mode: str, known: bool) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(tracking, "missing_packages", lambda names: [])
    monkeypatch.setitem(tracking.sys.modules, "wandb", SimpleNamespace(login=lambda **_: known))
    said = [
        one for one in make_plan(resolve_train(preset="tiny", sets=['run.track=["wandb"]'])).missing if "wandb" in one
    ]
    sentence = "run.track names wandb, which has no API key here; run `wandb login`, or set WANDB_MODE=offline"
    assert said == ([] if known or mode == "offline" else [f"{sentence}; or leave it out of run.track"])


@pytest.mark.parametrize(
    ("value", "sentence"),
    [('["wandb", "wandb"]', "run.track names a writer twice"), ('["mlflow"]', "run.track.0 = 'mlflow'")],
)
def test_names_of_writers_are_checked(value: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        resolve_train(preset="tiny", sets=[f"run.track={value}"])


def without_times(numbers: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in numbers.items() if not name.startswith("time/")}


def test_tensorboard_reads_back_what_metrics_jsonl_holds_after_a_crash(
    small_run: Callable[..., TrainRun], tmp_path: Path
) -> None:
    """The real package: five steps, a crash after the third (checkpoint: the second), read by TensorBoard's own reader."""
    pytest.importorskip("tensorboard", reason="pip install 'luspo[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, path = small_run('run.track=["tensorboard"]', "evaluation.every=2"), tmp_path / "run"
    with pytest.raises(ZeroDivisionError):
        train(config, path, crash_after=3)
    train(config, path, "resume")
    read = EventAccumulator(str(path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    assert [record["step"] for record in records(path)] == [1, 2, 3, 4, 5]
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in records(path):
        for name, value in numbers_of(record).items():
            expected.setdefault(name, []).append((record["step"], value))
    assert set(read.Tags()["scalars"]) == set(expected)
    for name, points in expected.items():
        found = read.Scalars(name)
        assert [event.step for event in found] == [step for step, _ in points], name
        assert [event.value for event in found] == pytest.approx([value for _, value in points], rel=1e-6), name


def test_tensorboard_shows_each_step_once_after_a_crash_before_the_first_checkpoint(folder: RunFolder) -> None:
    """The real package: two steps, then all of the run again from step 1."""
    pytest.importorskip("tensorboard", reason="pip install 'luspo[track]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = resolve_train(preset="tiny", sets=['run.track=["tensorboard"]'])
    for steps in (range(1, 3), range(1, 4)):
        folder.cut_back(0)
        with Tracking(config, folder) as tracker:
            for step in steps:
                folder.append_metrics({"step": step, "tokens/total": 10 * step})
                tracker.write({"step": step, "tokens/total": 10 * step})
    read = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0})
    read.Reload()
    assert [(event.step, event.value) for event in read.Scalars("tokens/total")] == [(1, 10), (2, 20), (3, 30)]


def log_entries(content: bytes) -> Iterator[bytes]:
    """The entries of a LevelDB log, which offline runs are kept in: 32 KiB blocks, 7-byte headers, parts 1 | 2 3* 4."""
    assert content[:4] == b":W&B"
    at, entry = 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:  # no room for a header: padding
            at += 32768 - at % 32768
            continue
        size, part = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        entry += content[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):
            yield entry
            entry = b""


def test_wandb_offline_holds_each_step_once(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, offline: what would be synchronised, read from its files."""
    wandb = pytest.importorskip("wandb", reason="pip install 'luspo[track]'")
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setattr(tracking, "WRITERS", {**tracking.WRITERS, "tensorboard": Service().writer(True)})
    with pytest.raises(ZeroDivisionError):
        session(folder, range(1, 4), crash=True)
    session(folder, range(3, 5))
    wandb.teardown()  # `finish` returns before wandb's own process has written the file; the end of a command waits for it so
    found: list[tuple[int, dict[str, Any]]] = []
    keys = set()
    for file in sorted(folder.path.glob("wandb/offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        for data in log_entries(file.read_bytes()):
            entry = wandb_internal_pb2.Record()
            entry.ParseFromString(data)
            if entry.WhichOneof("record_type") == "run":
                keys.add(entry.run.run_id)
            if entry.WhichOneof("record_type") == "history":
                items = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in entry.history.item}
                found.append((items["_step"], {k: v for k, v in items.items() if not k.startswith("_")}))
    assert found == [(step, {"tokens/total": 10 * step}) for step in (1, 2, 3, 4)]
    assert keys == {json.loads((folder.path / "tracking.json").read_text())["key"]}


def test_trackio_holds_each_step_once(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real package, with its database in a folder of the test."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when the package is imported, here first
    pytest.importorskip("trackio", reason="pip install 'luspo[track]'")
    in_the_place_of = {
        "tensorboard": Service().writer(True),
        "wandb": tracking.WRITERS["trackio"],
    }  # the names of CONFIG
    monkeypatch.setattr(tracking, "WRITERS", in_the_place_of)
    with pytest.raises(ZeroDivisionError):
        session(folder, range(1, 4), crash=True)
    session(folder, range(3, 5))
    (database,) = (tmp_path / "trackio").glob("*.db")
    with closing(sqlite3.connect(database)) as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert [(step, json.loads(numbers)) for _, step, numbers in rows] == [
        (step, {"tokens/total": 10 * step}) for step in (1, 2, 3, 4)
    ]
    key = json.loads((folder.path / "tracking.json").read_text())["key"]
    assert {name for name, _, _ in rows} == {f"run-{key}"}
