"""One run at a glance: thresholds from both sides, checks that cannot be made, and model text that cannot drive a terminal."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from doubles import reports
from doubles.reports import rollout
from luspo_cli.analysis.history import read_run
from luspo_cli.analysis.inspection import (
    CLIPPED,
    COLLAPSE,
    EXPLOSION,
    FALLEN,
    LEAST_CLIPPED,
    LEAST_FALL,
    LEAST_MISMATCH,
    MISMATCH_CORRELATION,
    MISMATCH_GROWTH,
    MIXED,
    ONE_SIDED,
    PAGE,
    TRUNCATED,
    Finding,
    inspect_run,
)
from luspo_cli.commands.display.inspection import shortened, sparkline
from luspo_cli.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
HEALTHY = {
    "response/truncated_fraction": [0.0, 0.2],
    "objective/clip_low_fraction": [0.0, 0.25],
    "objective/clip_high_fraction": [0.0, 0.25],
    "group/mixed_fraction": [1.0, 0.25],
    "sampler/logprob_difference_mean": [1e-7, 1e-6],
}


def findings(write_run, lengths=(20.0, 20.0), objective="gspo", change=None, **changes) -> list[Finding]:
    columns = {name: values for name, values in (HEALTHY | changes).items() if values is not None}
    columns = {name.replace("/", "__"): values for name, values in columns.items()}
    run = write_run("run", objective, lengths=list(lengths), change=change, **columns)
    return list(inspect_run(read_run(run)).findings)


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({}, None),
        ({"lengths": [20.0, 10.0]}, None),
        ({"lengths": [20.0, 9.9]}, "collapse"),
        ({"lengths": [20.0, 40.1]}, "explosion"),
        ({"response/truncated_fraction": [0.0, 0.21]}, "truncation"),
        ({"objective/clip_low_fraction": [0.0, 0.26]}, "clipping"),
        ({"objective/clip_low_fraction": [0.0, 0.09], "objective/clip_high_fraction": [0.0, 0.02]}, "one-sided clip"),
        ({"objective/clip_low_fraction": [0.0, 0.07], "objective/clip_high_fraction": [0.0, 0.02]}, None),
        ({"objective/clip_low_fraction": [0.0, 0.009], "objective/clip_high_fraction": [0.0, 0.0]}, None),
        ({"group/mixed_fraction": [1.0, 0.24]}, "few mixed groups"),
        ({"lengths": [20.0, 30.0], "sampler/logprob_difference_mean": [0.002, 0.0031]}, "sampler mismatch"),
        ({"lengths": [30.0, 20.0], "sampler/logprob_difference_mean": [0.002, 0.0031]}, None),
        ({"lengths": [20.0, 30.0], "sampler/logprob_difference_mean": [0.002, 0.0029]}, None),
    ],
)
def test_thresholds(write_run, changes: dict, kind: str | None) -> None:
    assert [one.kind for one in findings(write_run, **changes)] == ([] if kind is None else [kind])


def test_a_collapse_begins_with_the_clip_range_and_ends_with_the_weight(write_run) -> None:
    (found,) = findings(write_run, lengths=[20.0, 4.0])
    assert found.seen == "mean response length went from 20.0 to 4.0 tokens, 0.2 times the start"
    assert [one.split()[0] for one in found.try_next] == ["clip", "which", "update.mini_batches=1,", "the"]
    assert "objective.clip_low" in found.try_next[1]
    (grown,) = findings(lambda name, *rest, **more: write_run("other", *rest, **more), lengths=[20.0, 80.0])
    assert "objective.clip_high" in grown.try_next[1]


LOW, HIGH = "objective/clip_low_fraction", "objective/clip_high_fraction"


@pytest.mark.parametrize(
    ("objective", "clipped", "mini_batches", "left"),
    [
        ("gspo", (0.1, 0.1), 4, ["clip", "which", "update.mini_batches=1,", "the"]),
        ("luspo", (0.1, 0.1), 4, ["clip", "update.mini_batches=1,"]),
        ("gspo", (0.0, 0.005), 4, ["clip", "update.mini_batches=1,"]),
        ("luspo", (0.1, 0.1), 1, ["clip"]),
        ("gspo", (0.0, 0.0), 4, []),
        ("gspo", (None, None), 4, ["clip", "which", "update.mini_batches=1,", "the"]),
    ],
)
def test_advice_that_the_run_follows_or_whose_cause_it_lacks_is_left_out(
    write_run, objective: str, clipped: tuple, mini_batches: int, left: list[str]
) -> None:
    change = {"update": {"mini_batches": mini_batches}}
    low, high = ([one, one] for one in clipped)
    found = findings(write_run, [20.0, 4.0], objective, change, **{LOW: low, HIGH: high})
    assert [one.split()[0] for one in found[0].try_next] == left
    assert found[0].seen.endswith("none of the known causes is visible in this run") == (not left)


def test_a_wider_low_side_is_not_advised_without_the_weight_by_length(write_run) -> None:
    (found,) = findings(write_run, objective="luspo", **{LOW: [0.1, 0.1], HIGH: [0.0, 0.0]})
    assert found.try_next == ("a narrower objective.clip_high, until both sides cut alike",)
    switched_on = {"rollout": {"dynamic_sampling": True}}
    again = findings(
        lambda _, *rest, **more: write_run("b", *rest, **more),
        change=switched_on,
        **{"group/mixed_fraction": [1.0, 0.1]},
    )
    assert again[0].try_next == ("a larger rollout.group_size", "easier or harder problems")


def test_a_length_that_fell_and_came_back_is_said_with_its_steps(write_run) -> None:
    columns = {name: [values[0]] * 12 for name, values in HEALTHY.items()}
    (found,) = findings(write_run, [30.0] * 3 + [20.0, 10.0, 2.0, 3.0, 4.0] + [30.0] * 4, **columns)
    assert (found.kind, found.page) == ("passing collapse", "docs/collapse.md#a-collapse-that-passes")
    assert found.seen.startswith(
        "mean response length fell from 30.0 tokens in steps 1 to 3 to 3.0 in steps 6 to 8, and is 30.0 at the end"
    )
    one_step = [30.0] * 5 + [2.0] + [30.0] * 6
    assert findings(lambda _, *rest, **more: write_run("one", *rest, **more), one_step, **columns) == []


@pytest.mark.parametrize(
    ("accuracy", "seen"),
    [
        (
            [0.4] * 6 + [0.0] * 6,
            "from 0.40 in steps 1 to 3 to 0.00 in steps 7 to 9 and stayed low, 0.00 at the end",
        ),
        (
            [0.4] * 3 + [0.1] * 3 + [0.4] * 6,
            "from 0.40 in steps 1 to 3 to 0.10 in steps 4 to 6 and came back, 0.40 at the end",
        ),
        ([0.4] * 6 + [0.2] * 6, None),
        ([0.1] * 6 + [0.01] * 6, None),
        ([0.0] * 12, None),
    ],
)
def test_an_accuracy_that_collapsed_is_said_with_its_steps(write_run, accuracy: list[float], seen: str | None) -> None:
    columns = {name: [values[0]] * 12 for name, values in HEALTHY.items()} | {"reward/accuracy/mean": accuracy}
    found = findings(write_run, [20.0] * 12, **columns)
    assert [one.seen for one in found] == ([] if seen is None else [f"accuracy fell {seen}"])
    for one in found:
        assert one.page == "docs/collapse.md#accuracy-collapses"
        assert one.try_next[0] == "a lower bound (objective.clip_low): nothing was clipped low in this run"


def test_links_lead_to_headings(write_run) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line[:1] == "#"
    }
    source = (ROOT / "luspo_cli/analysis/inspection.py").read_text(encoding="utf-8")
    linked = re.findall(r"\{PAGE\}#([\w-]+)", source)
    linked += re.findall(r'"(1-clip-range|a-collapse-that-passes)"', source)
    assert len(linked) == 8
    assert set(linked) <= headings


def test_what_is_not_recorded_is_not_checked(write_run) -> None:
    found = inspect_run(read_run(write_run("run", lengths=[20.0, 20.0])))
    assert found.findings == ()
    assert [one.split(":")[0] for one in found.not_checked] == [
        "accuracy",
        "truncation",
        "clip",
        "mixed groups",
        "sampler mismatch",
    ]


def test_a_run_without_lengths_is_refused(write_run) -> None:
    with pytest.raises(UsageError, match="no response length"):
        inspect_run(read_run(write_run("run", lengths=[None, None])))


def test_windows_are_those_of_the_comparison(write_run) -> None:
    (length, *_) = inspect_run(read_run(write_run("run", lengths=[float(step) for step in range(1, 41)]))).trends
    assert (length.start, length.middle, length.final) == (2.5, 18.5, 38.5)


def test_sparklines_hold_gaps_and_means() -> None:
    assert sparkline([0.0, 1.0]) == "▁█"
    assert sparkline([1.0, None, 1.0]) == "▄ ▄"
    assert sparkline([0.0, 2.0, 5.0, 3.0, 7.0], 3) == "▁▅█"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc", "a⏎b c"),
        ("\x1b[31mred\x07\u202e\u2028", "�[31mred���"),
        ("x" * 200, f"{'x' * 60} …110 more… {'x' * 30}"),
    ],
)  # fmt: skip
def test_responses_are_one_printable_line(text: str, shown: str) -> None:
    assert shortened(text) == shown


def test_the_command_shows_mixed_groups_of_the_last_step(luspo, tmp_path: Path) -> None:
    same = [rollout("same", "1"), rollout("same", "[red]2\x1b[2J")]
    mixed = [
        rollout("mixed", "no"),
        rollout("mixed", "yes", status="correct"),
        rollout("mixed", "cut", stop_reason="length"),
    ]
    run = reports.write_run(tmp_path, "a", rollouts={1: same, 4: [*same, *mixed]})
    status, out, err = luspo("inspect", str(run))
    assert (status, err) == (0, "")
    assert out.index("step 4, mixed: 1 of 3 right") < out.index("step 4, same: 0 of 2 right")
    assert "right   reward 1, advantage +1.00, 4 tokens: yes" in out
    assert "wrong   reward 0, advantage -1.00, 4 tokens cut: cut" in out
    assert "[red]2�[2J" in out
    assert "\x1b" not in out
    assert "No warnings." in out


def test_rollouts_newer_than_the_metrics_are_not_shown_and_that_is_said(luspo, tmp_path: Path) -> None:
    stored = {step: [rollout(f"p{step}", "no"), rollout(f"p{step}", "yes", status="correct")] for step in (1, 2, 4)}
    run = reports.write_run(tmp_path, "a", rollouts=stored)
    log = run / "metrics.jsonl"
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:3]))
    _, out, _ = luspo("inspect", str(run))
    assert "step 2, p2: 1 of 2 right" in out
    assert "p4" not in out
    assert "note: the metrics end at step 3; stored rollouts of step 4 are newer and not shown." in out
    only_newer = reports.write_run(tmp_path, "b", steps=1, rollouts={2: stored[2], 4: stored[4]})
    found = inspect_run(read_run(only_newer))
    assert found.groups == ()
    assert found.notes == ("the metrics end at step 1; stored rollouts of steps 2, 4 are newer and not shown.",)


def test_the_page_says_at_which_values_the_warnings_fire() -> None:
    page = " ".join((ROOT / PAGE).read_text(encoding="utf-8").split())
    assert f"below {COLLAPSE:g} times that of the first window" in page
    assert f"above {EXPLOSION:g} times" in page
    assert f"below {FALLEN:g} times the largest before it" in page
    assert f"by {LEAST_FALL:g} or more" in page
    assert f"`response/truncated_fraction` above {100 * TRUNCATED:.0f} %" in page
    assert f"more than {CLIPPED:.0%} of the ratios".replace("%", " %") in page
    assert f"at least {100 * LEAST_CLIPPED:.0f} % and {100 * ONE_SIDED:.0f} % of them or more" in page
    assert (MIXED, "`group/mixed_fraction` below a quarter" in page) == (0.25, True)
    assert (MISMATCH_GROWTH, "grew by half or more" in page) == (1.5, True)
    assert (LEAST_MISMATCH, "to 1e-3 nats or more" in page) == (1e-3, True)
    assert f"correlation above {MISMATCH_CORRELATION:g}" in page


def test_the_json_holds_the_same(luspo, tmp_path: Path) -> None:
    run = reports.write_run(tmp_path, "a", metrics={"response_length/mean": [40.0, 30.0, 20.0, 8.0]})
    status, out, _ = luspo("inspect", str(run), "--json")
    found = json.loads(out)
    assert status == 0
    assert [one["kind"] for one in found["findings"]] == ["collapse"]
    assert found["findings"][0]["page"] == "docs/collapse.md#1-clip-range"
    assert found["trends"][0] == {
        "name": "response_length/mean",
        "unit": "tokens",
        "start": 40.0,
        "middle": 30.0,
        "final": 8.0,
    }
    assert found["groups"] == []
