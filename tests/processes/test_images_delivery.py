"""Images over two processes: each decodes its own share, rows stay with their images, and a run resumes bit for bit."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch

from doubles import rank_cases
from doubles.image_runs import image_run, image_run_folder
from doubles.processes import run_processes
from doubles.runs import records, stored_weights
from luspo_cli.config.run import TrainRun
from luspo_cli.policy.packing import Row, balance_rows, own_pieces
from luspo_cli.records import Rollout, StopReason


def row(problem: str, length: int, images: bool) -> Row:
    rollout = Rollout(problem, (2, 3), tuple(range(10, 8 + length)), "", StopReason.END)
    return Row(rollout, 1.0, images_of=problem if images else "")


def test_rows_that_need_the_same_images_go_to_one_process() -> None:
    """Sums of tokens: a 20, b 18, c 9, and three texts of 7, 6 and 5: each to the process that has least."""
    rows = [row("a", 10, True), row("b", 9, True), row("x", 7, False), row("c", 9, True), row("y", 6, False)]
    rows += [row("a", 10, True), row("b", 9, True), row("z", 5, False)]
    first, second = balance_rows(rows, 2)
    assert [one.rollout.problem_id for one in first] == ["a", "a", "x", "y"]
    assert [one.rollout.problem_id for one in second] == ["b", "b", "c", "z"]
    # Without images the rows themselves are dealt out, longest first.
    bare = [replace(one, images_of="") for one in rows]
    assert [[one.width for one in own] for own in balance_rows(bare, 2)] == [[10, 9, 9, 5], [10, 9, 7, 6]]


def test_a_pass_that_only_keeps_step_takes_a_row_without_images() -> None:
    rows = [row("a", 4, True), row("a", 4, True), row("x", 9, False)]
    pieces = [own_pieces([rows], rank, 2, 4) for rank in (0, 1)]
    assert [[(p.rows[0].rollout.problem_id, p.filler) for p in own] for own in pieces] == [
        [("x", False), ("x", True)],
        [("a", False), ("a", False)],
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model and six problems, all with images but one."""
    return image_run_folder(tmp_path)


def train_together(config: TrainRun, path: Path) -> list[Counter[str]]:
    """Train on two processes; how often each decoded each image."""
    path.mkdir(exist_ok=True)
    codes = run_processes(2, rank_cases.run_counted_session, config.model_dump_json(), path)
    said = "".join((path / f"said-{rank}.txt").read_text() for rank in (0, 1))
    assert codes == [0, 0], said
    assert "Error" not in said
    decoded = [Counter((path / f"decoded-{rank}.txt").read_text().split()) for rank in (0, 1)]
    for rank in (0, 1):
        (path / f"said-{rank}.txt").unlink()
        (path / f"decoded-{rank}.txt").unlink()
    return decoded


def equal_runs(one: Path, other: Path) -> bool:
    weights: list[dict[str, Any]] = [stored_weights(path, 2) for path in (one, other)]
    return all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    "sets",
    [
        ("model.freeze_vision=false",),
        ("model.freeze_vision=true", "objective.kl_coefficient=0.1"),
        ("model.freeze_vision=true", "model.sharding=full"),
    ],
    ids=["trained", "frozen", "sharded"],
)
def test_each_process_decodes_its_own_share_and_the_run_is_that_of_one(folder: Path, sets: tuple[str, ...]) -> None:
    config = image_run(folder, *sets)
    decoded = train_together(config, folder / "two")
    # Twice a step of 4 problems, and before and after them the held-out 4 of which one has no image.
    asked = [
        name
        for step in (1, 2)
        for name in pandas.read_parquet(folder / f"two/rollouts/step-{step:06d}.parquet")["problem_id"].unique()
    ]
    assert len(asked) == 8
    in_training = Counter(f"{name.rsplit('/', 1)[1]}.png" for name in asked if not name.endswith("/2"))
    expected = in_training + Counter({f"{n}.png": 2 for n in (0, 1, 3)})
    assert decoded[0] + decoded[1] == expected  # every image once each time, on one process
    assert all(decoded)
    assert abs(decoded[0].total() - decoded[1].total()) <= 4
    # The same run of one process.
    (folder / "one").mkdir()
    assert run_processes(1, rank_cases.run_counted_session, config.model_dump_json(), folder / "one") == [0]
    assert Counter((folder / "one/decoded-0.txt").read_text().split()) == expected
    for found, wanted in zip(records(folder / "two"), records(folder / "one"), strict=True):
        assert found["response_length/mean"] == wanted["response_length/mean"]
        assert found["update/rows_trained"] == wanted["update/rows_trained"]
        assert found["objective/loss"] == pytest.approx(wanted["objective/loss"], rel=1e-2, abs=1e-5)
        assert found["update/grad_norm"] == pytest.approx(wanted["update/grad_norm"], rel=1e-3)
        assert found["ratio/noise_floor"] < 1e-5


@pytest.mark.parametrize(("frozen", "bare"), [("false", ()), ("true", (2,))])
def test_ddp_looks_for_weights_without_a_gradient_only_where_there_may_be_one(
    frozen: str, bare: tuple[int, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where each pass reaches every weight that is trained, DDP would warn that it looks in vain."""
    folder = image_run_folder(tmp_path, bare=bare)
    train_together(
        image_run(folder, f"model.freeze_vision={frozen}", "evaluation.every=0", "run.steps=1"), folder / "run"
    )
    assert "find_unused_parameters" not in capfd.readouterr().err


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_a_run_of_two_with_dynamic_sampling_resumes_bit_for_bit(folder: Path, frozen: str) -> None:
    config = image_run(
        folder, f"model.freeze_vision={frozen}", "rollout.dynamic_sampling=true", "rollout.max_sampling_rounds=3",
        "rollout.problems=2", "evaluation.every=0", "rollout.stop_after_steps_without_signal=9",
    )  # fmt: skip
    train_together(config, folder / "whole")
    shutil.copytree(folder / "whole", folder / "part")
    shutil.rmtree(folder / "part/checkpoints/step-000002")
    train_together(config, folder / "part")
    assert [record["step"] for record in records(folder / "part")] == [1, 2]
    whole = records(folder / "whole")
    assert all(record["group/rounds"] > 1 for record in whole)
    assert any(record["update/grad_norm"] > 0 for record in whole)
    assert equal_runs(folder / "whole", folder / "part")
