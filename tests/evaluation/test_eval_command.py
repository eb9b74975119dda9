"""`luspo eval` as it is called: a real tiny model behind the engine's sampler, SIGKILL, sentences, `--responses`."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

from doubles.evaluation import aime_folder
from doubles.files import write_json_lines
from doubles.models import character_model
from luspo_cli.app import app
from luspo_cli.commands.display.drawing import LineProgress, seconds_left
from luspo_cli.commands.display.format import clock
from luspo_cli.commands.display.results import result_table
from luspo_cli.commands.eval import EVAL_EXAMPLES
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.benchmarks.table import BENCHMARKS
from luspo_cli.evaluation.weights import find_weights

DRAWING = ("--samples", "2", "--max-rows", "2", "--max-response-tokens", "24", "--dtype", "float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return character_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    aime_folder(folder / "aime24")
    return folder


@pytest.fixture
def one_thread():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


def sentence(result: Result) -> str:
    """The message of a call that was refused."""
    assert isinstance(result.exception, UsageError), result.output
    return str(result.exception)


def rows(file: Path) -> list[dict[str, Any]]:
    return pyarrow.parquet.read_table(file).to_pylist()


def test_killed_twice_and_gone_on_equals_uninterrupted(model, data, tmp_path, one_thread) -> None:
    words = [model, "--benchmark", "aime24", "--data", data, *DRAWING, "--out"]
    out, partial = tmp_path / "killed", tmp_path / "killed/.partial/AIME24"
    for wanted in (4, 12):
        command = [sys.executable, "-m", "luspo_cli", "eval", *map(str, words), str(out)]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 120
        while len(list(partial.glob("chunk-*.parquet"))) < wanted and time.monotonic() < deadline:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (out / "AIME24.json").exists()
    stored = {file.name: file.read_bytes() for file in partial.glob("chunk-*.parquet")}
    assert 12 <= len(stored) < 30
    result = call(*words, out, "--json")
    assert result.exit_code == 0, result.output
    (summary,) = json.loads(result.stdout)["results"]
    assert (summary["found"], summary["drawn"]) == (2 * len(stored), 60 - 2 * len(stored))
    assert call(*words, tmp_path / "whole").exit_code == 0
    for name in ("AIME24.parquet", "AIME24.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    drawn = rows(out / "AIME24.parquet")
    assert [(row["id"], row["sample"]) for row in drawn] == [(str(60 + n), s) for n in range(30) for s in (0, 1)]
    assert len({row["response"] for row in drawn}) > 50  # draws differ between problems and samples


def test_the_first_problems_in_a_table_with_counts(model, data, tmp_path) -> None:
    result = call(model, "-b", "aime24", "--data", data / "aime24", "--limit", 3, *DRAWING, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    row = next(line.split() for line in result.stdout.splitlines() if line.startswith("AIME24"))
    assert row[:4] == ["AIME24", "3", "of", "30"]
    assert "0/6" in row
    assert str(tmp_path / "out/AIME24.json") in result.stdout
    assert "6 of 6 samples" in result.stderr
    drawn = rows(tmp_path / "out/AIME24.parquet")
    for row in drawn:
        if row["stop_reason"] == "length":
            assert row["response_length"] == 24
        else:
            assert row["stop_reason"] == "end"
            assert row["response_length"] <= 24


def test_greedy_samples_are_equal_and_a_seed_changes_drawn_ones(model, data, tmp_path) -> None:
    base = [model, "-b", "aime24", "--data", data, "--limit", 2, *DRAWING]
    for name, more in (("greedy", ["--temperature", 0]), ("a", []), ("b", ["--seed", 1])):
        assert call(*base, *more, "--out", tmp_path / name).exit_code == 0
    texts = {
        name: [row["response"] for row in rows(tmp_path / name / "AIME24.parquet")] for name in ("greedy", "a", "b")
    }
    assert texts["greedy"][0] == texts["greedy"][1]
    assert texts["a"][0] != texts["a"][1]
    assert texts["a"] != texts["b"]


def test_the_prompt_variant_reaches_model_and_result(model, data, tmp_path) -> None:
    base = [model, "-b", "aime24", "--data", data, "--limit", 1, *DRAWING, "--temperature", 0]
    texts = []
    for variant in ("qwen-boxed", "dapo"):
        assert call(*base, "--prompt", variant, "--out", tmp_path / variant).exit_code == 0
        (first, _) = rows(tmp_path / variant / "AIME24.parquet")
        assert first["prompt_variant"] == variant
        texts.append(first["response"])
    assert texts[0] != texts[1]


def write_run(folder: Path, model: Path, steps: tuple[int, ...]) -> Path:
    """A run folder with whole checkpoints, written by hand after docs/run-folder.md."""
    config = {
        "objective": {"name": "luspo"},
        "rollout": {"max_response_tokens": 17},
        "model": {"compute_dtype": "float32"},
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    for step in steps:
        checkpoint = folder / f"checkpoints/step-{step:06d}"
        shutil.copytree(model, checkpoint / "model")
        files = {
            str(file.relative_to(checkpoint)): {
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in checkpoint.rglob("*")
            if file.is_file()
        }
        (checkpoint / "checkpoint.json").write_text(json.dumps({"step": step, "files": files}))
    return folder


def test_a_run_is_evaluated_by_its_newest_whole_checkpoint(model, data, tmp_path) -> None:
    run = write_run(tmp_path / "run", model, (50, 100))
    (run / "checkpoints/step-000100/model/config.json").write_text("{}")
    result = call(run, "--benchmark", "aime24", "--data", data, "--limit", 2)
    assert result.exit_code == 0, result.output
    assert "step-000100 is damaged" in result.stderr
    content = json.loads((run / "evals/AIME24.json").read_text())
    sampling = content["sampling"]
    assert (sampling["step"], sampling["max_response_tokens"], sampling["dtype"]) == (50, 17, "float32")
    assert (run / "evals/AIME24.parquet").is_file()
    assert not (run / "evals/.partial").exists()


def test_a_step_is_chosen_and_others_are_named(model, tmp_path) -> None:
    run = write_run(tmp_path / "run", model, (50, 100))
    assert find_weights(str(run), None).step == 100
    weights = find_weights(str(run), 50)
    assert (weights.step, weights.path) == (50, str(run / "checkpoints/step-000050/model"))
    with pytest.raises(UsageError, match=r"no checkpoint of step 60; it has: 50, 100"):
        find_weights(str(run), 60)
    with pytest.raises(UsageError, match=r"luspo eval .*run --step 50"):
        find_weights(str(run / "checkpoints/step-000050"), None)
    with pytest.raises(UsageError, match="no run folder"):
        find_weights(str(model), 50)


def test_the_fingerprint_follows_the_weights_and_not_the_place(model, tmp_path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    assert find_weights(str(copy), None).fingerprint() == find_weights(str(model), None).fingerprint()
    other = character_model(tmp_path / "other", seed=1)
    assert find_weights(str(other), None).fingerprint() != find_weights(str(model), None).fingerprint()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["MODEL"], "--suite text|vision|all"),
        (["--benchmark", "aime24"], "Say what to evaluate"),
        (["MODEL", "--benchmark", "aime2"], "no benchmark 'aime2' (did you mean 'aime2"),
        (["MODEL", "--benchmark", "aime24,AIME24"], "twice"),
        (["MODEL", "--suite", "texts"], "did you mean 'text'?"),
        (["MODEL", "--benchmark", "aime24", "--mode", "official"], "AIME24 has no mode 'official'"),
        (["MODEL", "--benchmark", "aime24", "--prompt", "qwen"], "did you mean 'qwen-boxed'?"),
        (["MODEL", "--suite", "vision"], "is a model for text only; choose --suite text"),
        (["MODEL", "--suite", "all"], "is a model for text only; choose --suite text"),
        (["MODEL", "--benchmark", "aime24,math500"], "no folder 'math500'"),
        (["MODEL", "--benchmark", "aime24", "--limit", "31"], "more than the 30 problems of AIME24"),
        (
            ["MODEL", "--benchmark", "aime24", "--top-p", "0"],
            "--top-p: sampling.top_p = 0.0: input should be greater than 0",
        ),
        (
            ["MODEL", "--benchmark", "aime24", "--dtype", "int8"],
            "'int8': input should be 'auto', 'float32' or",
        ),
        (["nothing/at/all", "--benchmark", "aime24"], "no run or model 'nothing/at/all'"),
        (["runs/none", "--benchmark", "aime24"], "no run or model 'runs/none'"),
        (["MODEL", "--benchmark", "aime24", "--judge-url", "http://x/v1"], "needs both"),
        (["MODEL", "--benchmark", "aime24", "--judge-task", "extract"], "goes with --judge-url"),
        (
            ["MODEL", "--benchmark", "aime24", "--judge-url", "x", "--judge-model", "m"],
            "no http address",
        ),
        (["MODEL", "--benchmark", "aime24", "--responses", "r.jsonl"], "--responses needs no model"),
        (["--benchmark", "aime24", "--responses", "r.jsonl", "--samples", "2"], "--samples is for drawing"),
        (["--benchmark", "aime24", "--responses", "absent.jsonl"], "absent.jsonl cannot be read"),
    ],
)
def test_bad_usage_is_one_sentence_and_writes_nothing(model, data, tmp_path, words, said) -> None:
    given = [str(model) if word == "MODEL" else word for word in words]
    more = [] if "--responses" in given else ["--max-response-tokens", "8"]
    result = call(*given, "--data", data, "--out", tmp_path / "out", *more)
    text = sentence(result)
    assert said in text
    assert "\n" not in text
    assert list(tmp_path.iterdir()) == []


def test_an_empty_data_file_is_refused(model, tmp_path) -> None:
    (tmp_path / "test.jsonl").write_text("")
    assert "0 rows" in sentence(call(model, "-b", "aime24", "--data", tmp_path, "--out", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_key_that_is_not_set_is_named(model, data, monkeypatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    judge = ("--judge-url", "http://localhost:1/v1", "--judge-model", "m", "--judge-key-env", "NO_SUCH_KEY")
    assert "NO_SUCH_KEY" in sentence(call(model, "-b", "aime24", "--data", data, *judge))


def test_responses_are_scored_without_torch(data, tmp_path) -> None:
    responses = write_json_lines(
        tmp_path / "responses.jsonl",
        [{"id": 60 + n, "response": rf"\boxed{{{n if n < 12 else 999}}}"} for n in range(29)],
    )
    out = tmp_path / "scores.json"
    words = ["eval", "--benchmark", "aime24", "--responses", responses, "--data", data / "aime24", "--out", out]
    script = (
        "import sys\nfrom luspo_cli.app import app\n"
        f"app({[str(word) for word in words]!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'transformers', 'datasets', 'pandas', 'sympy'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    content = json.loads(out.read_text())
    assert set(content) == {
        "benchmark", "version", "mode", "grader_version", "n_problems", "n_samples", "metrics", "responses", "config", "problems",
    }  # fmt: skip
    assert (content["n_problems"], content["n_samples"], content["metrics"]["accuracy"]) == (30, 1, 0.4)
    assert "12/29" in done.stdout
    assert "1 problems have no response and count as wrong" in done.stderr


def test_responses_as_json(data, tmp_path) -> None:
    responses = write_json_lines(tmp_path / "responses.jsonl", [{"id": 60, "response": r"\boxed{0}"}])
    result = call("--benchmark", "aime24", "--responses", responses, "--data", data, "--json")
    summary = json.loads(result.stdout)
    assert (summary["benchmark"], summary["metrics"]["correct"], summary["responses"]["missing"]) == ("AIME24", 1, 29)
    assert "problems" not in summary


@pytest.mark.parametrize(("out", "said"), [(".", "is a folder"), ("responses.jsonl", "is the responses file itself")])
def test_a_result_never_takes_the_place_of_something_else(data, tmp_path, monkeypatch, out: str, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    responses = write_json_lines(tmp_path / "responses.jsonl", [{"id": 60, "response": r"\boxed{0}"}])
    before = responses.read_bytes()
    words = ("--benchmark", "aime24", "--responses", responses, "--data", data, "--out", out)
    assert said in sentence(call(*words))
    assert responses.read_bytes() == before


@pytest.mark.parametrize(("inferred", "shown"), [(0, False), (1_234, True)])
def test_the_table_counts_inferred_answers_where_there_are_any(inferred: int, shown: bool) -> None:
    metrics: dict[str, Any] = {"accuracy": 0.5, "accuracy_interval_95": None, "correct": 1, "samples": 2}
    metrics |= {"no_answer_fraction": 0.0, "read_from": {"box": 1, **({"inferred": inferred} if inferred else {})}}
    table = result_table([{"benchmark": "B", "mode": "rule", "n_problems": 2, "n_samples": 1, "metrics": metrics}])
    assert ("inferred" in [column.header for column in table.columns]) is shown
    assert ("1,234" in [cell for column in table.columns for cell in column.cells]) is shown


def test_the_list_names_every_benchmark() -> None:
    listed = json.loads(call("--list", "--json").stdout)["benchmarks"]
    assert [row["name"] for row in listed] == list(BENCHMARKS)
    aime = next(row for row in listed if row["name"] == "aime24")
    assert (aime["problems"], aime["modality"], aime["version"], aime["default_prompt"]) == (
        30,
        "text",
        2,
        "qwen-boxed",
    )
    assert "HuggingFaceH4/aime_2024::train" in aime["hub_ids"]
    assert all(row["licence"] for row in listed)
    table = call("--list").stdout
    assert all(any(line.startswith(f"{name} ") for line in table.splitlines()) for name in BENCHMARKS)


def test_examples_name_options_that_exist() -> None:
    shown = call("--help").output
    for example in EVAL_EXAMPLES:
        assert example.startswith("luspo eval")
        for word in example.split():
            assert not word.startswith("--") or word in shown


def test_progress_counts_only_what_this_session_drew() -> None:
    now, lines = [0.0], []
    progress = LineProgress(lines.append, clock=lambda: now[0])
    progress("AIME24", 100, 200, 100)
    now[0] = 5.0
    progress("AIME24", 110, 200, 100)
    now[0] = 20.0
    progress("AIME24", 120, 200, 100)  # 20 samples in 20 s: 80 s for the other 80
    now[0] = 21.0
    progress("AIME24", 200, 200, 100)
    assert lines == ["AIME24: 120 of 200 samples, about 1:20 left", "AIME24: 200 of 200 samples"]
    assert seconds_left(3.0, 0, 5) is None
    assert clock(3725) == "1:02:05"
