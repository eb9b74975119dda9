"""Excluded benchmarks with pictures: words and pictures decide, in every place the same, and words alone are counted."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from doubles.hostile_images import encoded, noise
from luspo_cli.commands.prepare_data import _summary
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.data.prepare import Prepared, prepare
from luspo_cli.data.problems import load_problems

A, B = (noise(24, 18) for _ in range(2))
TEXT = "Find x."
Files = dict[str, Image.Image | bytes]


def folder(place: Path, rows: list[dict[str, Any]], files: Files, name: str = "data.jsonl") -> Path:
    """A folder with a table and its pictures."""
    place.mkdir(exist_ok=True)
    for file, picture in files.items():
        (place / file).write_bytes(picture if isinstance(picture, bytes) else encoded(picture))
    (place / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def asking(*images: str, text: str = TEXT, answer: int = 1) -> dict[str, Any]:
    return {"question": text, "answer": answer, "images": [*images]}


def other_row() -> dict[str, Any]:
    """Without one that is used there is nothing to write."""
    return asking(text="What is 1+1?", answer=2)


def counted(prepared: Prepared, split: str = "train") -> tuple[int, int, int]:
    """Rows in an excluded benchmark, those of them by words alone, and rows used with a benchmark's words."""
    counts = prepared.manifest["splits"][split]
    kept = counts["words_of_excluded_with_other_pictures"]
    return counts["left_out"]["in_excluded_benchmark"], counts["excluded_by_words_alone"], kept


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (["a.png"], ["a.png"], True),
        (["a.png"], ["a.bmp"], True),
        (["a.png", "b.png"], ["a.bmp", "b.png"], True),
        (["a.png", "b.png"], ["b.png", "a.png"], False),
        (["a.png"], ["b.png"], False),
        (["a.png"], ["a.png", "a.png"], False),
        ([], [], True),
    ],
)
def test_all_who_ask_for_repeats_agree(tmp_path: Path, one: list[str], other: list[str], same: bool) -> None:
    """Repeats in a file, between splits, against an excluded benchmark, and of a training's held-out questions."""
    files: Files = {"a.png": A, "b.png": B, "a.bmp": encoded(A, "BMP")}
    first, second = asking(*one), asking(*other, text="find x")
    within = prepare([str(folder(tmp_path / "within", [first, second], files))], tmp_path / "out1")
    assert within.manifest["splits"]["train"]["left_out"]["duplicate"] == same
    split = folder(tmp_path / "split", [first, other_row()], files, "train.jsonl")
    folder(split, [second], files, "test.jsonl")
    parted = prepare([str(split)], tmp_path / "out2")
    assert parted.manifest["splits"]["train"]["left_out"]["in_test_split"] == same
    mine = folder(tmp_path / "mine", [first, other_row()], files)
    benchmark = folder(tmp_path / "benchmark", [second], files)
    against = prepare([str(mine)], tmp_path / "out3", exclude=[benchmark])
    assert counted(against) == (same, 0, not same)
    prepare([str(mine)], tmp_path / "out4")
    prepare([str(benchmark)], tmp_path / "out5", prompt="boxed-suffix")
    said = held_out_warning(load_problems(tmp_path / "out4"), load_problems(tmp_path / "out5"), "a", "b")
    assert (said is not None) == same


@pytest.mark.parametrize(
    ("row", "benchmark", "unread"),
    [
        (asking("a.png"), asking(), 0),
        (asking(), asking("a.png"), 0),
        (asking("a.png"), asking("gone.png"), 1),
        (asking("a.png"), asking("a.png", "broken.png"), 1),
        (asking("a.png"), asking("broken.png"), 1),
        (asking("a.png"), {"question": TEXT, "figure": "b.png"}, 0),
        (asking("a.png"), {"question": TEXT, "image_path": "b.png", "image_file": "a.png"}, 1),
    ],
)
def test_words_alone_decide_where_a_side_has_no_pictures_at_hand(
    tmp_path: Path, row: dict[str, Any], benchmark: dict[str, Any], unread: int
) -> None:
    files: Files = {"a.png": A, "b.png": B, "broken.png": encoded(B)[:200]}
    mine = folder(tmp_path / "mine", [row, other_row()], files)
    excluded = folder(tmp_path / "benchmark", [benchmark, asking(text="Another?")], files)
    prepared = prepare([str(mine)], tmp_path / "out", exclude=[excluded / "data.jsonl"])
    said = [*_summary(prepared)]
    assert counted(prepared) == (1, 1, 0)
    assert "note: 1 of those in an excluded benchmark by their words alone: on one side no picture was at hand." in said
    assert prepared.manifest["excluded"]["files"][0]["images_unreadable"] == unread
    assert ("note: 1 of 2 questions of data.jsonl have images that cannot be read there." in said) == bool(unread)


