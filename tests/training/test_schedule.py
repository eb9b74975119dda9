"""The learning rate by hand."""

from __future__ import annotations

import pytest

from luspo_cli.config.update import UpdateConfig
from luspo_cli.training.optimizer import learning_rate


def rates(steps: int, **settings: object) -> list[float]:
    config = UpdateConfig.model_validate({"learning_rate": 1.0, **settings})
    return [learning_rate(step, steps, config) for step in range(steps)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1.0] * 6),
        ({"ramp_steps": 3}, [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ({"schedule": "linear"}, [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        ({"schedule": "linear", "ramp_steps": 2}, [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]),
        # 0.1 + 0.9 (1 + cos(pi d)) / 2 at d = 0, 1/6, ... 5/6
        ({"schedule": "cosine"}, [1.0, 0.9397114, 0.775, 0.55, 0.325, 0.1602886]),
        ({"schedule": "cosine", "ramp_steps": 3}, [1 / 3, 2 / 3, 1.0, 1.0, 0.775, 0.325]),
        ({"ramp_steps": 99}, [1 / 99, 2 / 99, 3 / 99, 4 / 99, 5 / 99, 6 / 99]),
    ],
)
def test_six_steps(settings: dict[str, object], expected: list[float]) -> None:
    assert rates(6, **settings) == pytest.approx(expected, abs=1e-6)


def test_the_scale_is_the_configured_rate() -> None:
    assert rates(4, learning_rate=3e-4, schedule="linear") == pytest.approx([3e-4, 2.25e-4, 1.5e-4, 0.75e-4])
