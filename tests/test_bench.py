"""The benchmarks' one entry, and what keeps their numbers: resumed by name, never mixed over machines or versions."""

from __future__ import annotations

import ctypes.util
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "bench"))
from results import (  # noqa: E402
    FAILED,
    OtherWork,
    Results,
    Values,
    exponent,
    median_values,
    print_table,
    with_ratio,
)
from shared.child import Phases, memory_bytes, reset_peak, resident_gib, resident_peak_gib, run_child  # noqa: E402
from shared.forced import forced_reward, last_number  # noqa: E402
from shared.models import forward_flops, parameters_of, qwen2_config  # noqa: E402


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


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["update", "--model", "nowhere"], "--model nowhere is no model folder"),
        (["update", "--repeats", "0"], "must be more than 0"),
        (["update", "--preload", "libnowhere.so"], "the loader would go on without it"),
        (["step", "--trl-python", "nowhere/python"], "make peers builds it"),
        (["loss_memory", "--lengths", "512", "0"], "--lengths (512, 0) must be at least 1"),
        (["compiled", "--layers", "0"], "--layers (0) must be at least 1"),
        (["update", "--set", "run.stepps=3"], "there is no key run.stepps"),
        (["memory", "--set", "nix.a=1"], "there is no key nix.a"),
        (["tiny-run", "--base", "tests"], "no checkout"),
        (["memory", "--cases", "full / nothing"], "there is no nothing"),
        (["step", "--smoke", "--sides", "luspo", "--data", "nowhere"], "There is no data file or folder nowhere"),
    ],
)
def test_bad_options_are_refused_before_anything_is_measured(asked: list[str], said: str) -> None:
    refused = bench(*asked)
    assert refused.returncode in (1, 2)
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr


def test_an_allocator_is_looked_for_and_not_loaded_by_the_benchmark_itself(tmp_path: Path) -> None:
    """A running process into which an allocator comes is aborted at its end."""
    if (library := ctypes.util.find_library("tcmalloc_minimal")) is None:
        pytest.skip("needs tcmalloc (libtcmalloc-minimal4)")
    found = bench("loss-memory", "--smoke", "--preload", library, "--json", str(tmp_path / "found.json"))
    assert found.returncode == 0, found.stderr
    assert library in (tmp_path / "found.json").read_text()


def test_a_file_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"rows"')
    with pytest.raises(SystemExit, match=r"torn\.json is no JSON"):
        Results("made up", tmp_path / "torn.json")


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


def test_cases_take_turns_and_the_median_is_of_each(tmp_path: Path) -> None:
    order: list[str] = []
    numbers = {"a": iter([3.0, 1.0, 2.0]), "b": iter([30.0, 10.0, 20.0])}

    def measure(name: str) -> Values:
        order.append(name)
        return {"seconds": next(numbers[name])}

    results = Results("made up", tmp_path / "found.json")
    medians = results.interleaved({name: lambda name=name: measure(name) for name in numbers}, repeats=3)
    assert order == ["a", "b", "a", "b", "a", "b"]
    assert medians == {"a": {"seconds": 2.0}, "b": {"seconds": 20.0}}
    again = Results("made up", tmp_path / "found.json")
    assert again.interleaved({"a": lambda: measure("a")}, repeats=3) == {"a": {"seconds": 2.0}}
    assert len(order) == 6


def test_what_failed_is_shown_and_not_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    tried: list[str] = []

    def fail() -> Values:
        tried.append("b")
        return {FAILED: "out of memory"}

    medians = Results("made up", None).interleaved({"a": lambda: {"seconds": 2.0}, "b": fail}, repeats=3)
    assert tried == ["b"]
    print_table("case", with_ratio(medians, "a", "seconds"), ("seconds", "times as fast"))
    assert capsys.readouterr().out.splitlines()[2:] == ["| a | 2.00 | 1.00 |", "| b | out of memory | – |"]


def test_a_ratio_is_of_the_baseline_to_a_row_or_the_other_way_round() -> None:
    rows = {"theirs": {"seconds": 6.0}, "ours": {"seconds": 2.0}, "none": {}}
    faster = with_ratio(rows, "theirs", "seconds")
    assert [faster[name].get("times as fast") for name in rows] == [1.0, 3.0, None]
    assert with_ratio(rows, "theirs", "seconds", "share", inverse=True)["ours"]["share"] == pytest.approx(1 / 3)


def test_the_first_text_and_the_median_number() -> None:
    assert median_values([{"n": 1.0, "why": "x"}, {"n": 5.0, "why": "y"}, {"n": 2.0, "why": "z"}]) == {
        "n": 2.0,
        "why": "x",
    }


def test_the_exponent_of_a_power_is_found_and_of_one_point_there_is_none() -> None:
    assert exponent([(x, 7.0 * x**1.5) for x in (1, 4, 9)]) == pytest.approx(1.5)
    assert exponent([(x, 3.0) for x in (1, 4, 9)]) == pytest.approx(0.0)
    assert exponent([(2, 1.0), (2, 3.0)]) != exponent([(2, 1.0), (2, 3.0)])  # nan


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_work_of_other_processes_is_told_from_our_own() -> None:
    spin = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"
    watch = OtherWork()
    other = subprocess.Popen([sys.executable, "-c", spin])
    time.sleep(1.2)
    busy = watch.cores()  # the other one is not waited for yet: its time is nobody's
    other.wait()
    assert busy > 0.2


def test_a_row_measured_beside_other_work_is_marked() -> None:
    results = Results("made up", None)
    results.measured("a", lambda: {"seconds": 1.0})
    results.load["a"] = {"load average": 0.0, "other cores": 0.01}
    assert results.quietness().startswith("quiet")
    results.load["b"] = {"load average": 3.0, "other cores": 1.2}
    assert "NOT QUIET in 1 of 2 rows" in results.quietness()
    assert "1.20 cores" in results.quietness()


