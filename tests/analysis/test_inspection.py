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
    LEAST_CLIPPED,
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


def findings(write_run, lengths=(20.0, 20.0), **changes) -> list[Finding]:
    columns = {name: values for name, values in (HEALTHY | changes).items() if values is not None}
    columns = {name.replace("/", "__"): values for name, values in columns.items()}
    return list(inspect_run(read_run(write_run("run", lengths=list(lengths), **columns))).findings)


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
    (grown,) = findings(lambda name, **more: write_run("other", **more), lengths=[20.0, 80.0])
    assert "objective.clip_high" in grown.try_next[1]


def test_links_lead_to_headings(write_run) -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-")
        for line in text.splitlines()
        if line[:1] == "#"
    }
    source = (ROOT / "luspo_cli/analysis/inspection.py").read_text(encoding="utf-8")
    linked = re.findall(r"\{PAGE\}#([\w-]+)", source)
    assert len(linked) == 6
    assert set(linked) <= headings


def test_what_is_not_recorded_is_not_checked(write_run) -> None:
    found = inspect_run(read_run(write_run("run", lengths=[20.0, 20.0])))
    assert found.findings == ()
    assert [one.split(":")[0] for one in found.not_checked] == [
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
