"""prepare(): counts, determinism, repetition in bounded memory, overlap."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from luspo_cli.data.columns import SourceOptions
from luspo_cli.data.left_out import LeftOut
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.data.prompts import build_prompt
from luspo_cli.data.values import gold_answer

REPO = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("LUSPO_DATA", REPO / "../shared/data"))


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"needs {path} (set LUSPO_DATA)")
    return path


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def some_rows(count: int) -> list[dict[str, Any]]:
    return [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(count)]


def test_gsm8k_counts_and_layout(tmp_path: Path) -> None:
    folder = needs(DATA / "gsm8k")
    prepared = prepare(["gsm8k"], tmp_path / "gsm8k", options=SourceOptions(from_path=folder))
    assert prepared.rows == {"train": 7473, "test": 1319}
    train = load_problems(tmp_path / "gsm8k")
    assert len(train) == 7473
    assert train[0].id == "gsm8k/train/0"
    assert train[0].answer == "72"
    assert train[0].prompt[0].role == "system"
    golds = [problem.answer for problem in train + load_problems(tmp_path / "gsm8k", split="test")]
    assert all(gold.lstrip("-").isdigit() for gold in golds)
    table = pyarrow.parquet.read_table(tmp_path / "gsm8k/test.parquet")
    assert table.column_names == ["data_source", "prompt", "ability", "reward_model", "extra_info"]
    assert table.slice(0, 1).to_pylist()[0]["reward_model"] == {"style": "rule", "ground_truth": "18"}
    assert sum("\u2028" in problem.prompt[-1].content for problem in train) <= 2


def test_manifest_is_byte_identical_and_says_what_happened(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "mine.jsonl", some_rows(50) + some_rows(5))
    contents = []
    for name in ("one", "two"):
        prepare([str(source)], tmp_path / name, held_out=10, seed=4)
        contents.append((tmp_path / name / "manifest.json").read_bytes())
    assert contents[0] == contents[1]
    assert str(tmp_path).encode() not in contents[0]
    manifest = json.loads(contents[0])
    assert manifest["sources"][0]["files"] == [
        {"name": "mine.jsonl", "sha256": hashlib.sha256(source.read_bytes()).hexdigest()}
    ]
    assert manifest["splits"]["train"]["rows_read"] == 55
    assert manifest["splits"]["train"]["rows_used"] == 50
    assert manifest["splits"]["train"]["left_out"]["duplicate"] == 5
    for name, entry in manifest["outputs"].items():
        assert entry["sha256"] == hashlib.sha256((tmp_path / "one" / name).read_bytes()).hexdigest()
    prepare([str(source)], tmp_path / "other", held_out=10, seed=5)
    assert json.loads((tmp_path / "other/manifest.json").read_text())["outputs"] != manifest["outputs"]


def test_held_out_parts_are_disjoint_and_complete(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "mine.jsonl", some_rows(100))
    assert prepare([str(source)], tmp_path / "out", held_out=20).rows == {"train": 80, "test": 20}
    parts = [load_problems(tmp_path / "out", split=split) for split in ("train", "test")]
    questions = [[problem.prompt[-1].content for problem in part] for part in parts]
    assert len(set(questions[0]) | set(questions[1])) == 100
    assert [problem.id for problem in parts[1]] == [f"mine/test/{n}" for n in range(20)]
    rows = [problem.extra["source_row"] for problem in parts[1]]
    assert rows == sorted(rows) != list(range(20))


def test_every_reason_is_counted(tmp_path: Path) -> None:
    rows = [
        {"question": "What is 1+1?", "answer": "2"},
        {"question": " ", "answer": "2"},
        {"question": None, "answer": "2"},
        {"question": "a?", "answer": ""},
        {"question": "b?"},
        {"question": "c?", "answer": "one\ntwo"},
        {"question": "d?", "answer": r"\frac{1}{"},
        {"question": "e?", "answer": "bad"},
        {"question": "what is  1+1", "answer": "2"},
        {"question": "What is 1+1?", "answer": "3"},
        {"question": "x" * 500, "answer": "2"},
        {"question": "half \ud800 pair", "answer": "2"},
        {"question": "In the benchmark?", "answer": "2"},
    ]
    source = write_lines(tmp_path / "mine.jsonl", rows)
    benchmark = write_lines(tmp_path / "benchmark.jsonl", [{"problem": "in the  benchmark", "answer": "2"}])
    prepared = prepare(
        [str(source)],
        tmp_path / "out",
        prompt="plain",
        exclude=[benchmark],
        max_prompt_characters=499,
        unparsable=lambda golds: [gold == "bad" for gold in golds],
    )
    counts = prepared.manifest["splits"]["train"]
    assert counts["rows_read"] == 13
    assert counts["rows_used"] == 1
    assert counts["left_out"] == {
        LeftOut.EMPTY_QUESTION: 2,
        LeftOut.EMPTY_ANSWER: 2,
        LeftOut.UNPARSABLE_ANSWER: 3,
        LeftOut.DUPLICATE: 1,
        LeftOut.CONFLICTING_ANSWER: 1,
        LeftOut.OVERLONG: 1,
        LeftOut.UNREADABLE_TEXT: 1,
        LeftOut.PLACEHOLDER_IN_TEXT: 0,
        LeftOut.TURN_TOKEN_IN_TEXT: 0,
        LeftOut.IN_TEST_SPLIT: 0,
        LeftOut.IN_VALIDATION_SPLIT: 0,
        LeftOut.WITH_VIDEOS: 0,
        LeftOut.PASS_RATE_MISSING: 0,
        LeftOut.PASS_RATE_OUTSIDE: 0,
        LeftOut.OTHER_CATEGORY: 0,
        LeftOut.IMAGE_COLUMNS_UNCLEAR: 0,
        LeftOut.IMAGE_MARKS_DIFFER: 0,
        LeftOut.IMAGE_MISSING: 0,
        LeftOut.IMAGE_OUTSIDE: 0,
        LeftOut.IMAGE_NOT_SUPPORTED: 0,
        LeftOut.IMAGE_UNREADABLE: 0,
        LeftOut.IMAGE_TOO_LARGE: 0,
        LeftOut.IMAGE_TOO_THIN: 0,
        LeftOut.QUESTION_NOT_TEXT: 0,
        LeftOut.ANSWER_NOT_TEXT: 0,
        LeftOut.IN_EXCLUDED_BENCHMARK: 1,
    }
    assert prepared.manifest["excluded"]["questions"] == 1


def test_training_does_not_repeat_the_test_split(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_lines(folder / "train.jsonl", some_rows(10))
    write_lines(folder / "my_test.jsonl", some_rows(12)[8:])
    prepared = prepare([str(folder)], tmp_path / "out")
    assert prepared.rows == {"test": 4, "train": 8} == {"train": 8, "test": 4}
    left_out = prepared.manifest["splits"]["train"]["left_out"]
    assert {reason: count for reason, count in left_out.items() if count} == {LeftOut.IN_TEST_SPLIT: 2}


def test_a_question_is_kept_with_the_first_gold_that_can_be_read(tmp_path: Path) -> None:
    rows = [{"question": "a?", "answer": gold} for gold in ("bad", "bad", "2", "2", "bad", "3")]
    source = write_lines(tmp_path / "mine.jsonl", [*rows, {"question": "b?", "answer": "2"}])
    asked: list[str] = []

    def unparsable(golds: Sequence[str]) -> list[bool]:
        asked.extend(golds)
        return [gold == "bad" for gold in golds]

    prepared = prepare([str(source)], tmp_path / "out", prompt="plain", unparsable=unparsable)
    assert [problem.answer for problem in load_problems(tmp_path / "out")] == ["2", "2"]
    left_out = prepared.manifest["splits"]["train"]["left_out"]
    assert {reason: count for reason, count in left_out.items() if count} == {
        LeftOut.UNPARSABLE_ANSWER: 3,
        LeftOut.DUPLICATE: 1,
        LeftOut.CONFLICTING_ANSWER: 1,
    }
    assert asked == ["bad", "2", "3"]


def test_a_question_of_the_test_split_is_not_trained_on_whatever_its_gold(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    write_lines(folder / "train.jsonl", some_rows(3))
    write_lines(folder / "test.jsonl", [*some_rows(1), {"question": "What is 1 + 1?", "answer": "bad"}])
    prepared = prepare([str(folder)], tmp_path / "out", unparsable=lambda golds: [gold == "bad" for gold in golds])
    assert prepared.rows == {"test": 1, "train": 1}
    assert prepared.manifest["splits"]["train"]["left_out"]["in_test_split"] == 2


def test_repeated_parquet_is_read_once_in_bounded_memory(tmp_path: Path) -> None:
    def row(number: int) -> dict[str, Any]:
        turns = build_prompt("dapo", f"Problem {number}: " + "long text " * 50)
        return {
            "data_source": "math_dapo",
            "prompt": [{"role": turn.role, "content": turn.content} for turn in turns],
            "ability": "MATH",
            "reward_model": {"ground_truth": str(number), "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": f"uuid-{number}"},
        }

    once = pyarrow.Table.from_pylist([row(number) for number in range(300)])
    (tmp_path / "dapo").mkdir()
    with pyarrow.parquet.ParquetWriter(tmp_path / "dapo/dapo-math-17k.parquet", once.schema) as writer:
        for _ in range(50):
            writer.write_table(once)
    code = textwrap.dedent(
        f"""
        import resource
        from pathlib import Path
        from luspo_cli.data.prepare import prepare
        from luspo_cli.data.columns import SourceOptions
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        options = SourceOptions(from_path=Path({str(tmp_path / "dapo")!r}))
        prepared = prepare(["dapo-math-17k"], Path({str(tmp_path / "out")!r}), options=options)
        print(prepared.manifest["splits"]["train"]["rows_read"], prepared.rows["train"])
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
        """
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    counts, grown = done.stdout.split("\n")[:2]
    assert counts == "15000 300"
    assert int(grown) < 100  # MiB; the table alone is above 10 as text, its rows as Python objects far more
    problems = load_problems(tmp_path / "out")
    assert problems[7].answer == "7"
    assert problems[7].prompt == build_prompt("dapo", ("Problem 7: " + "long text " * 50).strip())


def test_overlap_with_benchmarks_is_removed(tmp_path: Path) -> None:
    aime = [problem["problem"] for problem in map(json.loads, needs(DATA / "aime24/test.jsonl").open())]
    math500 = [problem["problem"] for problem in json.loads(needs(DATA / "math500/math500_test.json").read_text())]
    rows = [{"question": f"  {text.upper()} ", "answer": "1"} for text in aime]
    rows += [{"question": f"Solve: {text} Answer with a number.", "answer": "1"} for text in math500 if len(text) > 300]
    rows += some_rows(20)
    source = write_lines(tmp_path / "mine.jsonl", rows)
    prepared = prepare([str(source)], tmp_path / "out", exclude=[DATA / "aime24", DATA / "math500"])
    assert prepared.rows["train"] == 20
    assert prepared.manifest["splits"]["train"]["left_out"]["in_excluded_benchmark"] == len(rows) - 20
    files = {entry["name"]: entry["questions"] for entry in prepared.manifest["excluded"]["files"]}
    assert files == {"aime24.parquet": 30, "test.jsonl": 30, "math500_test.json": 500}


def test_another_copy_of_a_benchmark_is_mostly_found(tmp_path: Path) -> None:
    prepared = prepare(
        [str(needs(DATA / "aime24/aime24.parquet"))], tmp_path / "out", exclude=[needs(DATA / "aime24/test.jsonl")]
    )
    # The torus problem has other words in the two copies: text comparison keeps it, as docs/data.md says.
    assert prepared.rows == {"train": 1}
    assert prepared.manifest["splits"]["train"]["left_out"]["in_excluded_benchmark"] == 29


def test_limit_keeps_the_first_rows_and_room_for_the_held_out(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "mine.jsonl", some_rows(100))
    prepared = prepare([str(source)], tmp_path / "out", limit=30, held_out=10)
    assert prepared.rows == {"train": 30, "test": 10}
    counts = prepared.manifest["splits"]["train"]
    assert (
        counts["rows_read"] == counts["rows_used"] + sum(counts["left_out"].values()) + counts["rows_read_beyond_limit"]
    )


def test_arithmetic_is_seeded_and_right(tmp_path: Path) -> None:
    prepare(["arithmetic"], tmp_path / "one", options=SourceOptions(size=300, seed=1))
    prepare(["arithmetic"], tmp_path / "two", options=SourceOptions(size=300, seed=1))
    prepare(["arithmetic"], tmp_path / "three", options=SourceOptions(size=300, seed=2))
    one, two, three = (load_problems(tmp_path / name) for name in ("one", "two", "three"))
    assert one == two
    assert one != three
    assert len({problem.prompt for problem in one}) == 300
    for problem in one:
        expression = problem.prompt[-1].content.removeprefix("What is ").removesuffix("?")
        assert eval(expression) == int(problem.answer)


def test_sources_are_joined(tmp_path: Path) -> None:
    one = write_lines(tmp_path / "one.jsonl", some_rows(5))
    two = write_lines(tmp_path / "two.jsonl", some_rows(8))
    prepared = prepare([str(one), str(two)], tmp_path / "out")
    assert prepared.rows == {"train": 8}
    assert [problem.id for problem in load_problems(tmp_path / "out")][4:6] == ["one/train/4", "two/train/5"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("work\n#### 1,234", "1234"),
        ("#### -$1,234,567.5", "-$1234567.5"),
        ("#### (3, 4)", "(3, 4)"),
        ("#### 1,2,3", "1,2,3"),
        ("#### 12,34", "12,34"),
        ("a #### 3 b\n#### -7 ", "-7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{1} and \boxed{2}", r"\boxed{1} and \boxed{2}"),
        ("(1, 2)", "(1, 2)"),
        (27.0, "27"),
        ("####", None),
        (None, None),
    ],
)
def test_gold_answer(value: Any, expected: str | None) -> None:
    assert gold_answer(value) == expected


def test_the_boxes_of_published_solutions_are_the_published_answers() -> None:
    rows = json.loads(needs(DATA / "math500/math500_test.json").read_text())
    assert [row["answer"] for row in rows if gold_answer(row["solution"]) != row["answer"]] == []


def test_gsm8k_row_without_its_mark_has_no_gold(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "train.jsonl", [{"question": "a?", "answer": "x\n#### 5"}, {"question": "b?", "answer": "6"}]
    )
    write_lines(tmp_path / "example_model_solutions.jsonl", [{"question": "c?", "answer": "#### 7"}])
    prepared = prepare(["gsm8k"], tmp_path / "out", options=SourceOptions(from_path=tmp_path))
    assert prepared.rows == {"train": 1}
    assert prepared.manifest["splits"]["train"]["left_out"]["empty_answer"] == 1
