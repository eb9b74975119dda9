"""data.max_pixels and data.min_pixels: the same sizes in a prompt and in its length, and in the checkpoint's own processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from doubles.messages import heard
from doubles.vision import FAMILIES, IMAGE, noise_image, vision_model, vision_processor
from luspo_cli.config.data import DataConfig
from luspo_cli.config.model import ModelConfig
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import UsageError
from luspo_cli.policy.loading import LoadedModel, bound_pixels, load_model
from luspo_cli.records import Message, Problem

TOKEN = 28 * 28
"""Pixels of one image token: 2 x 2 patches of 14 x 14."""


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[Problem]:
    """Square, tall, wide, tiny and large."""
    folder = tmp_path_factory.mktemp("images")
    sizes = [(112, 112), (60, 500), (700, 56), (9, 9), (900, 640)]
    files = [noise_image(folder / f"{n}.png", width, height, n) for n, (width, height) in enumerate(sizes)]
    return [Problem(f"p{n}", (Message("user", "<image>?"),), "1", "t", (ImageFile(f),)) for n, f in enumerate(files)]


def saved(folder: Path, family: str = "qwen2_5_vl") -> ModelConfig:
    vision_processor(family=family).save_pretrained(folder)
    vision_model(family=family).save_pretrained(folder)
    return ModelConfig(path=str(folder))


def image_tokens(loaded: LoadedModel, problems: list[Problem]) -> list[int]:
    """Of each prompt; its length as foretold is its length."""
    prompts = [loaded.prompt(problem) for problem in problems]
    assert [loaded.prompt_length(problem) for problem in problems] == [len(prompt.tokens) for prompt in prompts]
    for prompt in prompts:
        assert prompt.image_inputs is not None
        assert 4 * prompt.tokens.count(IMAGE) == len(prompt.image_inputs["pixel_values"])
    return [prompt.tokens.count(IMAGE) for prompt in prompts]


@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold_in_prompt_and_length_and_after_saving(
    family: str, problems: list[Problem], tmp_path: Path
) -> None:
    config = saved(tmp_path / "model", family)
    own = image_tokens(load_model(config), problems)
    assert own[0] == 16  # 112 x 112 is 4 x 4 tokens, the processor's own largest
    assert min(own) >= 4
    bounds = DataConfig(max_pixels=9 * TOKEN, min_pixels=6 * TOKEN)
    loaded = load_model(config, data=bounds)
    found = image_tokens(loaded, problems)
    assert found[0] == 9
    assert all(6 <= number <= 9 for number in found[:1] + found[3:])
    assert found != own
    loaded.model.save_pretrained(tmp_path / "checkpoint")
    assert loaded.processor is not None
    loaded.processor.save_pretrained(tmp_path / "checkpoint")
    with heard() as said:
        again = load_model(ModelConfig(path=str(tmp_path / "checkpoint")))
    assert said == []
    assert image_tokens(again, problems) == found
    assert image_tokens(load_model(ModelConfig(path=str(tmp_path / "checkpoint")), data=bounds), problems) == found


def test_one_bound_leaves_the_other_as_the_model_has_it(problems: list[Problem], tmp_path: Path) -> None:
    config = saved(tmp_path)
    assert image_tokens(load_model(config, data=DataConfig(min_pixels=16 * TOKEN)), problems)[0] == 16
    assert image_tokens(load_model(config, data=DataConfig(max_pixels=4 * TOKEN)), problems)[0] == 4
    assert image_tokens(load_model(config, data=DataConfig(max_pixels=64 * TOKEN)), problems)[4] == 54  # 9 x 6 tokens


def test_bounds_without_a_size_between_them_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.min_pixels \(2000\) must not exceed data\.max_pixels \(1000\)"):
        DataConfig(max_pixels=1000, min_pixels=2000)
    processor: Any = vision_processor()
    with pytest.raises(UsageError, match=r"at most 1000 with data\.max_pixels = 1000: set data\.min_pixels too"):
        bound_pixels(processor, DataConfig(max_pixels=1000), "m")
    with pytest.raises(UsageError, match=r"at most 12544 with data\.min_pixels = 99999: set data\.max_pixels too"):
        bound_pixels(processor, DataConfig(min_pixels=99999), "m")
    with pytest.raises(UsageError, match=r"data\.max_pixels is for models that read images, and model 'm' reads text"):
        bound_pixels(None, DataConfig(max_pixels=1000), "m")
