"""Rows chosen by their category: used, counted, and a name that no row has refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Training rows of the categories algebra, geometry, none and algebra; a test row of geometry."""
    folder = tmp_path / "source"
    folder.mkdir()
    splits = {"train": ("algebra", "geometry", None, "algebra"), "test": ("geometry",)}
    for split, categories in splits.items():
        rows = [{"question": f"{split} {n}?", "answer": str(n), "category": c} for n, c in enumerate(categories)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def test_only_rows_of_the_categories_are_used_in_every_split(source: str, tmp_path: Path) -> None:
    prepared = prepare([source], tmp_path / "out", categories=["geometry"])
    assert prepared.rows == {"train": 1, "test": 1}
    assert [p.extra["question"] for p in load_problems(tmp_path / "out", split="train")] == ["train 1?"]
    assert prepared.manifest["categories"] == ["geometry"]
    assert prepared.manifest["splits"]["train"]["left_out"]["other_category"] == 3
    both = prepare([source], tmp_path / "both", categories=["geometry", "algebra"], splits=["train"])
    assert both.rows == {"train": 3}
    assert both.manifest["splits"]["train"]["left_out"]["other_category"] == 1


def test_a_category_that_no_row_has_is_refused(source: str, tmp_path: Path) -> None:
    sentence = (
        r"has the category 'geometri' \(did you mean 'geometry'\?\): the categories there are algebra, geometry\."
    )
    with pytest.raises(UsageError, match=sentence):
        prepare([source], tmp_path / "out", categories=["geometry", "geometri"])
    with pytest.raises(
        UsageError, match=r"the test split .* \(1 other category\).*: the categories there are geometry\."
    ):
        prepare([source], tmp_path / "out", categories=["algebra"])
    # Rows beyond the limit are not read, and may have it.
    assert prepare([source], tmp_path / "out", categories=["geometry", "x"], limit=1).rows == {"train": 1, "test": 1}
