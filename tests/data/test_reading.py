"""Readers of each format, and what they say of a file that is not what its name says."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from luspo_cli.data.reading import choose_column, column_names, read_rows, value_at
from luspo_cli.errors import UsageError

ROWS = [{"question": "a\u2028b", "answer": "1"}, {"question": "c", "answer": "2"}]


def test_json_lines_split_at_newlines_only(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode("utf-8-sig") + b"\r\n\n")
    assert list(read_rows(file)) == ROWS
    assert column_names(file) == ["question", "answer"]


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS),
        json.dumps({"k1": ROWS[0], "k2": ROWS[1]}),
        "\n".join(json.dumps(row) for row in ROWS),
    ],
)
def test_json_in_three_shapes(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    assert list(read_rows(file)) == ROWS


def test_objects_that_look_like_columns_are_rows(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"question": ["a"], "answer": ["1"]}))
    assert list(read_rows(file)) == [{"question": ["a"], "answer": ["1"]}]
    file.write_text(json.dumps({"0": {"question": "a"}, "1": {"question": "b", "id": "own"}}))
    assert list(read_rows(file, id_column="id")) == [{"id": "0", "question": "a"}, {"id": "own", "question": "b"}]


def test_a_parquet_column_named_twice_is_refused(tmp_path: Path) -> None:
    table = pyarrow.table([pyarrow.array(["1"]), pyarrow.array(["2"])], names=["answer", "answer"])
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(UsageError, match="names 'answer' more than once"):
        list(read_rows(tmp_path / "x.parquet"))


def test_csv_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('question,answer\n"a, with\nnewline",1\nc,2\n', encoding="utf-8-sig")
    (tmp_path / "x.tsv").write_text("question\tanswer\na\t1\n")
    assert [row["question"] for row in read_rows(tmp_path / "x.csv")] == ["a, with\nnewline", "c"]
    assert list(read_rows(tmp_path / "x.tsv")) == [{"question": "a", "answer": "1"}]


def test_parquet_with_nested_columns(tmp_path: Path) -> None:
    file = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"q": "a", "r": {"gold": "1"}}]), file)
    assert column_names(file) == ["q", "r", "r.gold"]
    (row,) = read_rows(file, ["r"])
    assert row == {"r": {"gold": "1"}}
    assert value_at(row, "r.gold") == "1"
    assert value_at(row, "r.none") is None
    assert value_at(row, "q.x") is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"a": 1}\n{"a": \n', r"line 2 of .* is not JSON"),
        ("x.jsonl", b"[1]\n", "not a JSON object"),
        ("x.jsonl", b'{"a": "\xff"}\n', "not UTF-8"),
        ("x.json", b"[1, 2]", "not a list of objects"),
        ("x.json", b"{", "not JSON"),
        ("x.json", b"[" * 100_000, "nested too deeply|not JSON"),
        (
            "x.json",
            b'{"a": {"0": 1, "1": 2}, "b": {"0": 3, "1": 4}}',
            r"columns \(a, b\), not of rows.*orient='records'",
        ),
        ("x.json", b'{"a": [1, 2], "b": [3, 4]}', r"columns \(a, b\), not of rows"),
        ("x.json", b'[{"a": ' + b"9" * 5000 + b"}]", "too many digits"),
        ("x.jsonl", b'{"a": 1}\n{"a": ' + b"9" * 5000 + b"}\n", r"line 2 of .* too many digits; write it as text"),
        ("x.jsonl", b'{"a": 1}\n{"a": 1, "a": 2}\n', r"line 2 of .* names 'a' more than once"),
        ("x.csv", b"a,b,a\n1,2,3\n", r"header of .* names 'a' more than once"),
        ("x.csv", b"a,b\n1,2,3\n", "more fields"),
        ("x.csv", b'a,b\n"1,2\n', "not CSV"),
        ("x.parquet", b"nothing", "cannot be read as parquet"),
        ("x.txt", b"a", r"no kind.*\.jsonl"),
    ],
)
def test_bad_files_are_one_sentence(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message) as caught:
        list(read_rows(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_choose_column_lists_what_there_is() -> None:
    names = ["Problem", "Solution", "meta", "meta.gold"]
    assert choose_column(names, None, ("question", "problem"), option="-q", place="x") == "Problem"
    assert choose_column(names, "meta.gold", (), option="-a", place="x") == "meta.gold"
    with pytest.raises(UsageError, match=r"no column 'Solutio' \(did you mean 'Solution'\?\).*Problem, Solution, meta"):
        choose_column(names, "Solutio", (), option="-a", place="x")
    with pytest.raises(UsageError, match="Name one with --answer-column"):
        choose_column(names, None, ("answer",), option="--answer-column", place="x")
    with pytest.raises(UsageError, match=r"it has c0, .*c19 and 980 more\. Name one"):
        choose_column([f"c{n}" for n in range(1000)], None, ("answer",), option="--answer-column", place="x")
