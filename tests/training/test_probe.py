"""`luspo train --probe`: what it says of given numbers; its responses are the first ones of the run; it writes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from doubles.runs import SMALL_RUN, records, train
from luspo_cli.app import app
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError
from luspo_cli.training.probed import Probe, findings, probe_size, quantile, step_time

FOUND = Probe(
    responses=32,
    groups=4,
    response_limit=512,
    lengths={"mean": 200.0, "p10": 50, "p25": 90, "p50": 180, "p75": 300, "p90": 480, "max": 500},
    cut=0,
    reward=0.25,
    accuracy=0.25,
    no_answer=0.1,
    signal=3,
    mixed=3,
    sampling_s=4.0,
    reward_s=0.5,
    update_s=2.0,
)


def configured(*sets: str) -> TrainRun:
    batch = ("rollout.problems=16", "rollout.group_size=8", "rollout.max_response_tokens=512", "rollout.max_rows=64")
    return resolve_train(preset="tiny", sets=[*batch, "run.steps=90", *sets])


def said(found: Probe, *sets: str) -> str:
    return " ".join(findings(found, configured(*sets)))


def test_the_time_of_a_step_by_hand() -> None:
    """128 responses are 4 probes: sampled in 2 waves of 64 or 4 times over; rewards and update 4 times."""
    times = step_time(FOUND, configured())
    assert (times.least, times.most) == (2 * 4.0 + 4 * 0.5 + 4 * 2.0, 4 * 4.0 + 4 * 0.5 + 4 * 2.0)
    # Three of four groups are mixed: 4/3 rounds, and then every group of the batch has an update.
    times = step_time(FOUND, configured("rollout.dynamic_sampling=true"))
    assert times.most == pytest.approx((16 + 2) * 4 / 3 + 8 * 4 / 3)
    none = step_time(replace(FOUND, signal=0, mixed=0, update_s=0.0), configured("rollout.dynamic_sampling=true"))
    assert none.most == pytest.approx((16 + 2) * 8)
    assert "A step of 128 responses takes about 18 to 26 s" in said(FOUND)
    assert "90 steps: 27 to 39 minutes" in said(FOUND)


def test_what_the_numbers_imply() -> None:
    assert "No response would be cut: the longest has 500" in said(FOUND)
    assert "room to spare" not in said(FOUND)
    assert "room to spare: 200 would do" in said(replace(FOUND, lengths={**FOUND.lengths, "max": 100}))
    cut = said(replace(FOUND, cut=13))
    assert "41% would be cut (13 of 32; 95 %: 26% to 58%): raise rollout.max_response_tokens (512)." in cut
    assert "is paid as a wrong one" in cut
    assert "left out of the update" in said(replace(FOUND, cut=13), "reward.truncated=mask")
    assert "is paid -0.5" in said(replace(FOUND, cut=13), "reward.truncated=penalise", "reward.truncated_reward=-0.5")
    assert "3% would be cut" in said(replace(FOUND, cut=1))
    assert "not known before that" in said(replace(FOUND, cut=32))


def test_a_step_that_has_fewer_responses_is_named() -> None:
    small = said(FOUND, "rollout.problems=4", "rollout.group_size=4")
    assert small.startswith(
        "16 responses and not 32: a step of the run draws no more (rollout.problems = 4, rollout.group_size = 4)."
    )
    assert "and not 32" not in said(FOUND, "rollout.problems=4", "rollout.group_size=8")
    assert "and not 32" not in said(FOUND, "rollout.problems=4", "rollout.group_size=30")  # one whole group


def test_what_rewards_and_groups_imply() -> None:
    assert "Mean reward 0.250, 25% right." in said(FOUND)
    assert "No response is right" in said(replace(FOUND, accuracy=0.0))
    assert "Every response is right" in said(replace(FOUND, accuracy=1.0))
    assert "In 75% no final answer is found" in said(replace(FOUND, no_answer=0.75, accuracy=0.0))
    assert "3 of 4 groups have a learning signal: of the 16 groups of a step about 12 would move the weights." in said(
        FOUND
    )
    few = replace(FOUND, signal=1, mixed=1)
    assert "for about 4.0 times the sampling" in said(few)
    assert "dynamic_sampling" not in said(few, "rollout.dynamic_sampling=true")
    nothing = said(replace(FOUND, signal=0, mixed=0, update_s=0.0))
    assert "0 of 4 groups have a learning signal" in nothing
    assert "the update not counted" in nothing


def test_sizes() -> None:
    assert probe_size(configured()) == 4
    assert probe_size(configured("rollout.group_size=64")) == 1
    assert probe_size(configured("rollout.problems=4", "rollout.group_size=2")) == 4
    assert [quantile([1, 2, 3, 4], percent) for percent in (10, 25, 50, 75, 90)] == [1, 1, 2, 3, 4]


invoke = partial(CliRunner().invoke, app)


def test_the_responses_are_the_first_ones_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Same draws and rewards as step 1 stores; nothing is written."""
    monkeypatch.chdir(tmp_path)
    sets = (*SMALL_RUN, *OF_ALL)
    words = ["train", "--preset", "tiny", *(word for one in sets for word in ("--set", one)), "--probe"]
    done = invoke([*words, "--json"])
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    assert not list(tmp_path.iterdir())
    train(resolve_train(preset="tiny", sets=sets), tmp_path / "run")
    (first,) = records(tmp_path / "run")
    # The batch is as large as the probe, so all of step 1 was probed.
    assert answer["lengths"]["mean"] == first["response_length/mean"]
    assert answer["lengths"]["max"] == first["response_length/max"]
    assert answer["cut_share"] == first["response/truncated_fraction"]
    assert answer["reward"] == first["reward/total/mean"]
    assert answer["mixed_share"] == first["group/mixed_fraction"]
    assert answer["update_s"] > 0
    # A folder that is there does not keep anybody from asking, unless it is named: then it is refused as for a training.
    assert "exists" in str(invoke([*words, "--run", "run"]).exception)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


OF_ALL = ("run.steps=1", "rollout.problems=4", "rollout.group_size=8", "update.mini_batches=2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "--run", "x"], "leave out --resume"),
        (["--dry-run"], "leave out --dry-run"),
        (["--processes", "2"], "leave out --processes"),
        (["--engine", "verl"], "leave out --engine verl"),
        (["--set", "rollout.problem=3"], "unknown key 'rollout.problem'"),
        (["--set", "data.train=nowhere.jsonl"], "data.train = '"),
    ],
)
def test_bad_requests_are_refused(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = invoke(["train", "--preset", "tiny", "--probe", *words]).exception
    assert isinstance(error, UsageError)
    assert message in str(error)
    assert not list(tmp_path.iterdir())
