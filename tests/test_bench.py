"""The benchmarks' one entry, and what keeps their numbers: resumed by name, never mixed over machines or versions."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from results import Results  # noqa: E402


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bench", *arguments], cwd=ROOT, capture_output=True, text=True)


def test_every_benchmark_is_listed_with_what_it_measures() -> None:
    lines = {line.split()[0]: line for line in bench().stdout.splitlines() if line.startswith("  ")}
    files = {file.stem for file in (ROOT / "bench").glob("*.py")} - {"__main__", "made_images", "results"}
    assert lines.keys() == files
    assert all(len(line.split()) > 4 for line in lines.values())


def test_a_benchmark_runs_by_its_name_and_another_name_is_refused() -> None:
    found = bench("code-lines", str(ROOT / "bench"))
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip()
    missing = bench("speed")
    assert (missing.returncode, "no benchmark 'speed'" in missing.stderr) == (1, True)


def test_what_was_measured_is_kept_at_once_and_not_measured_again(tmp_path: Path) -> None:
    calls: list[str] = []

    def measure(name: str) -> dict[str, float]:
        calls.append(name)
        return {"seconds": 1.5}

    first = Results("made up", tmp_path / "found.json")
    first.measured("a", lambda: measure("a"))
    again = Results("made up", tmp_path / "found.json")
    assert again.measured("a", lambda: measure("a")) == {"seconds": 1.5}
    again.measured("b", lambda: measure("b"))
    assert calls == ["a", "b"]
    assert list(json.loads((tmp_path / "found.json").read_text())["rows"]) == ["a", "b"]


@pytest.mark.parametrize(("key", "value"), [("benchmark", "another"), ("made_on", {"processor": "another"})])
def test_numbers_of_another_benchmark_or_machine_are_not_mixed(key: str, value: object, tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    Results("made up", file).measured("a", lambda: {"seconds": 1.0})
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    with pytest.raises(SystemExit, match="name another file or remove it"):
        Results("made up", file)


def test_the_table_has_a_dash_for_what_a_row_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    results = Results("made up", None)
    results.measured("a", lambda: {"seconds": 1234.5})
    results.measured("b", lambda: {"peak": 2.0})
    results.print(("seconds", "peak"), digits=1)
    assert capsys.readouterr().out.splitlines()[2:4] == ["| a | 1,234.5 | – |", "| b | – | 2.0 |"]
