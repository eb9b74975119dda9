"""Dynamic sampling: which groups are mixed, how many are sampled further, what the update gets, and when a run gives up."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from doubles.messages import heard
from doubles.runs import problem, scored_group
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.rollout import RolloutConfig
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.records import Problem, Reward, ScoredGroup
from luspo_cli.training.dynamic_sampling import (
    SignalWatch,
    StepGroups,
    TruncationWatch,
    choose_batch,
    diagnosis,
    further_problems,
    is_mixed,
    sample_step,
)

MIXED, RIGHT, WRONG = (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)


class Source:
    """Batch "b0", "b1", ...; reserve "r0", "r1", ... of `size` problems."""

    def __init__(self, batch: int, reserve: int) -> None:
        self._batch, self._reserve = batch, reserve

    def batch(self, step: int) -> list[Problem]:
        return [problem(f"b{i}") for i in range(self._batch)]

    def reserve(self, step: int, first: int, count: int) -> list[Problem]:
        return [problem(f"r{i}") for i in range(self._reserve)][first : first + count]


def sampled(
    mixed: set[str], source: Source, *, dynamic: bool = True, rounds: int = 8
) -> tuple[StepGroups, list[list[str]]]:
    """The groups of a step in which exactly the problems in `mixed` are mixed, and the problems asked in each round."""
    asked: list[list[str]] = []

    def sample(problems: Sequence[Problem], number: int) -> list[ScoredGroup]:
        assert number == len(asked)
        asked.append([p.id for p in problems])
        return [scored_group(MIXED if p.id in mixed else WRONG, p.id) for p in problems]

    settings = RolloutConfig(dynamic_sampling=dynamic, **({"max_sampling_rounds": rounds} if dynamic else {}))
    return sample_step(source, 1, settings, sample), asked


def names(groups: Sequence[ScoredGroup]) -> list[str]:
    return [one.problem.id for one in groups]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((0.0, 0.0, 0.0), False),
        ((1.0, 1.0, 1.0), False),
        ((1.0, 1.0 + 1e-9, 1.0 - 1e-9), False),  # float noise
        ((-1e-9, 0.0, 1e-9), False),
        ((1.0, 0.0, 1.0), True),
    ],
)
def test_a_mixed_group_differs_by_more_than_float_noise(rewards: tuple[float, ...], expected: bool) -> None:
    assert is_mixed(scored_group(rewards)) is expected


def test_a_penalty_on_length_makes_no_group_mixed() -> None:
    scored = tuple(
        Reward(total, 0.0, 0.0, total, Verdict("0", False, Reason.DIFFERENT)) for total in (-0.1, -0.5, -1.0)
    )
    assert not is_mixed(replace(scored_group(WRONG), rewards=scored))


@pytest.mark.parametrize(
    ("groups_sampled", "mixed", "size", "expected"),
    [
        (8, 8, 8, 0),
        (20, 9, 8, 0),
        (8, 0, 8, 8),  # nothing known of the share
        (8, 4, 8, 8),  # 4 missing at a share of 1/2
        (8, 6, 8, 3),  # 2 missing at 3/4: 2.67
        (8, 7, 8, 2),  # 1 missing at 7/8: 1.14
        (16, 7, 8, 3),  # 1 missing at 7/16: 2.29
        (8, 1, 8, 8),  # 56 would be needed: one batch at most
    ],
)
def test_problems_of_the_next_round(groups_sampled: int, mixed: int, size: int, expected: int) -> None:
    assert further_problems(groups_sampled, mixed, size) == expected


def test_a_batch_of_mixed_groups_needs_one_round() -> None:
    result, asked = sampled({"b0", "b1", "b2"}, Source(3, 9))
    assert asked == [["b0", "b1", "b2"]]
    assert names(result.batch) == ["b0", "b1", "b2"]
    assert list(result.metrics().values()) == [3, 0, 0, 1]


def test_a_short_batch_is_refilled_from_the_reserve_in_order() -> None:
    # Round 1: 2 of 4, 4 further problems; round 2: none of r0..r3; round 3: 2 missing at 2/8: 8, cut to a batch of 4.
    result, asked = sampled({"b1", "b3", "r5", "r6", "r7"}, Source(4, 20))
    assert asked == [["b0", "b1", "b2", "b3"], ["r0", "r1", "r2", "r3"], ["r4", "r5", "r6", "r7"]]
    assert names(result.batch) == ["b1", "b3", "r5", "r6"]
    assert len(result.sampled) == 12
    assert result.metrics() == {"group/sampled": 12, "group/set_aside": 7, "group/surplus": 1, "group/rounds": 3}


def test_the_bound_on_rounds_holds_and_the_batch_is_filled_with_other_groups() -> None:
    result, asked = sampled({"b2", "r1"}, Source(4, 100), rounds=3)
    assert len(asked) == 3
    assert names(result.batch) == ["b0", "b1", "b2", "r1"]  # sampling order; the first two are not mixed
    assert result.metrics() == {"group/sampled": 12, "group/set_aside": 10, "group/surplus": 0, "group/rounds": 3}


def test_the_end_of_the_data_ends_the_step() -> None:
    result, asked = sampled(set(), Source(2, 3))
    assert asked == [["b0", "b1"], ["r0", "r1"], ["r2"]]
    assert names(result.batch) == ["b0", "b1"]


def test_without_dynamic_sampling_the_batch_is_what_was_sampled() -> None:
    result, asked = sampled({"b0"}, Source(3, 9), dynamic=False)
    assert asked == [["b0", "b1", "b2"]]
    assert result.batch == result.sampled


def test_equal_groups_are_told_apart_by_place() -> None:
    groups = [scored_group(RIGHT, "a"), scored_group(MIXED, "a"), scored_group(MIXED, "a"), scored_group(WRONG, "a")]
    assert [id(one) for one in choose_batch(groups, 2)] == [id(groups[1]), id(groups[2])]
    assert [id(one) for one in choose_batch(groups, 3)] == [id(groups[0]), id(groups[1]), id(groups[2])]


def record(step: int, mixed: int, sampled: int = 24, accuracy: float = 0.0, **more: Any) -> dict[str, Any]:
    return {
        "step": step, "group/sampled": sampled, "group/set_aside": sampled - mixed, "group/rounds": 8,
        "reward/accuracy/mean": accuracy, "response/truncated_fraction": 0.25, **more,
    }  # fmt: skip


def dynamic(*sets: str) -> TrainRun:
    return resolve_train(preset="tiny", sets=["rollout.dynamic_sampling=true", *sets])


def test_a_batch_that_stays_short_is_said_once() -> None:
    watch = SignalWatch(dynamic())
    with heard() as said:
        for one in (record(1, 16), record(2, 5), record(3, 4), record(4, 0)):
            watch(one)
    (text,) = said
    assert text.startswith(
        "warning: step 2: 5 of 16 groups are mixed (some responses right, some wrong) after 8 rounds (24 groups sampled)"
    )
    watch = SignalWatch(dynamic())
    with heard() as said:
        watch(record(1, 5, **{"group/rounds": 2}))
    assert "5 of 16 groups are mixed (some responses right, some wrong) after every problem of the data" in said[0]


def test_a_step_of_truncated_responses_only_is_said_once() -> None:
    watch = TruncationWatch()
    with heard() as said:
        for step, cut in ((1, 0.99), (2, 1.0), (3, 1.0)):
            watch({"step": step, "response/truncated_fraction": cut})
    (text,) = said
    assert text.startswith("warning: step 2: every response reached the limit, so none was finished")


def test_steps_in_a_row_without_a_mixed_group_end_the_run_also_across_a_resume() -> None:
    watch = SignalWatch(dynamic())
    for one in (record(1, 0), record(2, 0), record(3, 1), record(4, 0), record(5, 0)):
        watch(one)
    with pytest.raises(RunError, match="no group of 3 steps in a row was mixed"):
        watch(record(6, 0))
    resumed = SignalWatch(dynamic(), [record(3, 1), record(4, 0), record(5, 0)])
    with pytest.raises(RunError, match="no group of 3 steps in a row"):
        resumed(record(6, 0))
    patient = SignalWatch(dynamic("rollout.stop_after_steps_without_signal=4"))
    for step in range(1, 4):
        patient(record(step, 0))
    without = SignalWatch(resolve_train(preset="tiny"))
    for step in range(1, 9):
        without({"step": step})  # nothing is counted without dynamic sampling


def test_the_diagnosis_names_the_accuracy_and_what_to_change() -> None:
    assert diagnosis([record(1, 0, 10, 0.0), record(2, 0, 30, 0.0)]) == (
        "no group of 2 steps in a row was mixed (40 groups sampled, accuracy 0.000); no answer was right and 25% of the"
        " responses were cut: take easier problems or a stronger model, raise rollout.max_response_tokens where many are cut,"
        " and look at the responses in rollouts/"
    )
    assert diagnosis([record(1, 0, 10, 1.0)]).endswith("every answer was right: take harder problems")
    # 10 groups at 1 and 30 at 0: weighted by groups 0.25, not 0.5.
    mixture = diagnosis([record(1, 0, 10, 1.0), record(2, 0, 30, 0.0)])
    assert "accuracy 0.250" in mixture
    assert "raise rollout.group_size" in mixture


@pytest.mark.parametrize("key", ["max_sampling_rounds", "stop_after_steps_without_signal"])
def test_a_bound_without_dynamic_sampling_is_refused(key: str) -> None:
    with pytest.raises(UsageError, match=rf"rollout\.{key} needs rollout\.dynamic_sampling = true"):
        resolve_train(preset="tiny", sets=[f"rollout.{key}=5"])
    assert getattr(dynamic(f"rollout.{key}=5").rollout, key) == 5


def test_without_a_reward_for_right_answers_it_is_refused() -> None:
    with pytest.raises(UsageError, match=r"reward\.accuracy_weight is 0"):
        dynamic("reward.accuracy_weight=0")


def test_a_dry_run_counts_every_round() -> None:
    from luspo_cli.training.dry_run import make_plan

    without, most = make_plan(resolve_train(preset="tiny")).work, make_plan(dynamic()).work
    assert most["response_tokens_at_most"] == 8 * without["response_tokens_at_most"]


# Small groups and a mark for right that few responses meet: some groups are mixed, some not.
SCARCE = ("rollout.dynamic_sampling=true", "rollout.group_size=2", "reward.overlong_buffer=0", "evaluation.every=0")


@pytest.fixture
def right(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str, bool], bool]], None]:
    """Return a function that takes what (response, ended) is right: an untrained model gives no right answer of its own."""

    def choose(rule: Callable[[str, bool], bool]) -> None:
        def score(response: str, gold: str, *, ended: bool) -> Verdict:
            right = rule(response, ended)
            return Verdict("0", right, Reason.EXACT if right else Reason.DIFFERENT)

        monkeypatch.setattr("luspo_cli.rewards.rubric.score_exact", score)

    return choose


def train(config: TrainRun, path: Path, how: str = "refuse", crash_after: int = 0) -> list[str]:
    from accelerate.state import AcceleratorState

    from luspo_cli.training.session import run_training

    def on_step(metrics: dict[str, Any]) -> None:
        if metrics["step"] == crash_after:
            raise ZeroDivisionError

    AcceleratorState._reset_state()
    with heard() as said:
        run_training(config, path, how, on_step)  # type: ignore[arg-type]
    return said


def lines(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in one.items() if not key.startswith("time/")} for one in found]


def test_a_run_with_dynamic_sampling_counts_what_it_sampled_and_resumes_bit_for_bit(
    small_run: Callable[..., TrainRun], tmp_path: Path, right: Callable[..., None]
) -> None:
    import pandas as pd

    right(lambda response, ended: len(response) > 12)
    config = small_run(*SCARCE)
    train(config, tmp_path / "whole")
    records = lines(tmp_path / "whole")
    assert max(one["group/rounds"] for one in records) > 1  # otherwise this test would refill nothing
    for one in records:
        mixed = one["group/sampled"] - one["group/set_aside"]
        assert one["update/rows_trained"] == 2 * (mixed - one["group/surplus"])
        assert one["update/rows_trained"] + one["update/rows_skipped"] == 2 * config.rollout.problems
        assert mixed - one["group/surplus"] <= config.rollout.problems
    for step in (1, 2, 4):
        table = pd.read_parquet(tmp_path / "whole" / "rollouts" / f"step-{step:06d}.parquet")
        assert len(table) == 2 * records[step - 1]["group/sampled"]
        assert table.response_length.mean() == pytest.approx(records[step - 1]["response_length/mean"])
        assert (table.in_batch & (table.advantage != 0)).sum() == records[step - 1]["update/rows_trained"]
        assert table.in_batch.sum() == 2 * config.rollout.problems
        assert table.problem_id.nunique() == records[step - 1]["group/sampled"]  # no problem twice in a step
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "broken", crash_after=3)
    train(config, tmp_path / "broken", "resume")
    assert lines(tmp_path / "broken") == records
    for name in ("model/model.safetensors", "trainer/optimizer.safetensors"):
        one, other = (tmp_path / p / "checkpoints/step-000005" / name for p in ("whole", "broken"))
        assert one.read_bytes() == other.read_bytes()


def test_the_first_round_is_the_batch_of_a_run_without_dynamic_sampling(
    small_run: Callable[..., TrainRun], tmp_path: Path, right: Callable[..., None]
) -> None:
    import pandas as pd

    right(lambda response, ended: not ended)
    scarcer = (*SCARCE[1:], "run.steps=1")
    train(small_run(SCARCE[0], *scarcer), tmp_path / "with")
    train(small_run(*scarcer), tmp_path / "without")
    with_it, without = (pd.read_parquet(tmp_path / p / "rollouts/step-000001.parquet") for p in ("with", "without"))
    assert len(with_it) > len(without)
    columns = ["problem_id", "response_tokens", "rollout_logprobs", "reward"]
    pd.testing.assert_frame_equal(with_it[columns].head(len(without)), without[columns], check_exact=True)
    assert "group/sampled" not in lines(tmp_path / "without")[0]
    later = with_it.iloc[len(without) :]
    assert later.problem_id.str.contains("/reserve/").all()


def test_data_without_any_mixed_group_ends_the_run_in_one_sentence(
    small_run: Callable[..., TrainRun], tmp_path: Path, right: Callable[..., None]
) -> None:
    right(lambda response, ended: False)
    config = small_run(*SCARCE, "rollout.max_sampling_rounds=2")
    with pytest.raises(RunError, match="no group of 3 steps in a row was mixed"):
        train(config, tmp_path / "run")
    assert [one["group/sampled"] for one in lines(tmp_path / "run")] == [8, 8, 8]
