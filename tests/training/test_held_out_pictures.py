"""How many pictures of a held-out slice are there at once: as many as the sampler has places for, however long the slice is."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pandas
import pytest

from doubles.vision import noise_image, vision_model, vision_processor
from luspo_cli.config.layers import resolve_train
from luspo_cli.policy import loading
from luspo_cli.processes.ranks import ALONE
from luspo_cli.records import Prompt
from luspo_cli.rewards.rubric import Rubric
from luspo_cli.runs.folder import RunFolder
from luspo_cli.training import stages
from luspo_cli.training.problems import problems_of, training_problems

NUMBER, PLACES = 40, 4


class Counted:
    """Makes prompts and knows how many of their tensors with pixels or features are there."""

    def __init__(self) -> None:
        self.there: list[weakref.ref[Any]] = []
        self.most = 0
        self.made: list[str] = []

    def note(self, prompt: Prompt) -> Prompt:
        assert prompt.image_inputs is not None
        for key in prompt.image_inputs.keys() & {"pixel_values", "image_features"}:
            self.there.append(weakref.ref(prompt.image_inputs[key]))
        self.most = max(self.most, sum(tensor() is not None for tensor in self.there))
        return prompt


@pytest.mark.parametrize("frozen", ["false", "true"])
def test_pictures_are_let_go_while_a_slice_is_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, frozen: str
) -> None:
    """Forty pictures in parts of sixteen, twice, through four places: never more than four, and the one being made."""
    vision_processor().save_pretrained(tmp_path / "model")
    vision_model().save_pretrained(tmp_path / "model")
    rows = [
        {
            "data_source": "test",
            "prompt": [{"role": "user", "content": f"<image>{n}="}],
            "images": [noise_image(tmp_path / f"{n}.png", 56 + n, 56, n).name],
            "reward_model": {"style": "rule", "ground_truth": "1"},
        }
        for n in range(NUMBER)
    ]
    for split, chosen in (("train", rows[:4]), ("test", rows)):
        pandas.DataFrame(chosen).to_parquet(tmp_path / f"{split}.parquet")
    config = resolve_train(
        preset="tiny",
        sets=[
            f"model.path={tmp_path / 'model'}", f"model.freeze_vision={frozen}", f"data.train={tmp_path}",
            f"data.held_out={tmp_path}", "rollout.problems=4", "rollout.group_size=2", f"rollout.max_rows={2 * PLACES}",
            "rollout.max_response_tokens=4", "rollout.sampler=in-process", "evaluation.samples=2", "evaluation.blind=other",
            f"evaluation.problems={NUMBER}", "run.threads=1",
        ],
    )  # fmt: skip
    counted = Counted()
    for name in ("prompt_inputs", "with_features"):
        make = getattr(loading, name)
        monkeypatch.setattr(loading, name, lambda *given, make=make: counted.note(make(*given)))
    loaded = loading.load_model(config.model, {}, config.data)
    with Rubric(config.reward, config.rollout.max_response_tokens) as rubric:
        built = stages.make_stages(
            config,
            loaded,
            problems_of(config, loaded, training_problems(config)),
            rubric,
            RunFolder(tmp_path / "run"),
            None,
            None,
            ALONE,
        )
        assert built.held_out is not None
        assert built.held_out.evaluate(built.sampler)[0]["evaluation/problems"] == NUMBER
    assert len(counted.there) == 2 * NUMBER * (2 if frozen == "true" else 1)
    assert counted.most <= PLACES + 1
