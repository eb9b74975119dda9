"""Rows that repeat an earlier one value for value are counted as if each had been read by itself."""

import json
import random
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.data import columns
from luspo_cli.data.columns import source_rows
from luspo_cli.data.prepare import prepare

SUMS = [{"question": f"What is {number} plus 1?", "answer": str(number + 1)} for number in range(600)]
ROWS: list[dict[str, Any]] = [
    {"question": "What is 1+1?", "answer": "2"},
    {"question": "what is  1+1", "answer": "2"},
    {"question": "What is 1+1?", "answer": "3"},
    {"question": " ", "answer": "2"},
    {"question": "b?"},
    {"question": "d?", "answer": r"\frac{1}{"},
    {"question": "e?", "answer": "bad"},
    {"question": "x" * 500, "answer": "2"},
    {"question": "In the benchmark?", "answer": "2"},
    {"question": "With a picture in the benchmark?", "answer": "2"},
    {"question": "Which of <image> is in the benchmark?", "answer": "2"},
]


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_same_manifest_and_rows_as_without_the_short_way(
    verified: bool, seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [*ROWS, *SUMS] * 3
    random.Random(seed).shuffle(rows)
    source = write_lines(tmp_path / "mine.jsonl", rows)
    benchmark = [
        {"problem": "in the  benchmark", "answer": "2"},
        {"problem": "With a picture in the benchmark?", "answer": "2", "image": "not-at-hand.png"},
    ]
    excluded = write_lines(tmp_path / "benchmark.jsonl", benchmark)

    def prepared(name: str) -> list[bytes]:
        prepare(
            [str(source)],
            tmp_path / name,
            prompt="plain",
            exclude=[excluded],
            max_prompt_characters=499,
            unparsable=(lambda golds: [gold == "bad" for gold in golds]) if verified else None,
        )
        return [(tmp_path / name / file).read_bytes() for file in ("manifest.json", "train.parquet")]

    short = prepared("short")
    manifest = json.loads(short[0])["splits"]["train"]
    assert manifest["rows_read"] == len(rows)
    assert manifest["rows_used"] + sum(manifest["left_out"].values()) == len(rows)
    assert manifest["left_out"]["unparsable_answer"] == (6 if verified else 3)
    assert manifest["excluded_by_words_alone"] == 3
    monkeypatch.setattr(columns, "_digest_of_values", lambda row: None)
    assert prepared("each by itself") == short


def test_only_rows_equal_in_names_and_values_repeat() -> None:
    read = columns.Columns("question", "answer", (), None, (), str, columns.ImagePlaces(()))
    rows = [
        {"question": "a?", "answer": "1"},
        {"question": "a?", "answer": 1},
        {"question": "a?", "final_answer": "1"},
        {"question": "a?", "answer": "1"},
        {"question": "a?", "answer": date(2026, 1, 1)},
        {"question": "a?", "answer": date(2026, 1, 1)},
    ]
    assert [row.repeats for row in source_rows(rows, read, 10)] == [None, None, None, 10, None, None]


def test_rows_with_images_are_read_each_time() -> None:
    read = columns.Columns("question", "answer", (), None, ("image",), str, columns.ImagePlaces(()))
    row = {"question": "a?", "answer": "1", "image": {"bytes": b"png", "path": None}}
    assert [len(row.images) for row in source_rows([row, row], read)] == [1, 1]
