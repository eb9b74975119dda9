"""The held-out check: numbers by hand, published interval values, and failures that are shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.reward import RewardConfig
from luspo_cli.metrics.intervals import accuracy_interval
from luspo_cli.metrics.names import METRICS
from luspo_cli.records import Message, Problem, Prompt, Rollout, StopReason
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.runs.folder import RunFolder
from luspo_cli.runs.rollouts import HeldOutAnswer
from luspo_cli.training.held_out import HeldOut


class Scripted:
    """A sampler that answers from a table and remembers what it was asked."""

    def __init__(self, responses: dict[str, list[tuple[str, StopReason]]]) -> None:
        self.responses, self.asked = responses, []  # type: ignore[var-annotated]

    def sample_groups(self, prompts: Sequence[Prompt], options: SamplingOptions, on_progress: Any = None) -> Any:
        self.asked.append(options)
        return [[self._rollout(prompt, *answer) for answer in self.responses[prompt.problem_id]] for prompt in prompts]

    def _rollout(self, prompt: Prompt, text: str, reason: StopReason) -> Rollout:
        return Rollout(prompt.problem_id, prompt.tokens, tuple(range(len(text) + 1)), text, reason)

    def load_weights(self, policy: Any) -> None: ...


def test_accuracy_length_and_truncation_by_hand() -> None:
    end, cut = StopReason.END, StopReason.LENGTH
    sampler = Scripted(
        {
            "a": [("#5", end), ("..#5", end)],  # both right
            "b": [("#5", end), ("....#6", end)],  # one right
            "c": [("#6", cut), ("......", cut)],  # right but without its end, and no answer
        }
    )
    problems = [
        Problem(name, (Message("user", "x"),), gold, "t") for name, gold in (("a", "5"), ("b", "6"), ("c", "6"))
    ]
    options = SamplingOptions(2, 8, seed=4)
    with Rubric(RewardConfig(verifier="exact"), 8) as rubric:
        held_out = HeldOut(problems, lambda p: Prompt(p.id, (1,)), options, rubric)
        result, answers = held_out.evaluate(sampler)  # type: ignore[arg-type]
        assert held_out.evaluate(sampler) == (result, answers)  # type: ignore[arg-type]
    assert sampler.asked == [options, options]  # the same draws each time
    assert result["evaluation/accuracy"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert result["evaluation/response_length/mean"] == pytest.approx((3 + 5 + 3 + 7 + 3 + 7) / 6)
    assert result["evaluation/truncated_fraction"] == pytest.approx(2 / 6)
    assert result["evaluation/problems"] == 3
    # Votes: 5 twice; 5 and 6 once each, of which 5 came first and is wrong; 6 once and wrong without its end.
    assert result["evaluation/majority_accuracy"] == pytest.approx(1 / 3)
    assert answers == [
        HeldOutAnswer("a", 0, "5", "correct", 3, "end"),
        HeldOutAnswer("a", 1, "5", "correct", 5, "end"),
        HeldOutAnswer("b", 0, "5", "incorrect", 3, "end"),
        HeldOutAnswer("b", 1, "6", "correct", 7, "end"),
        HeldOutAnswer("c", 0, None, "no_answer", 3, "length"),
        HeldOutAnswer("c", 1, None, "no_answer", 7, "length"),
    ]
    assert result["evaluation/failed_verifications"] == 0
    assert result["evaluation/no_answer_fraction"] == pytest.approx(2 / 6)  # both of c


def test_the_blind_control_is_measured_beside_it_with_the_same_draws() -> None:
    """Three of four right with their images, one of four without: Wilson's 0.3006 to 0.9544 and 0.0456 to 0.6994."""
    problems = [Problem(f"p{n}", (Message("user", "x"),), "5", "t") for n in range(4)]
    blind = [replace(problem, id=f"blind {problem.id}") for problem in problems]
    answers = ["#5", "#5", "#5", "#6", "#6", "#5", "#6", "#6"]
    sampler = Scripted(
        {p.id: [(answer, StopReason.END)] for p, answer in zip([*problems, *blind], answers, strict=True)}
    )
    options = SamplingOptions(1, 8, seed=4)
    with Rubric(RewardConfig(verifier="exact"), 8) as rubric:
        result, _ = HeldOut(problems, lambda p: Prompt(p.id, (1,)), options, rubric, blind).evaluate(sampler)  # type: ignore[arg-type]
        seeing, _ = HeldOut(problems, lambda p: Prompt(p.id, (1,)), options, rubric).evaluate(sampler)  # type: ignore[arg-type]
    assert sampler.asked == [options] * 3
    added = {key: result[key] for key in result.keys() - seeing.keys()}
    assert {key: value for key, value in result.items() if key not in added} == seeing
    assert added == {
        "evaluation/blind_accuracy": 0.25,
        "evaluation/blind_accuracy_low": pytest.approx(0.0456, abs=1e-4),
        "evaluation/blind_accuracy_high": pytest.approx(0.6994, abs=1e-4),
    }
    assert "evaluation/blind_accuracy" in METRICS


