"""A benchmark of one's own: the documentation's example, every grader by hand, digests, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.files import write_json_lines
from doubles.models import character_model
from doubles.pages import commands, write_files
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmarks.table import load_benchmark
from luspo_cli.evaluation.problems import BenchmarkImage, require_images

PAGE = "own-benchmark.md"
Luspo = Callable[..., tuple[int, str, str]]


@pytest.fixture
def page(luspo: Luspo, tmp_path: Path) -> Luspo:
    """Return `luspo` in a folder with the files of the documentation's page."""
    names = write_files(PAGE, tmp_path)
    assert names == [
        "sums.jsonl", "sums.toml", "responses.jsonl", "judge.py", "values.jsonl", "values.toml", "said.jsonl",
    ]  # fmt: skip
    return luspo


def result(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text())


def test_the_example_of_the_documentation_runs(page: Luspo, tmp_path: Path) -> None:
    scored, drawn, judged = commands(PAGE)
    assert page(*scored)[0] == 0
    found = result(tmp_path / "Sums.json")
    assert [[sample["correct"] for sample in one["samples"]] for one in found["problems"]] == [
        [True, False], [True, True], [True, False],
    ]  # fmt: skip
    assert found["metrics"]["accuracy"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert {kind: cell["accuracy"] for kind, cell in found["metrics"]["kind"].items()} == {"part": 1.0, "sum": 0.5}
    assert found["benchmark_files"] == {
        name: hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("sums.toml", "sums.jsonl")
    }
    assert found["problems"][0]["samples"][0]["read_from"] == "own_mark"  # the prompt asks for the line
    assert page(*judged)[0] == 0
    found = result(tmp_path / "values.json")
    assert [one["samples"][0]["correct"] for one in found["problems"]] == [True, False]
    assert found["metrics"]["reward/close_enough/mean"] == pytest.approx((1 / 1.05 + 0) / 2)
    assert found["metrics"]["reward/close_enough/failed"] == 0
    assert set(found["benchmark_files"]) == {"values.toml", "values.jsonl", "judge.py"}
    assert found["problems"][0]["samples"][0] == {
        "extracted": "3.05", "correct": True, "reason": "function", "read_from": "given", "decided_by": "function",
    }  # fmt: skip
    model = character_model(tmp_path / "model")
    code, _, err = page(*[str(model) if word == "MODEL" else word for word in drawn], "--max-response-tokens", "4")
    assert code == 0, err


def test_images_are_looked_for_beside_the_data_and_shown_in_front(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [
        {"id": "a", "question": "What is it?", "answer": "A", "pictures": ["one.png", "more/two.png"]},
        {"id": "b", "question": "Is <image> it?", "answer": "B", "pictures": "one.png"},
    ]
    write_json_lines(folder / "rows.jsonl", rows)
    (tmp_path / "Own.toml").write_text('data = "data/rows.jsonl"\ngrader = "choice"\ncolumns.images = "pictures"\n')
    benchmark = load_benchmark(str(tmp_path / "Own.toml"))
    first, second = benchmark.from_hub()
    assert (benchmark.name, benchmark.modality, benchmark.size) == ("Own", "vision", 2)
    assert (first.question, second.question) == ("<image><image>What is it?", "Is <image> it?")
    assert first.images == tuple(BenchmarkImage(folder.resolve(), name) for name in ("one.png", "more/two.png"))
    assert (first.aliases, second.aliases) == (("0",), ("1",))
    with pytest.raises(UsageError, match=r"3 of the 3 images of Own are missing in .*data, the first one\.png"):
        require_images([first, second], "Own", "the benchmark")


def test_a_model_is_drawn_from_and_a_changed_grader_scores_anew(page: Luspo, tmp_path: Path) -> None:
    model = character_model(tmp_path / "model")
    words = [
        "eval",
        str(model),
        "--benchmark",
        "values.toml",
        "--samples",
        "2",
        "--max-response-tokens",
        "8",
        "--out",
        "out",
    ]
    code, _, err = page(*words)
    assert code == 0, err
    before, samples = result(tmp_path / "out/values.json"), (tmp_path / "out/values.parquet").read_bytes()
    assert (before["n_problems"], before["n_samples"], before["benchmark_size"]) == (2, 2, 2)
    assert "the result is there" in page(*words)[2]
    (tmp_path / "judge.py").write_text(
        "def close_enough(completions, value, **kwargs):\n    return [1.0] * len(value)\n"
    )
    code, _, err = page(*words)
    assert code == 0
    assert "scoring the 4 samples that are there" in err
    after = result(tmp_path / "out/values.json")
    assert (before["metrics"]["accuracy"], after["metrics"]["accuracy"]) == (0.0, 1.0)
    assert after["benchmark_files"]["judge.py"] != before["benchmark_files"]["judge.py"]
    assert (tmp_path / "out/values.parquet").read_bytes() != samples  # the verdicts in it
    toml = tmp_path / "values.toml"
    toml.write_text(toml.read_text().replace('"plain"', '"dapo"'))
    code, _, err = page(*words)
    assert code == 2
    assert "--replace" in err


GRADED = {
    # grader, gold, response → right
    "math": [("math", "1/2", r"\boxed{0.5}", True), ("math", "1/2", r"\boxed{0.4}", False)],
    "exact": [
        ("exact", "Ab", r"\boxed{Ab}", True), ("exact", "Ab", r"\boxed{ab}", False), ("exact", "1/2", r"\boxed{0.5}", False),
    ],
    "choice": [
        ("choice", "B", r"So it is (B).", True), ("choice", "A, C", r"\boxed{C, A}", True), ("choice", "B", r"\boxed{A}", False),
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", GRADED)
def test_graders_by_hand(luspo: Luspo, tmp_path: Path, kind: str) -> None:
    for number, (grader, gold, response, right) in enumerate(GRADED[kind]):
        write_json_lines(tmp_path / "rows.jsonl", [{"q": "Which one? (A) x (B) y (C) z", "a": gold}])
        write_json_lines(tmp_path / "given.jsonl", [{"id": 0, "response": response}])
        (tmp_path / "own.toml").write_text(
            f'data = "rows.jsonl"\ngrader = "{grader}"\ncolumns = {{ question = "q", answer = "a" }}\n'
        )
        out = f"out-{number}.json"
        assert luspo("eval", "--benchmark", "own.toml", "--responses", "given.jsonl", "--out", out)[0] == 0
        assert result(tmp_path / out)["problems"][0]["samples"][0]["correct"] is right


def test_a_grader_that_hangs_or_ends_its_process_costs_its_response(luspo: Luspo, tmp_path: Path) -> None:
    rows = [{"id": number, "question": "?", "answer": "x"} for number in range(4)]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    given = [{"id": number, "response": text} for number, text in enumerate(("fine", "hang", "exit", "nan"))]
    write_json_lines(tmp_path / "given.jsonl", given)
    (tmp_path / "judge.py").write_text(
        "import os, time\n"
        "def judge(solution_str, **kwargs):\n"
        "    {'hang': lambda: time.sleep(60), 'exit': lambda: os._exit(1)}.get(solution_str, bool)()\n"
        "    return float('nan') if solution_str == 'nan' else 1\n"
    )
    (tmp_path / "own.toml").write_text('data = "rows.jsonl"\ngrader = "judge.py:judge"\ngrader_seconds = 1.0\n')
    words = ("eval", "--benchmark", "own.toml", "--responses", "given.jsonl", "--out", "out.json")
    code, _, err = luspo(*words)
    assert code == 0
    assert "3 comparisons ended as 'crashed' and count as wrong" in err
    metrics = result(tmp_path / "out.json")["metrics"]
    assert (metrics["accuracy"], metrics["reward/judge/failed"]) == (0.25, 3)
    (tmp_path / "judge.py").write_text("def judge(solution_str, **kwargs):\n    return missing\n")
    code, _, err = luspo(*words)
    assert code == 1
    assert (
        "own: its grader 'judge' failed for all 4 responses, first: NameError: name 'missing' is not defined (judge.py"
        in err
    )


ROW = {"id": "a", "question": "2+3?", "answer": "5"}
REFUSED: list[tuple[str, list[dict[str, Any]], str]] = [
    ('dat = "rows.jsonl"', [ROW], "own.toml: unknown key 'dat' (did you mean 'data'?)"),
    ('name = "x"', [ROW], "own.toml: data is missing"),
    ('data = "no.jsonl"', [ROW], "own.toml: there is no file no.jsonl, its data"),
    ('data = "rows.jsonl"\ngrader = "maths"', [ROW], "own.toml: grader = 'maths' is none of math, exact, choice"),
    ('data = "rows.jsonl"\ngrader = "no.py:f"', [ROW], "own.toml: grader: there is no file"),
    ('data = "rows.jsonl"\nname = "GSM8K"', [ROW], "own.toml: 'GSM8K' is one of luspo's own benchmarks"),
    ('data = "rows.jsonl"\nname = "a/b"', [ROW], "own.toml: the name 'a/b' names a file"),
    (
        'data = "rows.jsonl"\n[prompt]\ntemplate = "dapoo"',
        [ROW],
        "there is no prompt template 'dapoo' (did you mean 'dapo'?)",
    ),
    (
        'data = "rows.jsonl"\n[prompt]\ntemplate = "dapo"\nafter = "!"',
        [ROW],
        "prompt.template and prompt.after are two prompts",
    ),
    ('data = "rows.jsonl"\n[columns]\nanswer = "gold"', [ROW], "Row 0 of rows.jsonl has no text in 'gold'"),
    ('data = "rows.jsonl"', [ROW | {"answer": ""}], "Row 0 of rows.jsonl has an empty 'answer': mend that row"),
    ('data = "rows.jsonl"', [ROW | {"answer": None}], "Row 0 of rows.jsonl has an empty 'answer'"),
    ('data = "rows.jsonl"', [ROW, ROW | {"question": " "}], "Row 1 of rows.jsonl has an empty 'question'"),
    ('data = "rows.jsonl"', [ROW | {"answer": True}], "Row 0 of rows.jsonl has something else than text in 'answer'"),
    (
        'data = "rows.jsonl"\nby = ["knd"]',
        [ROW | {"kind": "sum"}],
        "own.toml: by names the column 'knd' (did you mean 'kind'?), and no row of rows.jsonl has a value there; they have id,"
        " question, answer, kind.",
    ),
    ('data = "rows.jsonl"', [ROW, ROW], "gives the id 'a' to two rows"),
    ('data = "rows.jsonl"', [ROW | {"answer": "::"}], "1 gold answers are nothing that grader = 'math' can find right"),
    ('data = "rows.jsonl"\ngrader = "choice"', [ROW | {"answer": "it"}], "first 'it' of 'a'"),
    ("data = ", [ROW], "own.toml is not valid TOML"),
]


@pytest.mark.parametrize(("toml", "rows", "said"), REFUSED)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    luspo: Luspo, tmp_path: Path, toml: str, rows: list[dict[str, Any]], said: str
) -> None:
    (tmp_path / "own.toml").write_text(toml + "\n")
    write_json_lines(tmp_path / "rows.jsonl", rows)
    write_json_lines(tmp_path / "given.jsonl", [{"id": "a", "response": "5"}])
    code, out, err = luspo("eval", "--benchmark", "own.toml", "--responses", "given.jsonl", "--out", "out.json")
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


def test_accuracy_is_shown_apart_by_a_column_within_another(luspo: Luspo, tmp_path: Path) -> None:
    rows = [ROW | {"id": level, "extra": {"level": level}} for level in ("low", "high")]
    write_json_lines(tmp_path / "rows.jsonl", rows)
    write_json_lines(
        tmp_path / "given.jsonl", [{"id": "low", "response": r"\boxed{5}"}, {"id": "high", "response": r"\boxed{6}"}]
    )
    (tmp_path / "own.toml").write_text('data = "rows.jsonl"\nby = ["extra.level"]\n')
    assert luspo("eval", "--benchmark", "own.toml", "--responses", "given.jsonl", "--out", "out.json")[0] == 0
    table = result(tmp_path / "out.json")["metrics"]["extra.level"]
    assert {level: cell["accuracy"] for level, cell in table.items()} == {"low": 1.0, "high": 0.0}


def test_a_file_that_is_not_there_and_data_that_is_named_twice(luspo: Luspo, tmp_path: Path) -> None:
    code, _, err = luspo("eval", "--benchmark", "Nowhere.toml", "--responses", "x.jsonl")
    assert (code, err) == (2, "luspo: cannot read configuration file Nowhere.toml: No such file or directory\n")
    write_json_lines(tmp_path / "rows.jsonl", [ROW])
    (tmp_path / "own.toml").write_text('data = "rows.jsonl"\n')
    code, _, err = luspo("eval", "--benchmark", "own.toml", "--data", str(tmp_path), "--responses", "x.jsonl")
    assert code == 2
    assert "own.toml names its own data: leave --data out" in err
