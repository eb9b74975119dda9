"""The proofs hold for every built-in objective, and fail, by how much is known beforehand, where a loss is made to depend."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.objective import NAMED_OBJECTIVES, resolve
from luspo_cli.errors import UsageError
from luspo_cli.training.objective_check import check_update, own_objective_faults, proven_of, refuse_in_lab
from luspo_cli.training.objective_proofs import LENGTHS, Proof, Proven, prove

OWN = str(Path(__file__).parents[1] / "objectives" / "own_losses.py")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def proofs(name: str) -> tuple[Proven, dict[str, Proof]]:
    proven = prove(resolve(name if name in NAMED_OBJECTIVES else f"{OWN}:{name}"))
    return proven, {proof.name: proof for proof in proven.proofs}


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("luspo", ["N, sequences of the mini-batch"]),
        ("dapo", ["M, tokens of the mini-batch"]),
        ("dr_grpo", ["N, sequences of the mini-batch", "L, the response limit"]),
        ("balanced", ["the sizes of the groups", "which rows answer one prompt"]),
        ("luspo_again", ["N, sequences of the mini-batch"]),
        ("all_parts", ["N, sequences of the mini-batch"]),
        ("prompt_mean", ["the sizes of the groups", "which rows answer one prompt"]),
    ],
)
def test_an_invariant_loss_passes_and_what_it_reads_is_said(name: str, reads: list[str]) -> None:
    proven, found = proofs(name)
    assert proven.invariant, proven.failed()
    assert list(proven.reads) == reads
    assert found["equal tokens once"].holds
    assert found["many batches"].holds


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("draws", "two calls with the same inputs differ"),
        ("nan", "value or gradient is not finite"),
        ("of_the_micro_batch", ""),  # not invariant, and still the same for the same inputs
        ("luspo", ""),
    ],
)
def test_what_a_loss_reads_is_unknown_where_it_differs_by_itself(name: str, why: str) -> None:
    proven, _ = proofs(name)
    assert proven.reads_unknown == why
    assert bool(proven.reads) == (name == "luspo")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED_OBJECTIVES)
def test_every_built_in_objective_is_invariant(name: str) -> None:
    assert proofs(name)[0].invariant


def test_a_mean_over_the_micro_batch_fails_by_what_one_row_then_weighs() -> None:
    proven, found = proofs("of_the_micro_batch")
    assert [proof.name for proof in proven.failed()] == ["micro-batches", "processes", "rows without advantage"]
    tokens = sum(map(sum, LENGTHS))
    # A row of one token, alone in its part, weighs 1 and not 1/M: its gradient is M times as large.
    largest = max(proof.difference for proof in proven.failed())
    assert largest == pytest.approx(tokens - 1, rel=0.5)
    assert found["padding"].holds


def test_each_dependence_fails_its_proof() -> None:
    for name, failed in (
        ("of_the_width", "padding"),
        ("of_the_row", "order of rows"),
        ("pulls_zero", "rows without advantage"),
    ):
        assert not proofs(name)[1][failed].holds, name


def test_an_advantage_that_depends_on_the_place_in_the_group_fails() -> None:
    assert [proof.name for proof in proofs("first_only")[0].failed()] == ["order of rows"]


def test_what_cannot_train_is_told_apart() -> None:
    assert [proof.name for proof in proofs("detached")[0].failed()] == ["gradient"]
    assert "finite" in [proof.name for proof in proofs("nan")[0].failed()]
    assert [proof.name for proof in proofs("overflows")[0].failed()] == ["finite far out"]
    assert math.isinf(proofs("nan")[1]["finite"].difference)
    (only,) = proofs("divides")[0].proofs
    assert only.name == "it runs"
    assert "ZeroDivisionError" in only.error


def test_a_stopped_gradient_is_a_note_and_no_failure() -> None:
    proven, found = proofs("stopped")
    assert proven.invariant
    assert not found["derivative"].holds
    assert proofs("luspo")[1]["derivative"].holds


def test_a_loss_that_teaches_the_opposite_is_a_note() -> None:
    proven, found = proofs("upside_down")
    assert proven.invariant
    assert not found["direction"].holds
    assert all(proofs(name)[1]["direction"].holds for name in ("luspo", "sapo", "cispo", "luspo_again"))


def test_an_advantage_of_zeros_has_no_gradient_and_nothing_else_is_wrong() -> None:
    assert [proof.name for proof in proofs("all_zero")[0].failed()] == ["gradient"]
    assert not any(proof.error for proof in proofs("all_zero")[0].proofs)


def test_what_the_lab_needs_is_a_note_for_others() -> None:
    proven, found = proofs("uncounted")
    assert proven.invariant
    assert not found["equal tokens once"].holds
    with pytest.raises(
        UsageError, match=r"cannot run in the lab \(for luspo lab: equal tokens given once with their number\)"
    ):
        refuse_in_lab(resolve(f"{OWN}:uncounted"))
    with pytest.raises(UsageError, match=r"cannot run in the lab .*a leading axis of batches"):
        refuse_in_lab(resolve(f"{OWN}:no_batch_axis"))
    refuse_in_lab(resolve(f"{OWN}:luspo_again"))
    refuse_in_lab(resolve("luspo"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nan", "cannot train: value or gradient is not finite"),
        ("detached", "cannot train: no token has a gradient"),
        ("token_level", r"must return \[20, 1\]"),
        (
            "pulls_zero",
            r"is another one where rows whose advantage is 0 are left out, .* set update\.skip_rows_without_advantage=false",
        ),
    ],
)
def test_a_run_refuses_what_could_not_train(name: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_update(resolve_train(preset="tiny", objective=f"{OWN}:{name}"))


def test_a_run_takes_a_dependent_loss_with_a_warning_and_rows_without_advantage_where_none_is_skipped() -> None:
    refused, warning = own_objective_faults(resolve_train(preset="tiny", objective=f"{OWN}:of_the_width"))
    assert refused is None
    assert warning is not None
    assert "is not invariant: padding (by" in warning
    every_row = ["update.skip_rows_without_advantage=false"]
    assert own_objective_faults(resolve_train(preset="tiny", objective=f"{OWN}:pulls_zero", sets=every_row)) == (
        None,
        None,
    )


def test_a_file_stands_for_all_its_objectives(tmp_path: Path) -> None:
    file = tmp_path / "two.py"
    file.write_text(
        "from luspo_cli.objectives import OwnObjective\n"
        'one = OwnObjective("gspo", aggregation=lambda batch: 1 / batch.sequences)\n'
        'two = OwnObjective("dapo", aggregation=lambda batch: 1 / batch.tokens)\n'
    )
    assert [one.name for one in proven_of(str(file))] == [f"{file}:one", f"{file}:two"]
    assert [one.name for one in proven_of("luspo")] == ["luspo"]
    text, file = file.read_text(), tmp_path / "three.py"
    file.write_text(text + 'three = OwnObjective("gspo", aggregation=lambda batch: 1, settings=[1])\n')
    right, _, wrong = proven_of(str(file))
    assert (right.invariant, wrong.invariant) == (True, False)
    assert "settings = [1] must be a dict" in wrong.proofs[0].error
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(UsageError, match="has no OwnObjective"):
        proven_of(str(empty))
    with pytest.raises(UsageError, match=r"the module gsppo cannot be imported.* \(did you mean 'gspo'\?\)"):
        proven_of("gsppo")
