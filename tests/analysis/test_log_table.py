"""A log read by Arrow in one go and the same log read line by line: one table, or one and the same refusal."""

import json
from pathlib import Path

import pandas as pd
import pytest

from luspo_cli.analysis import log_table
from luspo_cli.analysis.history import RunHistory, read_run
from luspo_cli.errors import UsageError

PLAIN = [
    '{"step": 1, "b": 1.5, "a": null, "c": 2, "by_length": null}',
    '{"step": 2, "b": 0.1, "a": 3, "later": 7, "by_length": {"edges": [1, 2], "share": [null, 0.5]}}',
    '{"step": 3, "b": 1e-320, "a": 0.30000000000000004, "c": 123456789012345678}',
]
LOGS = {
    "plain": (PLAIN, True),
    "keys of later lines": ([*PLAIN, '{"step": 4, "z": null, "y": 1}', '{"step": 5, "y": 1.5, "x": 2}'], True),
    "largest number": (['{"step": 1, "a": 1.7976931348623157e308, "b": -0.0}'], True),
    "text": ([*PLAIN, '{"step": 4, "b": "high"}'], False),
    "text under a later key": ([*PLAIN, '{"step": 4, "new": "2026-01-01"}'], False),
    "truth": ([*PLAIN, '{"step": 4, "b": true}'], False),
    "truth under a later key": ([*PLAIN, '{"step": 4, "new": true}'], False),
    "list": ([*PLAIN, '{"step": 4, "b": [1]}'], False),
    "no step": ([*PLAIN, '{"b": 4}'], False),
    "step is null": ([*PLAIN, '{"step": null, "b": 4}'], False),
    "step with a fraction": ([*PLAIN, '{"step": 4.0, "b": 4}'], False),
    "step is text": ([*PLAIN, '{"step": "4", "b": 4}'], False),
    "step missing in the first": (['{"b": 1}', *PLAIN], False),
    "step twice": ([*PLAIN, '{"step": 3, "b": 4}'], True),
    "step left out": ([*PLAIN, '{"step": 5, "b": 4}'], True),
    "first step missing": (PLAIN[1:], True),
    "torn end": ([*PLAIN, '{"step": 4, "b'], False),
    "torn within": ([PLAIN[0], '{"step": 2, "b', PLAIN[2]], False),
    "two in a line": ([PLAIN[0], PLAIN[1] + PLAIN[2]], False),
    "one over two lines": ([PLAIN[0], *PLAIN[1].split("null, ")], False),
    "blank line": ([PLAIN[0], "", *PLAIN[1:]], False),
    "not a number": ([*PLAIN, '{"step": 4, "b": NaN}'], True),
    "no object": ([*PLAIN, "4"], False),
    "empty": ([], False),
}


def outcome(folder: Path) -> RunHistory | str:
    try:
        return read_run(folder)
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("kind", LOGS)
def test_same_as_line_by_line(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines, at_once = LOGS[kind]
    (tmp_path / "config.json").write_text('{"objective": {"name": "luspo"}}')
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(f"{line}\n" for line in lines).removesuffix("\n" if kind == "torn end" else ""))
    by_line = outcome(tmp_path)
    monkeypatch.setattr(log_table, "SHORTEST_BYTES", 0)
    assert (log_table.read_table(log) is not None) == at_once
    found = outcome(tmp_path)
    if isinstance(by_line, str) or isinstance(found, str):
        assert found == by_line
    else:
        pd.testing.assert_frame_equal(found.table, by_line.table, check_exact=True)
        assert found.notes == by_line.notes


def test_blocks_are_joined_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_table, "_BLOCK_BYTES", 4096)
    log = tmp_path / "metrics.jsonl"
    rows = [{"step": step, "a": step / 7, **({"late": step} if step > 30_000 else {})} for step in range(1, 60_001)]
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert log.stat().st_size > log_table.SHORTEST_BYTES
    table = log_table.read_table(log)
    assert table is not None
    assert list(table.columns) == ["a", "late"]
    assert table.index.to_list() == [row["step"] for row in rows]
    assert table["a"].to_list() == [row["a"] for row in rows]
    assert table["late"].isna().sum() == 30_000
