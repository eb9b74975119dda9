"""verl's log in our words, on a log that verl's own classes wrote (tests/fixtures/verl/make_log.py; the batches are made up)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.metrics.names import METRICS
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.training.verl.dumped import DumpedRollouts
from luspo_cli.training.verl.translation import SUPPLIED, Before, Translator

ROOT = Path(__file__).resolve().parents[3]
LOG = ROOT / "tests" / "fixtures" / "verl" / "log.jsonl"
SOURCES = {"gsm8k": 3, "math": 1}


def config(*sets: str) -> TrainRun:
    small = ["rollout.problems=2", "rollout.group_size=2", "rollout.max_response_tokens=8", "update.mini_batches=1"]
    plain = ["reward.overlong_buffer=0", "run.engine=verl"]
    return resolve_train(preset="qwen2.5-7b", sets=[*small, *plain, *sets])


def rows() -> list[tuple[int, dict[str, Any]]]:
    lines = [json.loads(line) for line in LOG.read_text().splitlines()]
    return [(line["step"], line["data"]) for line in lines]


def records(run: TrainRun) -> list[dict[str, Any]]:
    translator, before, found = Translator(run, SOURCES), Before(), []
    for step, row in rows():
        if translator.is_step(row):
            record, before = translator.record(step, row, before)
            found.append(record)
    return found


def test_every_number_is_ours_or_absent() -> None:
    assert SUPPLIED.keys() <= METRICS.keys()
    for record in records(config()):
        assert record.keys() <= METRICS.keys()
        assert record.keys() - {"step"} <= SUPPLIED.keys()
        assert None not in record.values()


def test_lengths_and_tokens() -> None:
    first, second, third = records(config())
    assert [one["response_length/mean"] for one in (first, second, third)] == [6.0, 4.75, 5.0]
    assert [one["tokens/total"] for one in (first, second, third)] == [24, 43, 63]
    assert first["response/truncated_fraction"] == 0.5
    # verl says 1/4 and 2/4: the share of responses as long as the longest, and none of them reached 8 tokens.
    assert second["response/truncated_fraction"] == third["response/truncated_fraction"] == 0.0
    assert "response_length/p50" not in first


def test_the_learning_rate_is_that_of_the_step() -> None:
    first, second, third = records(config())
    assert "update/learning_rate" not in first
    assert (second["update/learning_rate"], third["update/learning_rate"]) == (1e-6, 2e-6)


def test_a_checkpoint_is_no_part_of_a_step_and_an_evaluation_is() -> None:
    first, second, _ = records(config())
    assert (first["time/total"], second["time/total"]) == (5.0, 7.0)
    assert "time/evaluation" not in first
    assert second["time/evaluation"] == 3.0


@pytest.mark.parametrize(
    ("objective", "entropy"),
    [("luspo", 1.0), ("dapo", 6.0), ("dr_grpo", 8.0), ("gspo", None), ("grpo", None)],
)
def test_entropy_is_a_mean_over_tokens_or_absent(objective: str, entropy: float | None) -> None:
    """verl's 6.0 with a mean length of 6: a sum over a response's 6 tokens; over the limit of 8 with Dr. GRPO's norm."""
    small = config().model_dump() | {"objective": {"name": objective}}
    assert records(TrainRun.model_validate(small))[0].get("policy/entropy") == entropy


def test_accuracy_over_sources_is_weighted_by_their_problems() -> None:
    translator = Translator(config(), SOURCES)
    step, row = rows()[0]
    assert step == 0
    assert not translator.is_step(row)
    assert translator.evaluation(row) == {"evaluation/accuracy": (3 * 0.25 + 0.5) / 4, "evaluation/problems": 4}
    assert records(config())[1]["evaluation/accuracy"] == (3 * 0.5 + 1.0) / 4
    assert Translator(config(), {"gsm8k": 3}).evaluation(row) == {}  # another set of problems than verl evaluated


def test_accuracy_is_read_from_the_reward_only_where_it_is_its_only_term() -> None:
    assert records(config())[0]["reward/accuracy/mean"] == 0.25
    assert records(config("reward.accuracy_weight=0.5"))[0]["reward/accuracy/mean"] == 0.5
    assert "reward/accuracy/mean" not in records(config("reward.overlong_buffer=4"))[0]
    both = config("reward.function=own.py:paid", "reward.accuracy_weight=1.0")
    assert "reward/accuracy/mean" not in records(both)[0]


def test_the_rest_is_as_it_is() -> None:
    first = records(config())[0]
    assert (first["objective/loss"], first["update/grad_norm"], first["time/rollout"]) == (-0.125, 0.5, 2.0)
    assert (first["objective/clip_low_fraction"], first["policy/kl_old"]) == (0.25, 0.01)
    assert "objective/policy_term" not in first
    assert records(config("objective.kl_coefficient=0.1"))[0]["objective/policy_term"] == -0.125


def test_a_real_log_and_its_dumped_rollouts() -> None:
    """What verl's whole trainer wrote without a GPU: 4 problems with 8 responses of at most 64 tokens a step."""
    folder = ROOT / "tests" / "fixtures" / "verl_run"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    run = config("rollout.problems=4", "rollout.group_size=8", "rollout.max_response_tokens=64")
    translator, before, tokens = Translator(run, {}), Before(), 0
    with Rubric(run.reward, 64) as rubric:
        dumped = DumpedRollouts(run, folder / "rollouts", [], rubric, thought_open=False)
        for step, line in enumerate(lines, start=1):
            row, rows_of_step = line["data"], dumped.rows(step)
            assert line["step"] == step
            assert rows_of_step is not None
            groups = dumped.groups(rows_of_step)
            assert [len(group.rollouts) for group, _ in groups] == [8] * 4
            assert all(abs(sum(group.advantages)) < 1e-9 for group, _ in groups)
            scores = [row["score"] for _, own in groups for row in own]
            record, before = translator.record(step, row, before, dumped.metrics(groups))
            assert record["reward/total/mean"] == pytest.approx(sum(scores) / 32)
            tokens += round(32 * row["response_length/mean"])
            assert record["tokens/total"] == tokens
            # A model of bytes, nearly uniform over its 260 tokens or fewer: between 3 and log 260 nats a token, not a sequence.
            assert 3 < record["policy/entropy"] < math.log(260)
            assert record["objective/clip_low_fraction"] == row["actor/objective/clip_low_fraction"]
            assert record["time/total"] >= record["time/rollout"] + record["time/update"]
    assert dumped.rows(len(lines) + 1) is None


def test_the_page_shows_every_number() -> None:
    page = (ROOT / "docs" / "verl.md").read_text()
    for ours, (theirs, conversion) in SUPPLIED.items():
        key = f"`{theirs}`" if "/" in theirs else theirs
        assert f"| `{ours}` | {METRICS[ours].unit} | {key} | {conversion} |" in page, ours
