"""The policy on rows with images: against the model's own forward pass, and independent of padding and micro-batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles.vision import END, FAMILIES, IMAGE_TOKENS, VOCABULARY, noise_image, vision_model, vision_processor
from luspo_cli.config.model import ModelConfig
from luspo_cli.data.images import ImageFile
from luspo_cli.errors import UsageError
from luspo_cli.grading.verdict import Reason, Verdict
from luspo_cli.policy.inputs import prompt_inputs
from luspo_cli.policy.loading import freeze_vision, load_model
from luspo_cli.policy.packing import Row, policy_batch, rows_of, split_mini_batches
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Message, Problem, Prompt, Reward, Rollout, ScoredGroup, StopReason

PROMPTS = {  # name: text and sizes of its images (width, height)
    "one": ("<image>How many?", [(100, 70)]),
    "text": ("1+1=", []),
    "two": ("A <image> and <image>.", [(60, 120), (90, 60)]),
    "wide": ("<image>", [(400, 25)]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, (_, sizes) in PROMPTS.items():
        for n, (width, height) in enumerate(sizes):
            noise_image(folder / f"{name}-{n}.png", width, height, len(name) + n)
    return folder


@pytest.fixture(scope="module")
def prompts(folder: Path) -> dict[str, Prompt]:
    processor = vision_processor()
    return {
        problem.id: prompt_inputs(problem, processor.tokenizer, processor)
        for problem in (problem_of(name, folder) for name in PROMPTS)
    }


def problem_of(name: str, folder: Path = Path()) -> Problem:
    text, sizes = PROMPTS[name]
    images = tuple(ImageFile(folder / f"{name}-{n}.png") for n in range(len(sizes)))
    return Problem(name, (Message("user", text),), "1", "t", images)


def groups_of(prompts: dict[str, Prompt]) -> list[ScoredGroup]:
    """Two rollouts a prompt with responses of 1 to 9 tokens, none of them an image token."""
    generator = random.Random(7)
    groups = []
    for name, inputs in prompts.items():
        rollouts = tuple(
            Rollout(
                name,
                inputs.tokens,
                tuple(generator.randrange(8, VOCABULARY) for _ in range(generator.randint(1, 9))),
                "",
                StopReason.END,
            )
            for _ in range(2)
        )
        reward = Reward(0.0, 0.0, 0.0, 0.0, Verdict("0", False, Reason.DIFFERENT))
        groups.append(ScoredGroup(problem_of(name), rollouts, (reward, reward), (1.0, -0.5), inputs))
    return groups


def rows_with_images(prompts: dict[str, Prompt]) -> list[Row]:
    groups = groups_of(prompts)
    return [
        Row(r, a, prompts[g.problem.id].image_inputs)
        for g in groups
        for r, a in zip(g.rollouts, g.advantages, strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_models_own_forward_pass(prompts: dict[str, Prompt], family: str) -> None:
    """The model alone, with its plain attention, finds positions and places of the images by itself, row by row."""
    model, reference = vision_model(family=family), vision_model(ours=False, family=family)
    rows = rows_with_images(prompts)
    with torch.no_grad():
        logprobs, entropy = Policy(model, 0.8)(policy_batch(rows), with_entropy=True)
        for i, row in enumerate(rows):
            ids = torch.tensor([row.rollout.prompt_tokens + row.rollout.response_tokens])
            images: dict[str, Any] = {}
            if row.image_inputs:
                kinds = torch.zeros_like(ids)
                kinds[0, : len(row.rollout.prompt_tokens)] = row.image_inputs["mm_token_type_ids"]
                images = {**row.image_inputs, "mm_token_type_ids": kinds}
            # A fresh model state: it keeps the offset of the last rotary positions.
            reference.model.rope_deltas = None
            logits = reference(input_ids=ids, attention_mask=torch.ones_like(ids), **images).logits[0].double() / 0.8
            start, length = len(row.rollout.prompt_tokens), row.rollout.response_length
            log_softmax = logits.log_softmax(-1)[start - 1 : -1]
            expected = log_softmax.gather(1, ids[0, start:, None])[:, 0]
            assert torch.allclose(logprobs[i, :length].double(), expected, atol=1e-4)
            assert torch.allclose(entropy[i, :length].double(), -(log_softmax.exp() * log_softmax).sum(-1), atol=1e-4)


def test_the_pixels_and_the_order_of_images_matter(prompts: dict[str, Prompt]) -> None:
    policy = Policy(vision_model(), 1.0)
    row = next(row for row in rows_with_images(prompts) if row.rollout.problem_id == "one")
    assert row.image_inputs is not None
    other = {**row.image_inputs, "pixel_values": row.image_inputs["pixel_values"].flip(0)}
    with torch.no_grad():
        before, _ = policy(policy_batch([row]))
        after, _ = policy(policy_batch([Row(row.rollout, 1.0, other)]))
    assert (before - after).abs().max() > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_padding_and_micro_batches_change_neither_value_nor_gradient(prompts: dict[str, Prompt], family: str) -> None:
    """Rows with two, one and no image, together and apart, right-padded by 0, 1 and 30 columns."""
    rows = rows_with_images(prompts)
    random.Random(1).shuffle(rows)

    def gradients(batches: Sequence[Sequence[Row]], padding: int) -> tuple[torch.Tensor, list[torch.Tensor]]:
        model = vision_model(dtype="float64", family=family)
        policy, values = Policy(model, 1.0), []
        for batch in batches:
            logprobs, _ = policy(policy_batch(batch, padding=padding))
            (logprobs.sum(-1) * torch.tensor([row.width for row in batch])).sum().backward()
            values.append(logprobs.detach().sum(-1))
        return torch.cat(values), [
            torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in model.parameters()
        ]

    value, gradient = gradients([rows], 0)
    assert sum(bool(one.any()) for one in gradient) == len(gradient)  # language model, vision tower and head alike
    for batches, padding in (([rows], 1), ([rows], 30), ([[row] for row in rows], 0), ([rows[:3], rows[3:]], 2)):
        other_value, other_gradient = gradients(batches, padding)
        assert torch.allclose(value, other_value, atol=1e-5)
        for one, other in zip(gradient, other_gradient, strict=True):
            assert (one - other).norm() <= 1e-5 * one.norm() + 1e-9


def test_a_batch_holds_the_images_in_row_order_and_each_prompts_once(prompts: dict[str, Prompt]) -> None:
    rows = rows_with_images(prompts)
    random.Random(1).shuffle(rows)
    batch = policy_batch(rows, padding=3)
    assert batch.images is not None
    grids = [row.image_inputs["image_grid_thw"].tolist() for row in rows if row.image_inputs]
    assert batch.images.row_grids.tolist() == [grid for own in grids for grid in own]
    assert torch.equal(batch.images.kinds.bool(), batch.tokens == IMAGE_TOKENS[2])
    first = list(dict.fromkeys(row.rollout.problem_id for row in rows if row.image_inputs))
    assert len(first) == 3
    assert batch.images.pixels is not None
    inputs = [prompts[name].image_inputs for name in first]
    assert torch.equal(batch.images.pixels, torch.cat([own["pixel_values"] for own in inputs if own]))
    assert torch.equal(batch.images.grids, torch.cat([own["image_grid_thw"] for own in inputs if own]))
    numbers = [prompts[name].tokens.count(IMAGE_TOKENS[2]) for name in first]
    assert batch.images.tokens == sum(numbers)
    begin = {name: sum(numbers[:i]) for i, name in enumerate(first)}
    expected = [
        begin[row.rollout.problem_id] + i
        for row in rows
        for i in range(row.rollout.prompt_tokens.count(IMAGE_TOKENS[2]))
    ]
    assert batch.images.places.tolist() == expected
    assert policy_batch([row for row in rows if not row.image_inputs]).images is None


def test_mini_batches_carry_the_images_and_refuse_to_go_without(prompts: dict[str, Prompt]) -> None:
    groups = groups_of(prompts)
    images = {name: inputs.image_inputs for name, inputs in prompts.items() if inputs.image_inputs}
    (batch,) = split_mini_batches(groups, 1, 1000)
    for row in (row for rows in batch.with_advantage for row in rows):
        assert row.image_inputs is images.get(row.rollout.problem_id)
    with pytest.raises(ValueError, match="'two' has images and its image inputs were not handed in"):
        split_mini_batches([replace(group, prompt=None) for group in groups if group.problem.id == "two"], 1, 1000)
    with pytest.raises(ValueError, match="'two' has images and its image inputs were not handed in"):
        policy_batch([replace(row, image_inputs=None) for row in rows_of(groups[2])])
    with pytest.raises(ValueError, match="image tokens and their image inputs were not handed in"):
        Policy(vision_model(), 1.0)(policy_batch([Row(groups[0].rollouts[0], 1.0)]))


def test_a_frozen_vision_tower_gets_no_gradient_and_the_rest_does(prompts: dict[str, Prompt]) -> None:
    rows = [row for row in rows_with_images(prompts) if row.image_inputs]
    model = vision_model()
    tower = list(model.model.visual.parameters())
    assert freeze_vision(model) == sum(weight.numel() for weight in tower)
    Policy(model, 1.0)(policy_batch(rows))[0].sum().backward()
    assert all(weight.grad is None for weight in tower)
    for name, weight in (*model.model.language_model.named_parameters(), *model.lm_head.named_parameters()):
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name


def test_nothing_is_frozen_in_a_model_without_a_tower(make_model: Any) -> None:
    model = make_model()
    assert freeze_vision(model) == 0
    assert all(weight.requires_grad for weight in model.parameters())


def test_a_template_that_refuses_an_image_prompt_is_one_sentence(folder: Path) -> None:
    processor = vision_processor()
    processor.chat_template = "{{ raise_exception('Only one image.') }}"
    with pytest.raises(
        UsageError, match=r"'two': the model's chat template refuses its prompt \(Only one image\); take"
    ):
        prompt_inputs(problem_of("two", folder), processor.tokenizer, processor)


@pytest.fixture(params=["qwen2_5_vl"])
def saved(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    vision_processor(family=request.param).save_pretrained(tmp_path)
    vision_model(family=request.param).save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("saved", "kind"),
    [("qwen2_5_vl", "Qwen2_5_VL"), ("qwen2_vl", "Qwen2VL"), ("qwen3_vl", "Qwen3VL")],
    indirect=["saved"],
)
def test_a_vision_model_is_loaded_with_its_processor(
    saved: Path, kind: str, folder: Path, prompts: dict[str, Prompt], tmp_path_factory: pytest.TempPathFactory
) -> None:
    loaded = load_model(ModelConfig(path=str(saved)))
    assert type(loaded.model).__name__ == f"{kind}ForConditionalGeneration"
    assert type(loaded.processor).__name__ == f"{kind}Processor"
    assert loaded.end_tokens == (END,)
    assert {weight.dtype for weight in loaded.model.parameters()} == {torch.float32}
    # What a checkpoint holds is loaded alike, down to the pixels.
    again = tmp_path_factory.mktemp("again")
    loaded.model.save_pretrained(again)
    assert loaded.processor is not None
    loaded.processor.save_pretrained(again)
    for one in (loaded, load_model(ModelConfig(path=str(again)))):
        inputs = prompt_inputs(problem_of("two", folder), one.tokenizer, one.processor)
        assert inputs.tokens == prompts["two"].tokens
        assert inputs.image_inputs is not None
        assert prompts["two"].image_inputs is not None
        assert torch.equal(inputs.image_inputs["pixel_values"], prompts["two"].image_inputs["pixel_values"])


def test_the_vision_tower_of_a_loaded_model_looks_both_ways(saved: Path, prompts: dict[str, Prompt]) -> None:
    """Our attention is causal; a tower that ran through it would not see a later patch in an earlier token."""
    model = load_model(ModelConfig(path=str(saved))).model
    reference = vision_model(ours=False)
    images = prompts["one"].image_inputs
    assert images is not None
    pixels, grid = images["pixel_values"], images["image_grid_thw"]
    changed = pixels.clone()
    changed[-1] += 1.0
    with torch.no_grad():
        found, other = (model.model.get_image_features(p, grid).pooler_output[0] for p in (pixels, changed))
        expected = reference.model.get_image_features(pixels, grid).pooler_output[0]
    assert torch.allclose(found, expected, atol=1e-4)
    assert (found[0] - other[0]).abs().max() > 1e-4


def test_vision_models_of_another_kind_are_refused(saved: Path) -> None:
    from transformers import LlavaConfig

    LlavaConfig().save_pretrained(saved)
    with pytest.raises(UsageError, match="vision model of type llava; supported are qwen2_5_vl, qwen2_vl and qwen3_vl"):
        load_model(ModelConfig(path=str(saved)))


def test_a_vision_model_without_a_template_is_refused(saved: Path) -> None:
    (saved / "chat_template.jinja").unlink()
    with pytest.raises(UsageError, match="has no chat template, which says where an image stands"):
        load_model(ModelConfig(path=str(saved)))
