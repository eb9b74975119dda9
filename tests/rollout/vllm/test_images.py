"""A prompt's images on their way to vLLM, without vLLM."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from doubles.vision import IMAGE, noise_image, vision_processor
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import RunError
from luspo_cli.policy.inputs import prompt_inputs
from luspo_cli.records import Message, Problem, Prompt
from luspo_cli.rollout.vllm.images import _packed, prompt_images, server_features


@pytest.fixture(scope="module")
def prompt(tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    folder = tmp_path_factory.mktemp("images")
    files = [noise_image(folder / f"{i}.png", *size, seed=i) for i, size in enumerate([(60, 90), (200, 120)])]
    problem = Problem("p", (Message("user", "A<image>B<image>?"),), "", "", tuple(ImageFile(file) for file in files))
    return prompt_inputs(problem, vision_processor().tokenizer, vision_processor())


def test_each_image_has_its_own_tokens_and_pixels(prompt: Prompt) -> None:
    assert prompt.image_inputs is not None
    images = prompt_images(prompt, "1")
    assert [list(image.grid) for image in images] == prompt.image_inputs["image_grid_thw"].tolist()
    for image in images:
        assert image.length == int(image.grid.prod()) // 4
        place = slice(image.offset, image.offset + image.length)
        assert prompt.tokens[place] == (IMAGE,) * image.length
        assert IMAGE not in (prompt.tokens[place.start - 1], prompt.tokens[place.stop])
    assert sum(image.length for image in images) == prompt.tokens.count(IMAGE)
    joined = torch.cat([image.values for image in images])
    assert torch.equal(joined, prompt.image_inputs["pixel_values"])
    assert prompt_images(replace(prompt, image_inputs=None), "1") == []


def test_a_name_is_of_pixels_grid_and_weights(prompt: Prompt) -> None:
    """What vLLM keeps under it was computed from all three."""
    first, second = (image.name for image in prompt_images(prompt, "1"))
    assert first != second
    assert [image.name for image in prompt_images(prompt, "1")] == [first, second]
    assert first not in {image.name for image in prompt_images(prompt, "2")}
    assert prompt.image_inputs is not None
    turned = {**prompt.image_inputs, "image_grid_thw": prompt.image_inputs["image_grid_thw"][:, [0, 2, 1]]}
    assert first != prompt_images(replace(prompt, image_inputs=turned), "1")[0].name


def test_features_of_a_frozen_tower_take_the_place_of_pixels(prompt: Prompt) -> None:
    """Those of every layer beside each other, as vLLM's own tower returns them."""
    assert prompt.image_inputs is not None
    inputs = {key: value for key, value in prompt.image_inputs.items() if key != "pixel_values"}
    number = prompt.tokens.count(IMAGE)
    inputs["image_features"] = torch.arange(number * 6.0).reshape(number, 2, 3)
    pixels, images = prompt_images(prompt, "1"), prompt_images(replace(prompt, image_inputs=inputs), "1")
    assert [(image.offset, image.length) for image in images] == [(image.offset, image.length) for image in pixels]
    assert {image.key for image in images} == {"image_embeds"}
    assert torch.equal(torch.cat([image.values for image in images]), torch.arange(number * 6.0).reshape(number, 6))
    inputs["image_features"] = inputs["image_features"][:-1]
    with pytest.raises(RunError, match="do not fit"):
        prompt_images(replace(prompt, image_inputs=inputs), "1")


def test_tokens_that_do_not_fit_the_images_are_no_prompt(prompt: Prompt) -> None:
    assert prompt.image_inputs is not None
    kinds = prompt.image_inputs["mm_token_type_ids"].clone()
    kinds[kinds.nonzero()[3, 0]] = 0
    broken = replace(prompt, image_inputs={**prompt.image_inputs, "mm_token_type_ids": kinds})
    with pytest.raises(RunError, match="the image tokens of problem 'p' do not fit its images"):
        prompt_images(broken, "1")


def test_a_server_is_sent_pixels_or_only_their_names(prompt: Prompt) -> None:
    images = prompt_images(prompt, "1")
    full, names = (server_features(images, dtype) for dtype in (torch.bfloat16, None))
    assert full["mm_hashes"] == names["mm_hashes"] == {"image": [image.name for image in images]}
    assert names["kwargs_data"] == {"image": [None, None]}
    size = images[0].values.numel() * 2
    assert size < len(full["kwargs_data"]["image"][0]) * 3 / 4 < size + 400


def test_messagepack_by_hand() -> None:
    """The bytes of its specification."""
    assert _packed([None, True, False]) == b"\xdd\x00\x00\x00\x03\xc0\xc3\xc2"
    assert _packed({"a": -2}) == b"\xdf\x00\x00\x00\x01\xdb\x00\x00\x00\x01a\xd3" + b"\xff" * 7 + b"\xfe"
    tensor = torch.tensor([1.0])
    raw = b"\xc9\x00\x00\x00\x04\x03\x00\x00\x80?"
    assert _packed(tensor) == _packed(["float32", [1]]).replace(b"\x02", b"\x03", 1) + raw
