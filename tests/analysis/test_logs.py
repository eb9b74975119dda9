"""Logs of other trainers: each layout as its trainer writes it, under names that say nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luspo_cli.analysis.logs import read_log
from luspo_cli.errors import UsageError

STEPS = {1: 210.5, 2: 220.25, 3: 1200.0}
LENGTH = "response_length/mean"


def lengths(path: Path) -> dict[int, float]:
    log = read_log(path)
    return {step: row[LENGTH] for step, row in zip(log.steps, log.rows, strict=True)}


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def verl_console(prefix: str, shown: str) -> str:
    text = f"{prefix}Checkpoint tracker file does not exist: step:1\n{prefix}step:0 - val-core/gsm8k/acc/mean@1:0.508\n"
    for step, length in STEPS.items():
        text += (
            f"{prefix}step:{step} - actor/pg_loss:{shown.format('-0.25')} - actor/lr:1e-06 - critic/score/mean:-0.000"
            f" - response_length/mean:{shown.format(length)} - response_length/clip_ratio:0.125 - timing_s/step:12.5\n"
            f"{prefix}Training Progress:  {step}%|▏   | {step}/300 [00:45<2:32:28, 22.70s/it]\n"
        )
    return text


def chart(name: str) -> str:
    text = f'"Step","{name} - train/completions/mean_length","{name} - train/completions/mean_length__MIN"\n'
    return text + "".join(f'"{step}","{length}","1"\n' for step, length in STEPS.items())


LOGS = {
    "TRL": ("trl", json.dumps({"log_history": [{"step": s, "completions/mean_length": v} for s, v in STEPS.items()]})),
    "TRL before 0.17": (
        "trl-before-0.17",
        json.dumps({"log_history": [{"step": s, "completion_length": v, "reward": 0.5} for s, v in STEPS.items()]}),
    ),
    "TRL with both": (
        "trl",
        json.dumps(
            {"log_history": [{"step": s, "completion_length": 1, "completions/mean_length": v} for s, v in STEPS.items()]}
        ),
    ),
    "verl file": (
        "verl",
        lines([{"step": 0, "data": {"val-core/acc": 0.1}}] + [{"step": s, "data": {LENGTH: v}} for s, v in STEPS.items()]),
    ),
    "verl file, flat": ("verl", lines([{"step": s, LENGTH: v} for s, v in STEPS.items()])),
    "verl's fork, nested": ("verl", lines([{"step": s, "response_length": {"mean": v, "max": 9}} for s, v in STEPS.items()])),
    "verl console": ("verl", verl_console("", "{}")),
    "verl console under Ray": ("verl", verl_console("\x1b[36m(TaskRunner pid=87031, ip=10.0.0.1)\x1b[0m ", "{}")),
    "verl console, numpy 2": ("verl", verl_console("(main_task pid=51520) ", "np.float64({})")),
    "ms-swift": (
        "trl",
        lines([{"completions/mean_length": v, "global_step/max_steps": f"{s}/100"} for s, v in STEPS.items()]),
    ),
    "ms-swift console": (
        "trl",
        "[INFO:swift] Saving\n{'a': 1}\n"
        + "".join(
            f"Train: 1%| | {{'loss': '0.5', 'completions/mean_length': '{v}', 'global_step/max_steps': '{s}/100'}}\n"
            for s, v in STEPS.items()
        ),
    ),
    "OpenRLHF": (
        "openrlhf",
        lines([{"train/global_step": s, "_step": 10 * s, "train/response_length": v} for s, v in STEPS.items()]),
    ),
    "W&B lines": ("trl", lines([{"_step": s, "train/completions/mean_length": v} for s, v in STEPS.items()])),
    "W&B array": ("verl", json.dumps([{"_step": s, "_runtime": 1.5, LENGTH: v} for s, v in STEPS.items()])),
    "W&B by columns": (
        "verl",
        json.dumps({"_step": {str(s): s for s in STEPS}, LENGTH: {str(s): v for s, v in STEPS.items()}}),
    ),
    "W&B CSV": (
        "verl",
        f"_step,training/global_step,{LENGTH},val/acc\n0,0,,0.5\n"
        + "".join(f"{7 * s},{s}.0,{v},\n" for s, v in STEPS.items()),
    ),
    "W&B chart": ("trl", chart("my - run")),
    "ours without its folder": ("luspo", lines([{"step": s, "tokens/total": 1, LENGTH: v} for s, v in STEPS.items()])),
}  # fmt: skip


@pytest.mark.parametrize("name", ["a", "trainer_state.json", "metrics.jsonl", "train.log"])
@pytest.mark.parametrize("kind", LOGS)
def test_the_content_decides_and_not_the_name(tmp_path: Path, kind: str, name: str) -> None:
    source, text = LOGS[kind]
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert lengths(tmp_path / name) == STEPS
    log = read_log(tmp_path / name)
    assert (log.source, log.notes) == (source, ())
    assert log.planned_steps == (100 if kind.startswith("ms-swift") else None)


def test_other_numbers_come_along(tmp_path: Path) -> None:
    (tmp_path / "log").write_text(verl_console("(pid=1) ", "np.float64({})"), encoding="utf-8")
    assert read_log(tmp_path / "log").rows[2] == {
        LENGTH: 1200.0,
        "objective/loss": -0.25,
        "update/learning_rate": 1e-6,
        "reward/total/mean": 0.0,
        "response/truncated_fraction": 0.125,
        "time/total": 12.5,
    }


def test_a_torn_last_line_of_a_console_log_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("step:1 - response_length/mean:12.5\nstep:2 - response_length/mean:1")
    assert lengths(tmp_path / "log") == {1: 12.5}
    assert "line 2, the last, is torn" in read_log(tmp_path / "log").notes[0]


@pytest.mark.parametrize(
    ("steps", "kept", "void"),
    [
        ([1, 2, 3, 4, 3, 4, 5], [1, 2, 3, 4, 5], 2),
        ([1, 2, 3, 4, 2], [1, 2], 3),
        ([5, 10, 15, 10, 15, 5, 10], [5, 10], 5),
        ([3, 3], [3], 1),
    ],
)
def test_after_a_resume_the_later_rows_count(tmp_path: Path, steps: list[int], kept: list[int], void: int) -> None:
    rows = [{"step": step, "completions/mean_length": place} for place, step in enumerate(steps)]
    (tmp_path / "log.json").write_text(json.dumps({"log_history": rows}))
    log = read_log(tmp_path / "log.json")
    assert log.steps == kept
    assert [row[LENGTH] for row in log.rows] == [max(p for p, s in enumerate(steps) if s == step) for step in kept]
    assert f"{void} of its rows were recorded anew" in log.notes[0]


def test_a_step_without_a_length_is_a_gap(tmp_path: Path) -> None:
    for missing in (None, math.nan, "NaN", ""):
        rows = [{"step": step, "completions/mean_length": missing if step == 2 else 5.0} for step in (1, 2, 3)]
        (tmp_path / "log.json").write_text(json.dumps({"log_history": rows}))
        found = lengths(tmp_path / "log.json")
        assert list(found) == [1, 2, 3]
        assert math.isnan(found[2])
    (tmp_path / "log.csv").write_text("_step,completions/mean_length,reward,eval/loss\n1,5,1,\n2,,1,\n3,,,1\n4,5,1,\n")
    log = read_log(tmp_path / "log.csv")
    assert (log.steps, LENGTH in log.rows[1]) == ([1, 2, 4], False)


def test_two_calls_of_a_logger_for_one_step_are_one_row(tmp_path: Path) -> None:
    rows = [
        {"_step": 0, "train/global_step": 1, "train/completions/mean_length": 5.0, "train/loss": None},
        {"_step": 1, "train/global_step": 1, "train/completions/mean_length": None, "train/loss": 0.5},
        {"_step": 2, "train/global_step": 2, "train/completions/mean_length": 6.0, "train/loss": None},
    ]
    (tmp_path / "history").write_text(lines(rows))
    log = read_log(tmp_path / "history")
    assert log.steps == [1, 2]
    assert log.rows == [{LENGTH: 5.0, "objective/loss": 0.5}, {LENGTH: 6.0}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lines([{"step": 1, "loss": 1.0}]), r"none of .*response_length.* is among its keys \(step, loss\); rename"),
        (lines([{"_step": n, f"k{n}": 1} for n in range(20)]), r"k0, .*, \.\.\.\)"),
        (lines([{"completions/mean_length": 1.0}]), "row 1 has no whole number under 'step'"),
        ("{'completions/mean_length': 1.0, 'loss': 0.5}\n", "row 1 has no whole number under 'step'"),
        (lines([{"step": 1.5, LENGTH: 1.0}]), "no whole number under 'step'"),
        (lines([{"step": 1, LENGTH: "many"}]), "'response_length/mean' is 'many' where a number belongs"),
        (lines([{"step": 1, LENGTH: True}]), "is True where a number belongs"),
        (lines([{"step": 2, LENGTH: 1}, {"step": 1, LENGTH: 1}]), "step 1 comes after step 2"),
        ('{"step": 1}\n{"step"\n{"step": 3}\n', "line 2 of 3 is not a JSON object"),
        (json.dumps({"log_history": []}), "has no step yet"),
        (json.dumps({"model_type": "qwen2"}), "no log_history"),
        ("[1, 2]", "is not a run"),
        ("question,answer\n1,2\n", "is not a run"),
        ("some notes\n", "is not a run"),
        ("\n", "has no step yet"),
        (chart("a").replace("\n", ',"b - train/completions/mean_length"\n', 1), r"several runs \(a, b\)"),
    ],
)
def test_what_is_no_log_is_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log").write_text(text)
    with pytest.raises(UsageError, match=message) as refusal:
        read_log(tmp_path / "log")
    assert str(tmp_path / "log") in str(refusal.value)
    assert "\n" not in str(refusal.value)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["step", "_step", LENGTH, "data", "log_history", "completions/mean_length"]), inner
            )
        ),
    )
)
def test_any_json_is_a_log_or_one_sentence(tmp_path_factory: pytest.TempPathFactory, content: Any) -> None:
    file = tmp_path_factory.mktemp("any") / "log"
    for text in (json.dumps(content), json.dumps(content) + "\n" + json.dumps(content) + "\n", str(content)):
        file.write_text(text, encoding="utf-8", errors="replace")
        try:
            log = read_log(file)
        except UsageError:
            continue
        assert len(log.rows) == len(log.steps) == len(set(log.steps))


def test_bytes_that_are_no_text_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"\x89PNG\r\n\x1a\n\xff\x00\xfe" * 50)
    with pytest.raises(UsageError, match="is not a run"):
        read_log(tmp_path / "log")
