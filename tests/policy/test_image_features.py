"""Features of a frozen vision tower in the place of pixels: the same log-probs and gradients, and one pass of the tower."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from doubles.vision import FAMILIES, IMAGE, VOCABULARY, counted_tower, noise_image, vision_model, vision_processor
from luspo_cli.data.images import ImageFile
from luspo_cli.policy.images import tower_is_frozen, with_features
from luspo_cli.policy.inputs import prompt_inputs
from luspo_cli.policy.loading import LoadedModel, freeze_vision
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Message, Problem, Prompt, Rollout, StopReason
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions

ASKED = [("<image>?", [(70, 60)]), ("1+1=", []), ("<image> or <image>", [(40, 90), (120, 60)])]


@pytest.fixture(scope="module")
def problems(tmp_path_factory: pytest.TempPathFactory) -> list[Problem]:
    folder, found = tmp_path_factory.mktemp("images"), []
    for number, (text, sizes) in enumerate(ASKED):
        files = [noise_image(folder / f"{number}-{n}.png", *size, number + n) for n, size in enumerate(sizes)]
        found.append(Problem(f"p{number}", (Message("user", text),), "1", "t", tuple(map(ImageFile, files))))
    return found


@pytest.fixture(scope="module")
def prompts(problems: list[Problem]) -> list[Prompt]:
    processor = vision_processor()
    return [prompt_inputs(problem, processor.tokenizer, processor) for problem in problems]


def rows_of(prompts: list[Prompt]) -> list[Row]:
    """Three rows a prompt, shuffled."""
    generator = random.Random(3)
    rows = []
    for prompt in prompts:
        for _ in range(3):
            response = tuple(generator.randrange(8, VOCABULARY) for _ in range(generator.randint(1, 9)))
            rollout = Rollout(prompt.problem_id, prompt.tokens, response, "", StopReason.END)
            rows.append(Row(rollout, 1.0, prompt.image_inputs))
    generator.shuffle(rows)
    return rows


def frozen_model(family: str, dtype: str = "float32") -> Any:
    model = vision_model(5, family=family, dtype=dtype)
    freeze_vision(model)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_alone_has_the_same_log_probs_bit_for_bit(prompts: list[Prompt], family: str) -> None:
    model = frozen_model(family)
    policy = Policy(model, 1.0)
    for prompt, read in ((prompt, with_features(prompt, model)) for prompt in prompts):
        (row,) = [row for row in rows_of(prompts) if row.rollout.problem_id == prompt.problem_id][:1]
        pixels, features = policy_batch([row]), policy_batch([replace(row, image_inputs=read.image_inputs)])
        if prompt.image_inputs is not None:
            assert features.images is not None
            assert features.images.pixels is None
            assert features.images.features is not None
            # One layer of features, and for Qwen3-VL those of the block that is said to give some besides.
            assert features.images.features.shape[1] == (2 if family == "qwen3_vl" else 1)
            assert not features.images.features.requires_grad
        for autocast in (False, True):
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                own = with_features(prompt, model).image_inputs  # as the run computes them: in the type of its passes
                features = policy_batch([replace(row, image_inputs=own)])
                assert torch.equal(policy(pixels)[0], policy(features)[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_mixed_batch_has_the_same_log_probs_and_gradients(prompts: list[Prompt], family: str) -> None:
    def computed(read: list[Prompt]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        model.zero_grad()
        logprobs, _ = Policy(model, 0.9)(policy_batch(rows_of(read)))
        (logprobs.sum(-1) * torch.arange(1.0, 1 + len(logprobs))).sum().backward()
        return logprobs.detach(), {n: w.grad.clone() for n, w in model.named_parameters() if w.grad is not None}

    model = frozen_model(family, "float64")
    pixels, of_pixels = computed(prompts)
    features, of_features = computed([with_features(prompt, model) for prompt in prompts])
    assert torch.allclose(pixels, features, atol=1e-10)
    assert of_pixels.keys() == of_features.keys()
    assert not any("visual" in name for name in of_pixels)
    for name, gradient in of_pixels.items():
        assert (gradient - of_features[name]).norm() <= 1e-10 * gradient.norm() + 1e-12, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_draws_the_same_from_features(prompts: list[Prompt], family: str) -> None:
    model = frozen_model(family, "float64")
    tokenizer = vision_processor().tokenizer
    options = SamplingOptions(group_size=3, max_response_tokens=12, seed=4)
    sampler = InProcessSampler(model, tokenizer, (1, 20, 40, 60), 6)
    pixels = sampler.sample_groups(prompts, options)
    calls = counted_tower(model)
    read = [with_features(prompt, model) for prompt in prompts]
    assert len(calls) == 2  # of the prompts with images
    features = sampler.sample_groups(read, options)
    assert len(calls) == 2
    for one, other in zip(pixels, features, strict=True):
        assert [rollout.response_tokens for rollout in one] == [rollout.response_tokens for rollout in other]
        for mine, theirs in zip(one, other, strict=True):
            assert mine.rollout_logprobs == pytest.approx(theirs.rollout_logprobs, abs=1e-6)


def test_a_trained_tower_is_computed_once_for_the_rows_of_a_prompt(prompts: list[Prompt]) -> None:
    """And its gradient is that of rows that each compute their own images."""
    model = vision_model(dtype="float64")
    calls = counted_tower(model)
    rows = rows_of(prompts)
    Policy(model, 1.0)(policy_batch(rows))[0].sum().backward()
    patches = [len(prompt.image_inputs["pixel_values"]) for prompt in prompts if prompt.image_inputs]
    assert calls == [sum(patches)]
    together = [weight.grad.clone() for weight in model.model.visual.parameters()]
    model.zero_grad()
    own = [replace(row, image_inputs=row.image_inputs and dict(row.image_inputs)) for row in rows]
    Policy(model, 1.0)(policy_batch(own))[0].sum().backward()
    assert calls[1:] == [3 * sum(patches)]
    for one, weight in zip(together, model.model.visual.parameters(), strict=True):
        assert one.norm() > 0
        assert (one - weight.grad).norm() <= 1e-5 * one.norm()  # norms and rotary positions are float32 inside


def test_features_of_other_images_and_numbers_that_do_not_fit_are_noticed(prompts: list[Prompt]) -> None:
    model = frozen_model("qwen2_5_vl")
    read = with_features(prompts[0], model)
    assert read.image_inputs is not None
    assert prompts[0].image_inputs is not None
    assert "pixel_values" in prompts[0].image_inputs  # the one it was made of is as before
    assert len(read.image_inputs["image_features"]) == prompts[0].tokens.count(IMAGE)
    row = next(row for row in rows_of(prompts) if row.rollout.problem_id == "p0")
    cut = {**read.image_inputs, "image_features": read.image_inputs["image_features"][:-1]}
    with pytest.raises(ValueError, match="features and their prompts"):
        Policy(model, 1.0)(policy_batch([replace(row, image_inputs=cut)]))


def test_when_features_are_taken(problems: list[Problem], make_model: Any) -> None:
    processor = vision_processor()
    model = vision_model()
    loaded = LoadedModel(model, processor.tokenizer, (1,), processor)
    assert not tower_is_frozen(model)
    assert "pixel_values" in (loaded.training_prompt(problems[0]).image_inputs or {})
    freeze_vision(model)
    assert tower_is_frozen(model)
    assert "image_features" in (loaded.training_prompt(problems[0]).image_inputs or {})
    assert loaded.training_prompt(problems[1]).image_inputs is None
    assert not tower_is_frozen(make_model())
