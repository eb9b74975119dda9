"""Loading verl-layout parquet: published files, gold types, images, and each way to be wrong."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luspo_cli.data.problems import fingerprint, load_problems
from luspo_cli.data.values import answer_text
from luspo_cli.errors import UsageError
from luspo_cli.records import Message

DATA = Path(os.environ.get("LUSPO_DATA", Path(__file__).resolve().parents[2] / "../shared/data"))


def row(answer: Any = "5", **changes: Any) -> dict[str, Any]:
    return {
        "data_source": "made",
        "prompt": [{"role": "user", "content": "What is 2+3?"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"split": "train", "index": 0},
    } | changes


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    return file


@pytest.mark.parametrize(
    ("name", "count", "golds"),
    [
        ("aime24/aime24.parquet", 30, {"025", "204"}),
        ("aime25/aime25.parquet", 30, {r"336^\circ", "70"}),
        ("amc23/amc23.parquet", 83, {"27", "-1", "0"}),
    ],
)
def test_published_files(name: str, count: int, golds: set[str]) -> None:
    if not (DATA / name).is_file():
        pytest.skip(f"needs {DATA / name} (set LUSPO_DATA)")
    problems = load_problems(DATA / name)
    assert len(problems) == len({problem.id for problem in problems}) == count
    assert golds <= {problem.answer for problem in problems}


def test_fields(tmp_path: Path) -> None:
    (problem,) = load_problems(write(tmp_path / "train.parquet", [row(27.0)]))
    assert problem.id == "made/train/0"
    assert problem.prompt == (Message("user", "What is 2+3?"),)
    assert (problem.answer, problem.data_source, problem.images) == ("27", "made", ())
    assert problem.extra == {"split": "train", "index": 0}
    assert load_problems(tmp_path) == [problem]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (27.0, "27"),
        (-1.0, "-1"),
        (0.5, "0.5"),
        (7, "7"),
        (" 025 ", "025"),
        (["34"], "34"),
        ("", None),
        ("  ", None),
        (None, None),
        (float("nan"), None),
        (True, None),
        ([], None),
        (["1", "2"], None),
    ],
)
def test_answer_text(value: Any, expected: str | None) -> None:
    assert answer_text(value) == expected


def test_repeated_rows_stay_under_ids_of_their_own(tmp_path: Path) -> None:
    rows = [row(extra_info={"split": "test", "index": 0}), row("6", extra_info={"split": "test", "index": 1})]
    file = write(tmp_path / "aime.parquet", rows * 32)
    repeated = load_problems(file)
    assert len(repeated) == len({problem.id for problem in repeated}) == 64
    assert [problem.id for problem in repeated[:3]] == ["made/test/0", "made/test/1", "made/test/0+1"]


def test_fingerprint_is_of_the_file_that_is_read(tmp_path: Path) -> None:
    file = write(tmp_path / "train.parquet", [row()])
    write(tmp_path / "test.parquet", [row("6")])
    assert fingerprint(tmp_path) == fingerprint(file) == hashlib.sha256(file.read_bytes()).hexdigest()
    assert fingerprint(tmp_path, split="test") != fingerprint(tmp_path)


def test_images_are_paths_below_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    (folder / "images/1.png").write_bytes(b"png")
    (tmp_path / "secret.png").write_bytes(b"png")
    prompt = [{"role": "user", "content": "<image>What is this?"}]

    def load(images: list[Any], prompt: list[dict[str, str]] = prompt) -> list[str]:
        (problem,) = load_problems(write(folder / "train.parquet", [row(prompt=prompt, images=images)]))
        return [image.name for image in problem.images]

    assert load(["images/1.png"]) == [str((folder / "images/1.png").resolve())]
    assert load([{"path": "images/1.png", "bytes": None}]) == [str((folder / "images/1.png").resolve())]
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    for leaving in ("../secret.png", str(tmp_path / "secret.png"), "images/../../secret.png", "link.png"):
        with pytest.raises(UsageError, match="leaves the data folder"):
            load([leaving])
    (folder / "loop.png").symlink_to("loop.png")
    for unfollowed in ("a\0b.png", "loop.png"):
        with pytest.raises(UsageError, match=r"row 0 of .*(cannot be followed|is missing)"):
            load([unfollowed])
    with pytest.raises(UsageError, match="missing"):
        load(["images/2.png"])
    for nothing in ({"bytes": None, "path": None}, None, ""):
        with pytest.raises(UsageError, match="neither bytes nor a path"):
            load(["images/1.png", nothing] if not isinstance(nothing, dict) else [nothing])
    with pytest.raises(UsageError, match="2 images but 1"):
        load(["images/1.png", "images/1.png"])


def test_missing_data_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"luspo prepare-data gsm8k --out .*gsm8k"):
        load_problems(tmp_path / "gsm8k")
    with pytest.raises(UsageError, match=r"no train.parquet .*no parquet file.*prepare-data SOURCE"):
        load_problems(tmp_path)
    write(tmp_path / "test.parquet", [row()])
    with pytest.raises(UsageError, match=r"holds test\.parquet"):
        load_problems(tmp_path)


def test_wrong_files(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    cases: list[tuple[list[dict[str, Any]], str]] = [
        ([{"question": "?", "answer": "5"}], r"no column 'prompt'.*question, answer"),
        ([row(prompt="What?")], "not a list of messages"),
        ([row(prompt=[{"role": "user", "text": "?"}])], "lacks text in 'role' or 'content'"),
        ([row(prompt=[{"role": "system", "content": "?"}])], "no text from the user"),
        ([row(), row(None)], "row 1 .* no gold answer"),
        ([row(reward_model={"style": "rule"})], "no gold answer"),
    ]
    for rows, message in cases:
        write(file, rows)
        with pytest.raises(UsageError, match=message):
            load_problems(file)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row()]).slice(0, 0), file)
    with pytest.raises(UsageError, match="no rows"):
        load_problems(file)
    file.write_bytes(b"PAR1 not really")
    with pytest.raises(UsageError, match="cannot be read as parquet"):
        load_problems(file)
    (tmp_path / "x.jsonl").write_text("{}")
    with pytest.raises(UsageError, match=r"not a parquet file.*prepare-data"):
        load_problems(tmp_path / "x.jsonl")


def test_absent_data_source_is_allowed(tmp_path: Path) -> None:
    bare = {key: value for key, value in row().items() if key in ("prompt", "reward_model")}
    (problem,) = load_problems(write(tmp_path / "mine.parquet", [bare]))
    assert (problem.id, problem.data_source) == ("mine/train/0", "")
