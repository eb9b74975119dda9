"""Which split a file's name says, and that evaluation questions are never trained on without being named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luspo_cli.data.images import ImageFile
from luspo_cli.data.overlap import held_out_warning
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.data.sources import says_train, split_of
from luspo_cli.records import Message, Problem


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train-00000-of-00001", "train"),
        ("validation-00000-of-00001", "validation"),
        ("my_VAL", "validation"),
        ("math.dev", "validation"),
        ("valid1", "validation"),
        ("gsm8k-eval", "validation"),
        ("test-00000-of-00002", "test"),
        ("validation_test", "test"),
        ("train-validation", "validation"),
        ("interval", "train"),
        ("medieval", "train"),
        ("evaluate", "train"),
        ("device", "train"),
        ("contest", "train"),
        ("problems", "train"),
    ],
)
def test_words_of_a_name_decide(name: str, split: str) -> None:
    assert split_of(name) == split


def test_only_a_name_that_says_train_is_training_data_of_a_benchmark() -> None:
    assert [name for name in ("train", "my-training", "constraints", "train-test", "aime") if says_train(name)] == [
        "train",
        "my-training",
    ]


def write(file: Path, numbers: range) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in numbers]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_validation_files_are_a_split_of_their_own_and_training_does_not_repeat_them(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write(folder / "train.jsonl", range(10))
    write(folder / "val.jsonl", range(8, 13))
    write(folder / "test.jsonl", range(12, 14))
    prepared = prepare([str(folder)], tmp_path / "out")
    # 8 and 9 are validation questions, 12 is a test question; each stays where it is judged.
    assert prepared.rows == {"train": 8, "test": 2, "validation": 4}
    splits = prepared.manifest["splits"]
    assert splits["train"]["left_out"]["in_validation_split"] == 2
    assert splits["validation"]["left_out"]["in_test_split"] == 1
    assert prepare([str(folder)], tmp_path / "two", splits=["validation"]).rows == {"validation": 5}


def test_one_validation_file_as_the_source_is_meant(tmp_path: Path) -> None:
    write(tmp_path / "validation.jsonl", range(3))
    assert prepare([str(tmp_path / "validation.jsonl")], tmp_path / "out").rows == {"train": 3}


def test_held_out_questions_that_are_trained_on_are_said(tmp_path: Path) -> None:
    write(tmp_path / "mine.jsonl", range(20))
    prepare([str(tmp_path / "mine.jsonl")], tmp_path / "out", held_out=5)
    train, test = (load_problems(tmp_path / "out", split=split) for split in ("train", "test"))
    assert held_out_warning(train, test, "a", "b") is None
    said = held_out_warning(train, train, "a", "b")
    assert said is not None
    assert said.startswith(
        "all 15 held-out questions of data.held_out (b) are training questions of data.train (a) too"
    )
    said = held_out_warning(train, test + train[:2], "a", "b")
    assert said is not None
    assert said.startswith("2 of the 7 held-out questions")


def test_one_wording_under_two_images_is_two_questions() -> None:
    one, two = (
        Problem(f"p{n}", (Message("user", "<image>How long?"),), "1", "x", images=(ImageFile(Path(f"{n}.png")),))
        for n in (1, 2)
    )
    assert held_out_warning([one], [two], "a", "b") is None
    assert held_out_warning([one], [one], "a", "b") is not None
