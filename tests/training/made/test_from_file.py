"""A made vision model on problems from a file: warmed up on the file's own answers, then trained and checked as any other."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from doubles.runs import SMALL_VISION_RUN, records, train
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.data import problems
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError
from luspo_cli.training.made.from_file import CHARACTERS, task_of_file
from luspo_cli.training.made.model import made_model

COLOURS = ("red", "green", "blue", "teal", "black", "gray")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six training problems and four held-out ones, each with a picture of one colour."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split, number in (("train", 6), ("test", 4)):
        rows = []
        for n in range(number):
            Image.new("RGB", (64, 64), COLOURS[n]).save(folder / f"{split}{n}.png")
            rows.append(row(COLOURS[n], f"{split}{n}.png"))
        pandas.DataFrame(rows).to_parquet(folder / f"{split}.parquet")
    return folder


def row(answer: str, image: str, question: str = "what color is this?") -> dict[str, Any]:
    return {
        "data_source": "test",
        "prompt": [{"role": "user", "content": f"<image>{question}"}],
        "images": [image],
        "reward_model": {"style": "rule", "ground_truth": answer},
        "extra_info": {"category": "colour"},
    }


def small_run(folder: Path, *sets: str) -> TrainRun:
    data = (f"data.train={folder}", f"data.held_out={folder}")
    return resolve_train(
        preset="easy-vqa", objective="gspo", sets=[*SMALL_VISION_RUN, "update.ramp_steps=0", *data, *sets]
    )


def test_a_run_is_warmed_up_on_the_answers_of_its_file(folder: Path, made_cache: Path, tmp_path: Path) -> None:
    config = small_run(folder)
    train(config, tmp_path / "run")
    (first, *_, last) = records(tmp_path / "run")
    assert (first["step"], last["step"]) == (1, 2)
    assert "evaluation/blind_accuracy" in last
    model = made_model(config, load_problems(folder))
    assert json.loads((model / "warmup.json").read_text())["made_from"]["task"] == "file"
    # Other problems make another model.
    pandas.DataFrame([row("red", "train0.png")] * 6).to_parquet(folder / "train.parquet")
    assert made_model(small_run(folder), load_problems(folder)) != model


def test_making_a_model_reads_the_file_once(
    folder: Path, made_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, rows = [], problems._rows
    monkeypatch.setattr(problems, "_rows", lambda file: read.append(file.name) or rows(file))
    train(small_run(folder, "run.steps=1"), tmp_path / "run")
    assert sorted(read) == ["test.parquet", "train.parquet"]


def test_demonstrations_end_with_the_gold_answer(folder: Path) -> None:
    task, generator = task_of_file(load_problems(folder), str(folder)), random.Random(0)
    for _ in range(20):
        problem = task.problem("neutral", generator, "", 1.0)
        text = task.demonstration(problem, "neutral", generator, 0.0)
        assert text == "." * (len(text) - len(problem.answer) - 1) + f"#{problem.answer}"
        assert set(text) <= set(CHARACTERS)


def test_characters_that_a_made_model_does_not_know(folder: Path) -> None:
    pandas.DataFrame([row("red", "train0.png", "What?")]).to_parquet(folder / "train.parquet")
    with pytest.raises(UsageError, match=r"has the character 'W', which a made model does not know"):
        task_of_file(load_problems(folder), str(folder))
    templated = row("red", "train0.png", "what?")
    templated["prompt"] = [{"role": "system", "content": "reason, please"}, *templated["prompt"]]
    pandas.DataFrame([templated]).to_parquet(folder / "train.parquet")
    with pytest.raises(UsageError, match=r"character ',', .* in its system turn: .*--prompt plain.*lower case"):
        task_of_file(load_problems(folder), str(folder))


def test_settings_that_do_not_fit(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"knows only data\.train = 'made:terms', or with model\.shape\.vision"):
        resolve_train(preset="tiny", objective="gspo", sets=[f"data.train={folder}"])
    with pytest.raises(UsageError, match=r"set reward\.verifier = 'exact'"):
        small_run(folder, "reward.verifier=math")