def test_numbers_of_other_options_are_not_mixed(tmp_path: Path) -> None:
    Results("made up", tmp_path / "found.json", rows=32).measured("a", lambda: {"seconds": 1.0})
    assert Results("made up", tmp_path / "found.json", rows=32).rows
    with pytest.raises(SystemExit, match="other options"):
        Results("made up", tmp_path / "found.json", rows=64)


def test_a_child_hands_back_its_last_line_and_its_failures_are_told_apart() -> None:
    def python(code: str) -> list[str]:
        return [sys.executable, "-c", code]

    said = "import json, os; print('a word'); print(json.dumps({'n': 3, 'set': os.environ['MADE_UP']}))"
    assert run_child(python(said), environment={"MADE_UP": "yes"}) == {"n": 3, "set": "yes"}
    assert run_child(python("import time; time.sleep(60)"), limit_s=0.5) == {FAILED: "over 0 s"}
    assert run_child(python("raise MemoryError")) == {FAILED: "out of memory"}
    assert run_child(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")) == {FAILED: "out of memory"}
    with pytest.raises(SystemExit, match="no such luck"):
        run_child(python("raise RuntimeError('no such luck')"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_that_is_too_slow_leaves_no_process_behind(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    code = (
        "import subprocess, sys, time\n"
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"open({str(mark)!r}, 'w').write(str(other.pid))\n"
        "time.sleep(60)"
    )
    assert FAILED in run_child([sys.executable, "-c", code], limit_s=8)
    status = Path(f"/proc/{mark.read_text()}/stat")
    for _ in range(200):  # a killed process dies when it is next scheduled
        if not status.exists() or status.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the child's own child lives on")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_benchmark_that_is_ended_ends_its_child(tmp_path: Path) -> None:
    """It would go on for hours, beside whatever is measured next."""
    note = tmp_path / "child"
    child = f"import os, time; open({str(note)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    program = f"import sys; from shared.child import run_child; run_child([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT / "bench")})
    deadline = time.monotonic() + 60
    while not (note.is_file() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.terminate()
    assert parent.wait(60) == 143
    assert math.isnan(memory_bytes("VmRSS", int(note.read_text())))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peaks_and_seconds_go_to_the_phase_that_made_them() -> None:
    class Trainer:
        def sample(self) -> int:
            held = bytearray(300 * 2**20)
            return len(held)

        def grade(self) -> None:
            time.sleep(0.05)

    reset_peak()  # of the tests before
    trainer, phases = Trainer(), Phases()
    phases.watch(trainer, "sample", "rollout")
    phases.watch(trainer, "grade", "reward")
    phases.begin()
    for _ in range(2):
        assert trainer.sample() == 300 * 2**20
        trainer.grade()
        phases.step_done()
    found = phases.summary(warm_up=1)
    assert found["step"] == pytest.approx(found["rollout"] + found["reward"] + found["update"])
    assert found["reward"] >= 0.05
    assert found["rollout peak GiB"] - found["reward peak GiB"] > 0.2
    assert found["peak GiB"] == found["rollout peak GiB"]
    assert "GPU peak GiB" not in found
    assert resident_peak_gib() < found["peak GiB"]


def test_memory_is_read_of_a_process_that_is_there() -> None:
    assert 0.01 < resident_gib() <= resident_peak_gib() + 0.01
    assert 0 < memory_bytes("RssAnon", os.getpid()) < memory_bytes("VmPeak")
    assert math.isnan(memory_bytes("VmRSS", 2**30))
    assert math.isnan(memory_bytes("Vm"))


def test_forced_rewards_mix_every_group_or_every_other_one() -> None:
    assert forced_reward("natural") is None
    mixed, half = forced_reward("mixed"), forced_reward("half")
    assert mixed is not None
    assert half is not None
    assert [[mixed(group, row) for row in range(4)] for group in range(2)] == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert [[half(group, row) for row in range(4)] for group in range(2)] == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_the_last_number_of_a_response() -> None:
    assert [last_number(text) for text in ("so 1,234.5 it is", "from 3 to -4", "none")] == ["1234.5", "-4", ""]


def test_weights_and_operations_are_counted_by_hand() -> None:
    config = qwen2_config("smoke", hidden_size=64, num_attention_heads=4, num_key_value_heads=2)
    # Width 64, 4 heads of 16, 2 key/value heads, feed-forward 128, 2 layers, 512 words, one table for both ends.
    layer = 64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 128
    assert parameters_of(config) == {"layers": 2 * layer, "head": 512 * 64, "embedding": 0}
    # Rows of 3 and 2 tokens: 6 + 3 pairs of a query and a key, 64 numbers each, products and sums, twice.
    expected = 2 * 2 * layer * 5 + 4 * 2 * 64 * 9 + 2 * 512 * 64 * 4
    assert forward_flops(config, [3, 2], 4) == expected


def test_two_trainers_are_told_apart_by_the_table_of_a_step(tmp_path: Path) -> None:
    """The smallest step of luspo through the real command, kept as JSON and not measured again."""
    asked = (
        "step",
        "--smoke",
        "--sides",
        "luspo",
        "--modes",
        "mixed",
        "--tricks",
        "--json",
        str(tmp_path / "step.json"),
    )
    first = bench(*asked)
    assert first.returncode == 0, first.stderr
    row = next(line for line in first.stdout.splitlines() if line.startswith("| mixed, luspo |"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[8:10] == ["8.00", "96.00"]  # 2 problems x 4 responses, all trained, of 12 tokens each
    assert bench(*asked).stdout == first.stdout
