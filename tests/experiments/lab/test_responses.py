"""The model of responses against the enumeration of everything that it can write."""

from __future__ import annotations

import pytest
import torch
from enumeration import all_responses, generators, probabilities, shaken, short_model

from luspo_cli.config.lab import resolve_lab
from luspo_cli.experiments.lab.experiment import draw
from luspo_cli.experiments.lab.responses import DTYPE, ResponseModel

EVERYTHING = (
    "model.prompt_types=3", "model.skill_spread=1.5", "model.answers=3", "model.answer_tokens=2", "model.ending=0.8",
    "model.accuracy=0.3", "model.stop_bins=3", "model.stop_bin_tokens=4", "model.stop_by_type=true", "model.coupling=0.5",
    "data.profile=pays",
)  # fmt: skip
SETTINGS = {
    "plain": (),
    "everything": EVERYTHING,
    "bins": ("model.stop_bins=4", "model.stop_bin_tokens=2"),
    "costs": ("data.profile=costs", "data.length_gain=2.0"),
    "ending": ("model.ending=0.7",),
    "profile": ("model.stop_profile=[-1.0, 0.5, 0.0]", "model.stop_bin_tokens=2"),
}


@pytest.mark.parametrize("sets", SETTINGS.values(), ids=SETTINGS)
def test_the_chances_of_all_responses_add_up_to_one(sets: tuple[str, ...]) -> None:
    model = short_model(*sets)
    logits = shaken(model.start(generators(2)))
    for prompt_type in range(model.config.model.prompt_types):
        found = probabilities(model, logits, all_responses(model, 2, prompt_type))
        torch.testing.assert_close(found.sum(-1), torch.ones(2, dtype=DTYPE), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sets", SETTINGS.values(), ids=SETTINGS)
def test_the_mean_length_is_that_of_the_enumeration(sets: tuple[str, ...]) -> None:
    model = short_model(*sets)
    logits, types = shaken(model.start(generators(2))), model.config.model.prompt_types
    expected = torch.zeros(2, dtype=DTYPE)
    for prompt_type in range(types):
        responses = all_responses(model, 2, prompt_type)
        expected += (probabilities(model, logits, responses) * responses.lengths).sum(-1).detach() / types
    torch.testing.assert_close(model.mean_length(logits), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sets", SETTINGS.values(), ids=SETTINGS)
def test_samples_have_the_enumerated_chances(sets: tuple[str, ...]) -> None:
    model = short_model(*sets)
    logits = shaken(model.start(generators(1)), seed=3)
    rows = 200_000
    uniforms = torch.rand(1, rows, model.uniforms_a_row, generator=torch.Generator().manual_seed(4), dtype=DTYPE)
    last_type = model.config.model.prompt_types - 1
    drawn = model.sample(logits, torch.full((1, rows), last_type), uniforms)
    listed = all_responses(model, 1, last_type)
    chances = probabilities(model, logits, listed).detach()[0]
    for right in (False, True):
        for length in range(model.tail, model.limit + 1):
            chance = float(chances[(listed.lengths[0] == length) & (listed.right[0] == right)].sum())
            share = float(((drawn.lengths[0] == length) & (drawn.right[0] == right)).double().mean())
            # Five standard errors; a seed is fixed, so this either always holds or never.
            assert share == pytest.approx(chance, abs=5 * (chance * (1 - chance) / rows) ** 0.5 + 1e-12)


def test_the_start_has_the_length_and_accuracy_that_were_asked_for() -> None:
    sets = ["model.prompt_types=5", "model.skill_spread=2.0", "model.answers=10", "model.answer_tokens=2"]
    model = ResponseModel(resolve_lab("luspo", sets=[*sets, "model.ending=0.9", "rollout.max_response_tokens=400"]))
    logits = model.start(generators(3))
    torch.testing.assert_close(model.mean_length(logits), torch.full((3,), 21.5, dtype=DTYPE), rtol=1e-6, atol=0)
    right = logits.answer.new_zeros(3)
    for prompt_type in range(5):
        share = torch.cat([logits.answer[:, prompt_type], logits.answer.new_zeros(3, 2, 1)], -1).softmax(-1)[..., 0]
        right += 0.9 * share.prod(-1) / 5
    torch.testing.assert_close(right, torch.full((3,), 0.45, dtype=DTYPE), rtol=1e-9, atol=0)


def test_a_coin_knows_nothing_of_the_answer() -> None:
    model = ResponseModel(resolve_lab("luspo", sets=["data.profile=coin", "model.accuracy=0.9"]))
    responses = draw(model, model.start(generators(20)), generators(20))
    heads, right = responses.right.double(), (responses.answers[..., 0] == 0).double()
    assert right.mean() == pytest.approx(0.9, abs=0.02)
    assert heads.mean() == pytest.approx(0.5, abs=0.03)
    assert (heads * right).mean() == pytest.approx(0.45, abs=0.03)


def test_length_pays_or_costs_as_the_profile_says() -> None:
    for profile, sign in (("pays", 1), ("costs", -1)):
        model = short_model(f"data.profile={profile}")
        logits = model.start(generators(1))
        responses = all_responses(model, 1)
        chances = probabilities(model, logits, responses)[0]
        lengths, right = responses.lengths[0], responses.right[0]
        of_right = (chances * lengths)[right].sum() / chances[right].sum()
        of_wrong = (chances * lengths)[~right & (lengths < model.limit)].sum() / chances[
            ~right & (lengths < model.limit)
        ].sum()
        assert sign * (of_right - of_wrong) > 0.3
