"""An objective of one's own: built-in objectives put together from functions are those objectives, and what is wrong is said."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luspo_cli.config.objective import ObjectiveConfig, resolve
from luspo_cli.config.objective_text import describe
from luspo_cli.config.own_objective import OwnObjective, label_of
from luspo_cli.errors import KnownError, RunError
from luspo_cli.objectives import policy_loss
from luspo_cli.objectives.own import advantage_of

OWN = f"{Path(__file__).with_name('own_losses.py')}"
LENGTHS = (1, 4, 7, 0, 3)


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    old = -torch.rand(len(LENGTHS), 7, generator=generator, dtype=torch.float64) - 0.1
    new = old + 3e-3 * torch.randn(old.shape, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.5, 2.0, -0.25], dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor(LENGTHS)[:, None]
    return new.to(dtype).requires_grad_(), old.to(dtype), advantages.to(dtype), mask


def loss_and_gradient(objective: str | ObjectiveConfig, **options: object) -> tuple[float, torch.Tensor]:
    new, *others = batch()
    loss = policy_loss(objective, new, *others, **options).loss  # type: ignore[arg-type]
    return float(loss.detach()), torch.autograd.grad(loss, new)[0]


@pytest.mark.parametrize(
    ("own", "built_in"),
    [
        ("luspo_again", "luspo"),
        ("gspo_ratio", "gspo"),
        ("gspo_surrogate", "gspo"),
        ("dr_grpo_advantage", "grpo"),
        ("all_parts", "luspo"),
    ],
)
def test_a_built_in_objective_put_together_from_functions_is_that_objective(own: str, built_in: str) -> None:
    value, gradient = loss_and_gradient(f"{OWN}:{own}")
    expected, of_built_in = loss_and_gradient(built_in)
    assert value == pytest.approx(expected, rel=1e-12)
    assert of_built_in.abs().max() > 0
    torch.testing.assert_close(gradient, of_built_in, rtol=1e-10, atol=1e-14)


def test_the_kl_and_entropy_terms_take_the_weights_of_an_own_aggregation() -> None:
    _, old, *_ = batch()
    options = {"ref_logprobs": old - 0.1, "entropy": old.exp()}
    terms = {"kl_coefficient": 0.1, "entropy_coefficient": 0.2}
    value, _ = loss_and_gradient(resolve(f"{OWN}:luspo_again", **terms), **options)
    expected, _ = loss_and_gradient(resolve("luspo", **terms), **options)
    assert value == pytest.approx(expected, rel=1e-12)


def test_an_own_advantage_is_that_of_its_function() -> None:
    advantage = advantage_of(resolve(f"{OWN}:dr_grpo_advantage"))
    assert not isinstance(advantage, str)
    assert advantage([1.0, 0.0, 0.0, 1.0]) == [0.5, -0.5, -0.5, 0.5]
    assert advantage_of(resolve("gspo")) == "group_mean_std"


def test_the_name_fixes_what_is_not_replaced_and_settings_and_keys_go_on_top() -> None:
    config = resolve(f"{OWN}:luspo_again")
    assert (config.base, config.ratio, config.surrogate, config.aggregation) == ("gspo", "sequence", "clip", "own")
    assert (config.clip_low, config.clip_high, config.own_parts) == (2e-3, 2.5e-3, ("aggregation",))
    assert resolve(f"{OWN}:luspo_again", clip_low=0.01).clip_low == 0.01
    with pytest.raises(ValueError, match="fixes ratio = 'sequence'"):
        resolve(f"{OWN}:luspo_again", ratio="token")
    with pytest.raises(ValueError, match="brings its own aggregation and cannot take 'token-mean'"):
        resolve(f"{OWN}:luspo_again", aggregation="token-mean")


def test_a_stored_configuration_is_read_without_its_file() -> None:
    stored = vars(resolve(f"{OWN}:luspo_again")) | {"name": "gone.py:mine"}
    config = ObjectiveConfig(**stored)
    assert (config.base, config.aggregation, replace(config, clip_low=0.1).aggregation) == ("gspo", "own", "own")
    text = describe(config)
    assert text.equation == "L = −Σ_i Σ_t w_it min(s_i A_i, clip(s_i, 1−0.002, 1+0.0025) A_i)"
    assert text.paper == "none: one's own; aggregation replaced in gspo"
    assert "luspo's engine alone" in text.verl
    with pytest.raises(KnownError, match=r"there is no file gone\.py"):
        loss_and_gradient(config)


def test_a_file_that_replaces_other_parts_than_its_configuration_is_refused() -> None:
    config = ObjectiveConfig(**vars(resolve(f"{OWN}:luspo_again")) | {"name": f"{OWN}:gspo_ratio"})
    with pytest.raises(KnownError, match="replaces ratio of gspo now, and the configuration has aggregation of gspo"):
        loss_and_gradient(config)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "token_level",
            r"its ratio returned float64 of shape \[5, 7\] and must return \[5, 1\], since its base gspo has one",
        ),
        ("divides", r"its aggregation failed: ZeroDivisionError: .*\(own_losses\.py, line \d+\)"),
        ("exits", r"its aggregation failed: SystemExit: 0 \(own_losses\.py, line \d+\)"),
        ("no_marks", "its surrogate returned int as clipped_low and no tensor"),
        ("a_list", "its ratio returned list and no tensor"),
    ],
)
def test_what_a_function_does_wrong_is_one_sentence(name: str, said: str) -> None:
    with pytest.raises(RunError, match=said):
        loss_and_gradient(f"{OWN}:{name}")


def test_an_advantage_with_another_number_of_values_is_refused() -> None:
    advantage = advantage_of(resolve(f"{OWN}:too_few"))
    assert not isinstance(advantage, str)
    with pytest.raises(
        RunError, match=r"its advantage returned \[0\.0\] for the rewards \[1\.0, 0\.0\] and must return 2"
    ):
        advantage([1.0, 0.0])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.py:mine", r"there is no file nowhere\.py"),
        (f"{OWN}:not_one", "is a int and no OwnObjective"),
        (f"{OWN}:absent", "has no 'absent'; it has luspo_again, gspo_ratio, "),
        (OWN, "is a file and no objective: name .*:luspo_again or "),
        ("no_such_module_here:mine", "the module no_such_module_here cannot be imported"),
        ("lusop", r"unknown objective 'lusop' \(did you mean 'luspo'\?\)"),
    ],
)
def test_a_name_without_an_objective_is_one_sentence(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        resolve(name)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "replaces one of advantage, ratio, surrogate, aggregation at least"),
        ({"ratio": 3}, r"ratio is 3 and no function: give one that is called as ratio\(batch\)"),
        (
            {"surrogate": lambda batch: batch},
            r"surrogate is called as surrogate\(ratio, batch\), and <lambda>\(batch\) cannot be",
        ),
    ],
)
def test_an_objective_that_cannot_be_called_is_refused_where_it_is_made(
    arguments: dict[str, object], said: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        OwnObjective("gspo", **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('OwnObjective("gpso", ratio=f)', r"unknown objective 'gpso' \(did you mean 'gspo'\?\)"),
        ('OwnObjective("gmpo", ratio=f)', "replaces the ratio of gmpo, whose surrogate 'gmpo' does not read it"),
        ('OwnObjective("fspo", ratio=f)', "whose surrogate 'clip' clipped on the root does not read it"),
        ("OwnObjective(3, ratio=f)", "base = 3 must be the name of a built-in objective"),
        (
            'OwnObjective("gspo", ratio=f, settings=[1])',
            r"settings = \[1\] must be a dict of keys of the base with values",
        ),
        ('OwnObjective("gspo", ratio=f, settings={"clip": 1})', "settings have no 'clip'"),
        ('OwnObjective("gspo", ratio=f, settings={"clip_low": "a"})', "clip_low = 'a' is no number"),
        (
            'OwnObjective("gspo", ratio=f, settings={"clip_band": "balanced"})',
            "'balanced' knows the parts of luspo alone",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "loss.py"
    file.write_text(f"from luspo_cli.objectives import OwnObjective\nf = lambda batch: 0\nmine = {line}\n")
    with pytest.raises(ValueError, match=said):
        resolve(f"{file}:mine")


def test_folders_are_named_after_file_and_name() -> None:
    assert [label_of(name) for name in ("some/loss.py:mine", "a.b:mine", "luspo")] == ["loss-mine", "a.b-mine", "luspo"]


def test_a_base_belongs_to_an_objective_of_ones_own_alone() -> None:
    with pytest.raises(ValueError, match="are of an objective of one's own, and luspo is none"):
        resolve("luspo", base="gspo")
