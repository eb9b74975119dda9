"""Every fault, provoked for real. By default four kills and what needs no second run; all of it with `-m slow`.

The table in docs/reliability.md comes from the same catalogue: `python tests/reliability/fault_table.py --write`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fault_table
import kill_faults
import process_faults
import pytest
from fault_catalogue import CATALOGUE, Effort, Kind
from small_training import ROOT, Attempt, Unavailable, Workshop


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("faults"))


def survived(attempts: Iterator[Attempt]) -> int:
    """Go through all attempts; fails on the first loss."""
    tried = 0
    try:
        for attempt in attempts:
            assert not attempt.problem, f"{attempt.moment}: {attempt.problem}"
            tried += 1
    except Unavailable as reason:
        pytest.skip(str(reason))
    assert tried
    return tried


def test_kills_at_random_moments_lose_nothing(workshop: Workshop) -> None:
    """Two kills of one run, seeded; fifty with `-m slow`."""
    kills = kill_faults.kills_at_random_moments(workshop, 2, seed=1, processes=1, in_a_row=2)
    assert survived(kills) == 2


@pytest.mark.parametrize("moment", ["optimizer half written", "metrics line half written"])
def test_a_kill_inside_a_write_loses_nothing(workshop: Workshop, moment: str) -> None:
    assert survived(kill_faults.kills_at_chosen_moments(workshop, [moment])) == 1


def test_a_second_process_is_refused(workshop: Workshop) -> None:
    assert survived(process_faults.second_process(workshop, ["resume"])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", CATALOGUE, ids=[kind.name for kind in CATALOGUE])
def test_every_fault_is_survived(workshop: Workshop, kind: Kind) -> None:
    processes = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    survived(kind.provoke(workshop, Effort(processes=min(4, processes))))


def test_the_table_counts_what_was_tried_survived_and_lost(capsys: pytest.CaptureFixture[str]) -> None:
    one, two, three = CATALOGUE[:3]
    rows = [
        (one, [Attempt("a"), Attempt("b", "gone"), Attempt("c")], ""),
        (two, [], "needs root"),
        (three, [Attempt("d")], ""),
    ]
    assert fault_table.table(rows).splitlines()[2:] == [
        f"| {one.name} | {one.expected} | 3 | 2 | 1 |",
        f"| {two.name} | {two.expected} | not here: needs root | 0 | 0 |",
        f"| {three.name} | {three.expected} | 1 | 1 | 0 |",
        "| all | | 4 | 3 | 1 |",
    ]
    document = f"above\n{fault_table.BEGIN}\n{fault_table.table(rows)}\n{fault_table.END}\nbelow\n"
    again = fault_table.renewed(document, [(two, [Attempt("a"), Attempt("b")], "")])
    assert again.splitlines()[4:8] == [
        f"| {one.name} | {one.expected} | 3 | 2 | 1 |",
        f"| {two.name} | {two.expected} | 2 | 2 | 0 |",
        f"| {three.name} | {three.expected} | 1 | 1 | 0 |",
        "| all | | 6 | 5 | 1 |",
    ]
    assert again.startswith("above\n")
    assert again.endswith("\nbelow\n")


def test_a_lost_run_is_seen(workshop: Workshop, tmp_path: Path) -> None:
    """The comparison that all of this rests on: one flipped bit, one missing file or one more line is a difference."""
    import shutil

    run = tmp_path / "copy"
    shutil.copytree(workshop.whole, run)
    assert workshop.differences(run) == ""
    weights = run / "checkpoints/step-000006/model/model.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert workshop.differences(run) == "checkpoints/step-000006/model/model.safetensors differs"
    weights.write_bytes(kept)
    (run / "rollouts/step-000002.parquet").unlink()
    assert workshop.differences(run) == "rollouts/step-000002.parquet is missing"
    shutil.copy(workshop.whole / "rollouts/step-000002.parquet", run / "rollouts")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7}\n')
    assert workshop.differences(run) == "metrics.jsonl differs"


def test_the_document_shows_every_kind_and_no_loss() -> None:
    """A kind that was added or renamed without a row, or a row that shows a loss, must not stay unseen."""
    text = (ROOT / "docs" / "reliability.md").read_text()
    shown = text.partition(fault_table.BEGIN)[2].partition(fault_table.END)[0].strip().splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown]
    assert [name for name, *_ in cells] == [*(kind.name for kind in CATALOGUE), "all"]
    assert {lost for *_, lost in cells} == {"0"}
