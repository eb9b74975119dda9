"""`luspo eval` of a run reads images within the bounds that the run was trained with, and says them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas
import pytest

from doubles.pictures import pictures_folder
from doubles.vision import noise_image, vision_model, vision_processor
from luspo_cli.records import Prompt
from luspo_cli.rollout.in_process.sampler import InProcessSampler

TOKEN = 28 * 28
"""Pixels of one image token. The model's own bounds are 4 and 16 tokens, and pictures here have 56 to 66 pixels a side."""
RL = (
    "data.max_prompt_tokens=100", "rollout.problems=2", "rollout.group_size=2", "rollout.max_response_tokens=4",
    "rollout.max_rows=4", "update.mini_batches=1", "update.tokens_per_micro_batch=128", "evaluation.every=1",
    "evaluation.problems=2", "evaluation.samples=1", "run.steps=1",
)  # fmt: skip


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Image tokens of every prompt that a sampler was asked for; a token is made of four patches."""
    found: list[int] = []
    draw = InProcessSampler.sample_groups

    def listening(self: Any, prompts: Sequence[Prompt], *rest: Any, **options: Any) -> Any:
        found.extend(
            int(prompt.image_inputs["image_grid_thw"].prod()) // 4 for prompt in prompts if prompt.image_inputs
        )
        return draw(self, prompts, *rest, **options)

    monkeypatch.setattr(InProcessSampler, "sample_groups", listening)
    return found


@pytest.mark.parametrize(
    ("bounds", "says", "tokens"),
    [
        ((), "images are resized to 3,136 to 12,544 pixels", 4),
        ((f"data.min_pixels={9 * TOKEN}",), "images are resized to 7,056 to 12,544 pixels", 9),
        ((f"data.min_pixels={TOKEN}", f"data.max_pixels={TOKEN}"), "images are resized to 784 to 784 pixels", 1),
        ((f"data.min_pixels={9 * TOKEN}", "model.lora.rank=2"), "images are resized to 7,056 to 12,544 pixels", 9),
    ],
    ids=["own", "min", "both", "adapter"],
)
def test_a_run_is_evaluated_within_its_own_bounds(
    luspo: Callable[..., tuple[int, str, str]],
    shown: list[int],
    tmp_path: Path,
    bounds: tuple[str, ...],
    says: str,
    tokens: int,
) -> None:
    if "model.lora.rank=2" in bounds:
        pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    vision_processor().save_pretrained(tmp_path / "model")
    vision_model().save_pretrained(tmp_path / "model")
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {
            "data_source": "test",
            "prompt": [{"role": "user", "content": f"<image>{n}?"}],
            "images": [noise_image(data / f"{n}.png", 60, 60, n).name],
            "reward_model": {"style": "rule", "ground_truth": "1"},
        }
        for n in range(4)
    ]
    pandas.DataFrame(rows[:2]).to_parquet(data / "train.parquet")
    pandas.DataFrame(rows[2:]).to_parquet(data / "test.parquet")
    sets = ("model.path=model", "data.train=data", "data.held_out=data", *RL, *bounds)
    words = [word for setting in sets for word in ("--set", setting)]
    code, _, said = luspo("train", "--preset", "tiny", "--objective", "grpo", "--run", "run", *words)
    assert code == 0, said
    assert set(shown) == {tokens}  # training and held-out
    shown.clear()
    pictures_folder(tmp_path / "mathvista", 4)
    code, out, said = luspo("eval", "run", "--benchmark", "mathvista", "--data", "mathvista", "--limit", "4", "--json")
    assert code == 0, said
    assert shown == [tokens] * 4
    assert says in said
    (found,) = json.loads(out)["results"]
    # The sizes of the table are those of the files, whatever the model makes of them.
    assert next(iter(found["metrics"]["image_size"])) == "up to 3,136 pixels"
