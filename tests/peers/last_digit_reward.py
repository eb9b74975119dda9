"""The reward function of `run_verl_on_cpu.py`: our grading of the last digit that a response has, as its answer.

The model is random and boxes nothing; of its digits one in ten is right, which gives the groups a signal.
"""

from __future__ import annotations

from typing import Any

from luspo_cli.verl_plugin import reward


def compute_score(data_source: str, solution_str: str, ground_truth: str, extra_info: Any = None) -> dict[str, Any]:
    digits = [letter for letter in solution_str if letter in "0123456789"]
    boxed = f"\\boxed{{{digits[-1]}}}" if digits else ""
    return reward.compute_score(data_source, boxed, ground_truth, extra_info)