def test_a_slice_in_parts_gives_the_same_numbers_and_draws() -> None:
    """Five problems, whose numbers depend on the draws, at once, one by one, and in parts of two and three."""
    from luspo_cli.rollout.in_process.sampler import uniform_numbers

    class Drawn(Scripted):
        def sample_groups(self, prompts: Sequence[Prompt], options: SamplingOptions, on_progress: Any = None) -> Any:
            self.asked.append((len(prompts), options.first_row))
            rows = uniform_numbers(options, len(prompts) * options.group_size)[:, 0].tolist()
            texts = ["#5" if number < 0.4 else "#" + "." * int(9 * number) for number in rows]
            size = options.group_size
            return [
                [self._rollout(prompt, text, StopReason.END) for text in texts[i * size : (i + 1) * size]]
                for i, prompt in enumerate(prompts)
            ]

    problems = [Problem(f"p{n}", (Message("user", "x"),), "5", "t") for n in range(5)]
    results, made = [], []
    with Rubric(RewardConfig(verifier="exact"), 8) as rubric:
        for rows, parts in ((1024, [(5, 0)]), (1, [(1, n) for n in range(0, 15, 3)]), (8, [(2, 0), (2, 6), (1, 12)])):
            sampler = Drawn({})
            made.clear()
            held_out = HeldOut(
                problems,
                lambda p: made.append(p.id) or Prompt(p.id, (1,)),
                SamplingOptions(3, 8, seed=2),
                rubric,
                rows=rows,
            )
            results.append(held_out.evaluate(sampler)[0])  # type: ignore[arg-type]
            assert sampler.asked == parts
            assert made == [p.id for p in problems]  # each prompt once
    assert results[0] == results[1] == results[2]
    assert 0 < results[0]["evaluation/accuracy"] < 1


@pytest.mark.parametrize(
    ("right", "number", "low", "high"),
    [
        (15, 148, 0.0624, 0.1605),  # Newcombe 1998, table I: score method, 15 of 148 is 0.0624 to 0.1605
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, example 81 of 263
        (0, 20, 0.0, 0.1611),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_one_sample_a_problem_has_wilsons_interval(right: int, number: int, low: float, high: float) -> None:
    found = accuracy_interval([1.0] * right + [0.0] * (number - right), samples=1)
    assert found == pytest.approx((low, high), abs=1e-4)


def test_several_samples_have_the_interval_of_problem_means() -> None:
    """Means 0.2, 0.4, 0.6: standard deviation 0.2, half width 1.96 * 0.2 / sqrt(3)."""
    assert accuracy_interval([0.2, 0.4, 0.6], samples=5) == pytest.approx((0.4 - 0.22632, 0.4 + 0.22632), abs=1e-4)
    assert accuracy_interval([0.0, 0.0, 1.0], samples=5)[0] == 0.0  # stays within 0 and 1
    low, high = accuracy_interval([0.5], samples=8)  # one problem has no spread to go by
    assert low < 0.5 < high


def test_evaluations_are_recorded_once_and_read_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.evaluated_steps() == set()
    folder.append_evaluation(0, {"evaluation/accuracy": 0.25})
    folder.append_evaluation(20, {"evaluation/accuracy": 0.5})
    assert folder.evaluated_steps() == {0, 20}
    lines = (tmp_path / "evals/held-out.jsonl").read_text().splitlines()
    assert [json.loads(line)["evaluation/accuracy"] for line in lines] == [0.25, 0.5]
