"""Prepared pictures: which are the same, which marks name them, archives of several files, folders that are moved."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from doubles.hostile_images import encoded, noise
from luspo_cli.data import archives
from luspo_cli.data.blind import blinded
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.data.prepare import Prepared, prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError

A, B = (encoded(noise(20 + n, 30)) for n in range(2))


def left_out(prepared: Prepared) -> dict[str, int]:
    found: Mapping[str, int] = prepared.manifest["splits"]["train"]["left_out"]
    return {reason: count for reason, count in found.items() if count}


def parquet(file: Path, rows: list[dict[str, Any]]) -> str:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return str(file)


def contents(folder: Path) -> list[list[bytes]]:
    return [[image.content() for image in problem.images] for problem in load_problems(folder)]  # type: ignore[attr-defined]


def as_bmp(picture: bytes) -> bytes:
    """The same pixels in another file."""
    with Image.open(io.BytesIO(picture)) as image:
        return encoded(image, "BMP")


def test_one_picture_in_two_files_is_one_picture_everywhere(tmp_path: Path) -> None:
    """In repeats of a preparation, in the warning of a training, and for the blind control; each file stays as it came."""
    one = tmp_path / "one"
    rows = [
        {"question": "How many?", "answer": 1, "image": {"bytes": picture}} for picture in (A, as_bmp(A), as_bmp(B))
    ]
    rows.append({"question": "How many else?", "answer": 1, "image": {"bytes": as_bmp(A)}})
    prepared = prepare([parquet(tmp_path / "one.parquet", rows)], one)
    assert left_out(prepared) == {"duplicate": 1}
    assert contents(one) == [[A], [as_bmp(B)], [as_bmp(A)]]
    assert prepared.manifest["images"]["files"] == 3
    (tmp_path / "b.png").write_bytes(B)
    two = [{"question": "How many?", "answer": "1", "image": "b.png"}]
    prepare([parquet(tmp_path / "two.parquet", two)], tmp_path / "two")
    held_out = load_problems(tmp_path / "two")
    assert (held_out_warning(load_problems(one), held_out, "a", "b") or "").startswith("all 1 held-out")
    same, other, same_again = load_problems(one)
    shown = blinded([same, other, same_again], "other", 0)
    assert [problem.images for problem in shown] == [other.images, shown[1].images, other.images]
    assert shown[1].images in (same.images, same_again.images)
    with pytest.raises(UsageError, match="finds no problem with as many images"):
        blinded([same, same_again], "other", 0)


def test_marks_of_other_spellings_are_marks(tmp_path: Path) -> None:
    """Numbered ones, and a model's own, which training would refuse; one that names no image costs its row."""
    questions = [
        "Is <image 2> left of <image 1>?",
        "<|vision_start|><|image_pad|><|vision_end|>And <|image_pad|>?",
        "Is <image 3> here?",
        "Is <image 1> here, and <image>?",
    ]
    rows = [{"question": text, "answer": 1, "images": [{"bytes": A}, {"bytes": B}]} for text in questions]
    rows += [{"question": text, "answer": 1, "images": []} for text in ("Where is <image 1>?", "What, <|image_pad|>?")]
    prepared = prepare([parquet(tmp_path / "mine.parquet", rows)], tmp_path / "out")
    assert left_out(prepared) == {"image_marks_differ": 4}
    assert [problem.prompt[-1].content for problem in load_problems(tmp_path / "out")] == [
        "Is <image> left of <image>?",
        "<image>And <image>?",
    ]
    assert contents(tmp_path / "out") == [[B, A], [A, B]]


def test_an_archive_is_opened_once_for_all_files_of_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        row = {"question": f"q{number}?", "answer": 1, "image": "a.png"}
        (folder / f"part{number}.jsonl").write_text(json.dumps(row))
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = len(A)
        archive.addfile(info, io.BytesIO(A))
    unpacked: list[Path] = []
    as_it_is = archives._Archive._unpacked
    monkeypatch.setattr(
        archives._Archive, "_unpacked", lambda self, scratch: unpacked.append(scratch) or as_it_is(self, scratch)
    )
    assert prepare([str(folder)], tmp_path / "out").rows == {"train": 3}
    assert len(unpacked) == 1


def test_prepared_data_can_be_prepared_again_and_says_where_absolute_images_went(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}?", "answer": n, "image": {"bytes": picture}} for n, picture in enumerate((A, B))]
    source = parquet(tmp_path / "mine.parquet", rows)
    prepare([source], tmp_path / "one", images="absolute")
    prepare([str(tmp_path / "one")], tmp_path / "two", prompt="boxed-suffix")
    assert contents(tmp_path / "two") == [[A], [B]]
    (tmp_path / "one").rename(tmp_path / "moved")
    with pytest.raises(
        UsageError, match=r"one/images/.* is missing .*prepared with --images absolute: prepare it anew"
    ):
        load_problems(tmp_path / "moved")
    prepare([source], tmp_path / "three")
    (tmp_path / "three").rename(tmp_path / "elsewhere")
    assert contents(tmp_path / "elsewhere") == [[A], [B]]
