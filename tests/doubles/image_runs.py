"""Runs of seconds on problems with images: a small vision model, its data and the settings on top of the preset `tiny`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from doubles.vision import noise_image, vision_model, vision_processor
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun


def image_run_folder(
    folder: Path, problems: int = 6, bare: tuple[int, ...] = (2,), family: str = "qwen2_5_vl", **options: Any
) -> Path:
    """Write `model` and `data` (training and 4 held-out problems, all with an image but the `bare`); returns the folder.

    `options` are those of `vision_model`.
    """
    import pandas

    vision_processor(family=family).save_pretrained(folder / "model")
    vision_model(family=family, **options).save_pretrained(folder / "model")
    (folder / "data").mkdir()
    rows = []
    for n in range(problems):
        names = [] if n in bare else [noise_image(folder / f"data/{n}.png", 60 + 20 * n, 60, n).name]
        rows.append(
            {
                "data_source": "test",
                "prompt": [{"role": "user", "content": "<image>" * len(names) + f"{n}+1="}],
                "images": names,
                "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
            }
        )
    pandas.DataFrame(rows).to_parquet(folder / "data/train.parquet")
    pandas.DataFrame(rows[:4]).to_parquet(folder / "data/test.parquet")
    return folder


def image_run(folder: Path, *sets: str, objective: str = "grpo") -> TrainRun:
    """Two steps on the data in `folder`; the overlong penalty gives the groups a signal."""
    return resolve_train(
        preset="tiny",
        objective=objective,
        sets=[
            f"model.path={folder / 'model'}", f"data.train={folder / 'data'}", f"data.held_out={folder / 'data'}",
            "data.max_prompt_tokens=100", "rollout.problems=4", "rollout.group_size=4",
            "rollout.max_response_tokens=8", "rollout.max_rows=8", "reward.overlong_buffer=6",
            "update.mini_batches=2", "update.learning_rate=1e-3", "update.tokens_per_micro_batch=128",
            "update.noise_floor_every=1", "evaluation.every=2", "evaluation.problems=4", "evaluation.samples=1",
            "run.steps=2", "run.checkpoint_every=1", "run.threads=1", "run.rollouts_every=1", *sets,
        ],
    )  # fmt: skip