def test_honest_problems_with_a_benchmarks_words_stay_and_are_counted(tmp_path: Path) -> None:
    """Paths mean the files beside their own table: `1.png` here and there are two pictures, and `2.png` is there `1.png`."""
    rows = [asking("1.png"), asking("2.png", answer=2), asking("3.png", answer=3), other_row()]
    mine = folder(tmp_path / "mine", rows, {"1.png": A, "2.png": B, "3.png": noise(9, 9)})
    benchmark = folder(tmp_path / "benchmark", [asking("1.png")], {"1.png": encoded(B, "BMP")})
    prepared = prepare([str(mine)], tmp_path / "out", exclude=[benchmark])
    assert counted(prepared) == (1, 0, 2)
    assert [problem.answer for problem in load_problems(tmp_path / "out")] == ["1", "3", "2"]
    assert prepared.manifest["excluded"]["files"][0]["with_images"] == 1
    assert len([*(tmp_path / "out/images").rglob("*.*")]) == prepared.manifest["images"]["files"] == 2
    assert any(
        "2 of them have the words of an excluded question and other pictures" in line for line in _summary(prepared)
    )


def test_pictures_of_a_benchmark_are_found_in_its_archive_and_by_numbered_marks(tmp_path: Path) -> None:
    text = "Is {} left of {}?"
    mine = folder(
        tmp_path / "mine",
        [asking("a.png", "b.png", text=text.format("<image>", "<image>")), other_row()],
        {"a.png": A, "b.png": B},
    )
    shown = asking("in/b.png", "in/a.png", text=text.format("<image 2>", "<image 1>"))
    benchmark = folder(tmp_path / "benchmark", [shown], {})
    with zipfile.ZipFile(benchmark / "pictures.zip", "w") as archive:
        for name, picture in (("in/a.png", A), ("in/b.png", B)):
            out = io.BytesIO()
            picture.save(out, "TIFF")
            archive.writestr(name, out.getvalue())
    assert counted(prepare([str(mine)], tmp_path / "out", exclude=[benchmark])) == (1, 0, 0)
    asked = folder(tmp_path / "marks", [{"question": text.format("<image 1>", "<image 2>")}], {})
    assert counted(prepare([str(mine)], tmp_path / "two", exclude=[asked])) == (1, 1, 0)


def test_names_of_files_in_a_folder_of_images_beside_the_table(tmp_path: Path) -> None:
    """LogicVista's layout: an object by ids, the column `imagename`, the files in `images`."""
    rows = [asking("1.png"), asking("2.png", answer=2), other_row()]
    mine = folder(tmp_path / "mine", rows, {"1.png": A, "2.png": B})
    benchmark = folder(tmp_path / "benchmark", [], {})
    (benchmark / "data.jsonl").unlink()
    (benchmark / "dataset.json").write_text(
        json.dumps({"v1": {"imagename": "v1.png", "question": TEXT, "answer": "C"}})
    )
    folder(benchmark / "images", [], {"v1.png": encoded(B, "BMP")})
    prepared = prepare([str(mine)], tmp_path / "out", exclude=[benchmark / "dataset.json"])
    assert counted(prepared) == (1, 0, 1)
    assert prepared.manifest["excluded"]["files"][0]["with_images"] == 1


def test_pictures_of_a_benchmark_do_not_stay_with_text(tmp_path: Path) -> None:
    mine = folder(tmp_path / "mine", [other_row()], {})
    benchmark = folder(tmp_path / "benchmark", [asking("a.png")], {"a.png": A})
    prepared = prepare([str(mine)], tmp_path / "out", exclude=[benchmark])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "train.parquet"]
    assert prepared.manifest["images"]["files"] == 0
