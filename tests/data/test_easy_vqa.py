"""The source easy-vqa: from a folder, a wheel or an installed package, its split kept, damaged entries refused or counted."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from luspo_cli.data.archives import MOST_BYTES
from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.easy_vqa import category
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError

TRAIN = [
    ["what color is the shape?", "blue", 0],
    ["is there a circle?", "no", 0],
    ["what shape is in the image?", "circle", 1],
]
TEST = [["is there a red shape?", "yes", 0]]


def picture(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(stream, "PNG")
    return stream.getvalue()


def contents() -> dict[str, bytes]:
    found = {f"{split}/questions.json": json.dumps(rows).encode() for split, rows in (("train", TRAIN), ("test", TEST))}
    for name, colour in (("train/images/0", "blue"), ("train/images/1", "teal"), ("test/images/0", "red")):
        found[f"{name}.png"] = picture(colour)
    return found


def folder(root: Path, changes: dict[str, bytes | None] | None = None) -> Path:
    for name, content in (contents() | (changes or {})).items():
        if content is not None:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
    return root


def wheel(file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in contents().items():
            archive.writestr(f"easy_vqa/data/{name}", content)
    return file


@pytest.mark.parametrize("kind", ["folder", "package folder", "wheel"])
def test_every_form_gives_the_same_problems(tmp_path: Path, kind: str) -> None:
    place = {
        "folder": lambda: folder(tmp_path / "in"),
        "package folder": lambda: folder(tmp_path / "in/easy_vqa/data").parent.parent,
        "wheel": lambda: wheel(tmp_path / "easy_vqa-1.0-py3-none-any.whl"),
    }[kind]()
    done = prepare(["easy-vqa"], tmp_path / "out", options=SourceOptions(from_path=place))
    assert done.rows == {"train": 3, "test": 1}
    assert done.manifest["sources"][0]["licence"] == "MIT"
    problems = load_problems(tmp_path / "out", split="train")
    assert [(p.prompt[-1].content, p.answer) for p in problems] == [(f"<image>{q}", a) for q, a, _ in TRAIN]
    assert [p.images[0].load().getpixel((0, 0)) for p in problems] == [(0, 0, 255), (0, 0, 255), (0, 128, 128)]
    assert [p.extra["category"] for p in problems] == ["colour", "yes or no", "shape"]


def test_a_missing_or_broken_picture_costs_its_rows(tmp_path: Path) -> None:
    place = folder(tmp_path / "in", {"train/images/1.png": None})
    assert prepare(["easy-vqa"], tmp_path / "out", options=SourceOptions(from_path=place)).rows["train"] == 2
    (place / "train/images/0.png").write_bytes(picture("blue")[:40])
    (place / "train/images/1.png").write_bytes(picture("teal"))
    assert prepare(["easy-vqa"], tmp_path / "other", options=SourceOptions(from_path=place)).rows["train"] == 1


def test_a_picture_that_is_too_large_is_counted_as_that(tmp_path: Path) -> None:
    place = folder(tmp_path / "in")
    with (place / "train/images/1.png").open("ab") as stream:
        stream.truncate(MOST_BYTES + 1)  # a whole picture, and a tail without content behind it
    prepared = prepare(["easy-vqa"], tmp_path / "out", options=SourceOptions(from_path=place))
    counts = prepared.manifest["splits"]["train"]
    assert {reason: count for reason, count in counts["left_out"].items() if count} == {"image_too_large": 1}
    assert "more than 64 MiB" in counts["first_left_out"]["image_too_large"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{", "is no list of question, answer and image"),
        (b'[["q", "a"]]', "is no list of question, answer and image"),
        (b'[["q", "a", "../x"]]', "has an entry that is no question, answer and image number"),
    ],
)
def test_questions_that_are_none(tmp_path: Path, content: bytes, sentence: str) -> None:
    place = folder(tmp_path / "in", {"train/questions.json": content})
    with pytest.raises(UsageError, match=sentence):
        prepare(["easy-vqa"], tmp_path / "out", options=SourceOptions(from_path=place))


def test_places_that_are_none(tmp_path: Path, luspo: Callable[..., Any]) -> None:
    (tmp_path / "text.whl").write_text("no zip")
    (tmp_path / "empty").mkdir()
    for place, sentence in (
        ("text.whl", "cannot be read as a wheel or zip file"),
        ("empty", "holds no train/questions.json"),
    ):
        code, _, error = luspo("prepare-data", "easy-vqa", "--from", str(tmp_path / place), "--out", "out")
        assert code == 2
        assert sentence in error


def test_categories() -> None:
    assert [category(answer) for answer in ("yes", "triangle", "teal")] == ["yes or no", "shape", "colour"]
