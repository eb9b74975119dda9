"""Several processes make the update of one: the same gradient and the same weights, however rows and tokens fall on them.

Real processes that talk over gloo. The models are float64 with float32 log-probs, so a sum in another order moves gradients by
about 1e-7 of the largest one; TOLERANCE is ten times that. Weights after Adam steps are compared at a step's size: Adam divides
by the gradient's own size, so an element whose gradient is rounding error may move either way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles import rank_cases
from doubles.processes import run_processes
from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import UsageError
from luspo_cli.policy.packing import balance_rows, own_pieces, rows_of
from luspo_cli.processes.ranks import ALONE
from luspo_cli.processes.sharding import whole_weight
from luspo_cli.records import ScoredGroup

TOLERANCE = 1e-6
RATE = 1e-3
LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 1, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]
UNEVEN = [[16, 1, 1], [1, 1, 2], [14, 1, 3], [1, 2, 1]]
ONE_ROW = [[0.0] * 3, [0.0] * 3, [0.0, 1.0, 0.0], [0.0] * 3]
SILENT = [[0.0] * 3] * 4
INFINITE = [[1.0, -0.5, -0.5], [0.0] * 3, [0.0, float("inf"), -1.0], [0.5, 0.2, -0.7]]

Made = Callable[..., Any]


def cases(make_model: Made, make_groups: Made) -> dict[str, dict[str, Any]]:
    """Name → model, updates and configuration; `sharding` stands in the name's last part."""

    def case(
        *sets: str, updates: list[tuple[Any, Any, float]], objective: str = "luspo", dtype: str = "float64"
    ) -> Any:
        config = resolve_train(
            preset="tiny",
            objective=objective,
            sets=["rollout.problems=4", "rollout.max_response_tokens=16", "update.gradient_clip=0", *sets],
        )
        groups = [(make_groups(lengths, advantages), rate) for lengths, advantages, rate in updates]
        reference = make_model(1, dtype=dtype) if config.objective.kl_coefficient else None
        return {
            "config": config.model_dump(mode="python"),
            "model": make_model(dtype=dtype),
            "reference": reference,
            "updates": groups,
        }

    small = "update.tokens_per_micro_batch=30"
    one, two = "update.mini_batches=1", "update.mini_batches=2"
    still = [(LENGTHS, ADVANTAGES, 0.0)]
    found = {}
    for sharding in ("none", "full"):
        s = f"model.sharding={sharding}"
        found |= {
            f"gradient-luspo.{sharding}": case(s, small, one, updates=still),
            f"gradient-dapo.{sharding}": case(s, small, one, updates=still, objective="dapo"),
            f"uneven.{sharding}": case(s, small, one, updates=[(UNEVEN, ADVANTAGES, 0.0)]),
            f"one-row.{sharding}": case(s, small, one, updates=[(UNEVEN, ONE_ROW, 0.0)]),
            f"steps.{sharding}": case(s, small, two, updates=[(LENGTHS, ADVANTAGES, RATE)] * 3),
            f"steps-balanced.{sharding}": case(
                s, small, two, "objective.clip_band=balanced", updates=[(LENGTHS, ADVANTAGES, RATE)]
            ),
            f"silent.{sharding}": case(
                s, small, two, updates=[(LENGTHS, ADVANTAGES, RATE), (LENGTHS, SILENT, RATE), (UNEVEN, ONE_ROW, RATE)]
            ),
            f"infinite.{sharding}": case(
                s, small, one, updates=[(LENGTHS, ADVANTAGES, RATE), (LENGTHS, INFINITE, RATE)]
            ),
            f"clipped.{sharding}": case(s, small, one, "update.gradient_clip=0.01", updates=still),
            f"reference.{sharding}": case(
                s, small, one, "objective.kl_coefficient=0.1", "objective.entropy_coefficient=0.01", updates=still
            ),
            f"bfloat16.{sharding}": case(
                s, small, one, "model.compute_dtype=bfloat16", "model.gradient_checkpointing=true",
                updates=still, dtype="float32",
            ),
        }  # fmt: skip
    return found


@pytest.fixture(scope="session", params=[2, 3])
def several(
    request: pytest.FixtureRequest, make_model: Made, make_groups: Made, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """Name of a case → what each process found; all cases in one start."""
    folder = tmp_path_factory.mktemp(f"{request.param}-processes")
    for name, case in cases(make_model, make_groups).items():
        torch.save(case, folder / f"{name}.case")
    assert run_processes(request.param, rank_cases.run_cases, folder) == [0] * request.param
    names = [file.name.removesuffix(".0.found") for file in folder.glob("*.0.found")]
    return {
        name: [torch.load(folder / f"{name}.{rank}.found", weights_only=False) for rank in range(request.param)]
        for name in names
    }


@pytest.fixture(scope="session")
def alone(make_model: Made, make_groups: Made) -> dict[str, Any]:
    """The same from one process: this one."""
    return {name: rank_cases.found(case) for name, case in cases(make_model, make_groups).items()}


NAMES = [
    f"{name}.{sharding}"
    for name in ("gradient-luspo", "gradient-dapo", "uneven", "one-row", "reference")
    for sharding in ("none", "full")
]


@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_one_process(several: dict[str, list[Any]], alone: dict[str, Any], name: str) -> None:
    whole = alone[name]["gradients"]
    scale = max(float(gradient.norm()) for gradient in whole.values())
    assert scale > 1e-3
    for found in several[name]:
        assert found["gradients"].keys() == whole.keys()
        for weight, gradient in found["gradients"].items():
            assert (gradient - whole[weight]).norm() < TOLERANCE * scale, weight


@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.parametrize("name", ["steps", "silent"])
def test_the_weights_after_steps_are_those_of_one_process(
    several: dict[str, list[Any]], alone: dict[str, Any], name: str, sharding: str
) -> None:
    """Six optimizer steps of 1e-3 each, with ratios that left 1: the mean difference is far below a hundredth of one step."""
    whole = alone[f"{name}.{sharding}"]
    assert any(part["ratio/min"] < 1 < part["ratio/max"] for part in whole["metrics"])
    for found in several[f"{name}.{sharding}"]:
        for weight, value in found["weights"].items():
            # Softmax does not see a shift of all keys: the true gradient of their bias is 0, and Adam steps by its sign.
            if not weight.endswith("k_proj.bias"):
                assert float((value - whole["weights"][weight]).abs().mean()) < 1e-2 * RATE, weight


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_every_process_holds_the_same_weights_bit_for_bit(several: dict[str, list[Any]], sharding: str) -> None:
    first, *others = several[f"steps.{sharding}"]
    for other in others:
        assert all(torch.equal(first["weights"][name], other["weights"][name]) for name in first["weights"])


@pytest.mark.parametrize(
    "name", [*NAMES, *(f"{n}.{s}" for n in ("steps", "steps-balanced", "clipped") for s in ("none", "full"))]
)
def test_the_metrics_are_those_of_one_process(several: dict[str, list[Any]], alone: dict[str, Any], name: str) -> None:
    """Loss, ratios, entropy, gradient norm and counts of rows are of the whole batch, and the same on every process."""
    first, *others = several[name]
    assert all(other["metrics"] == first["metrics"] for other in others)
    for found, wanted in zip(first["metrics"], alone[name]["metrics"], strict=True):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert found[key] == pytest.approx(value, rel=2e-3 if name.startswith("steps") else 1e-5, abs=1e-6), key
    assert first["noise_floor"] == pytest.approx(alone[name]["noise_floor"], abs=1e-6)


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_balanced_clip_range_is_found_from_the_rows_of_all_processes(
    several: dict[str, list[Any]], alone: dict[str, Any], sharding: str
) -> None:
    name = f"steps-balanced.{sharding}"
    (wanted,) = alone[name]["metrics"]
    # A mean over the first mini-batch, whose bounds are the configured ones, and the second.
    assert wanted["objective/balanced_clip_low"] != pytest.approx(2e-3)
    for found in several[name]:
        (metrics,) = found["metrics"]
        for side in ("low", "high"):
            key = f"objective/balanced_clip_{side}"
            assert metrics[key] == pytest.approx(wanted[key], rel=1e-2)


@pytest.mark.parametrize("sharding", ["none", "full"])
@pytest.mark.parametrize("name", ["gradient-dapo", "uneven", "one-row", "steps"])
def test_what_became_of_each_row_is_what_one_process_says(
    several: dict[str, list[Any]], alone: dict[str, Any], name: str, sharding: str
) -> None:
    first, *others = (found["rows"] for found in several[f"{name}.{sharding}"])
    assert all(other == first for other in others)
    whole = alone[f"{name}.{sharding}"]["rows"]
    assert [row is None for row in first] == [row is None for row in whole]
    for row, wanted in zip(first, whole, strict=True):
        if row is not None:
            assert (row.mini_batch, row.loss_weight) == (wanted.mini_batch, pytest.approx(wanted.loss_weight))
            assert row.sequence_ratio == pytest.approx(wanted.sequence_ratio, abs=1e-3)
            assert row.token_log_ratios == pytest.approx(wanted.token_log_ratios, abs=1e-2)
    found, whole = several[f"{name}.{sharding}"][0], alone[f"{name}.{sharding}"]
    of_processes = len(several[f"{name}.{sharding}"])
    loose = 0.2 if name == "steps" else 1e-4
    for other, outcomes in whole["under"].items():
        assert found["under"][other] == pytest.approx(outcomes, nan_ok=True, abs=1e-2)
    # Losses are multiplied by the number of processes, whose gradients are averaged.
    of_one = found["squared_norms"] / of_processes**2
    assert of_one == pytest.approx(whole["squared_norms"], rel=loose, abs=1e-6, nan_ok=True)
    for kind, norms in whole["class_norms"].items():
        assert found["class_norms"][kind] == pytest.approx(norms, rel=loose, abs=1e-6), kind


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_a_loss_that_is_not_finite_on_one_process_moves_no_weight_on_any(
    several: dict[str, list[Any]], alone: dict[str, Any], sharding: str
) -> None:
    name = f"infinite.{sharding}"
    for found in several[name]:
        assert [part["update/skipped_steps"] for part in found["metrics"]] == [0.0, 1.0]
        for weight, value in found["weights"].items():
            assert torch.isfinite(value).all()
            if not weight.endswith("k_proj.bias"):
                assert float((value - alone[name]["weights"][weight]).abs().mean()) < 1e-2 * RATE, weight


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_the_gradient_is_clipped_by_the_norm_of_the_whole(
    several: dict[str, list[Any]], alone: dict[str, Any], sharding: str
) -> None:
    for found in several[f"clipped.{sharding}"]:
        norm = sum(float(gradient.double().square().sum()) for gradient in found["gradients"].values()) ** 0.5
        assert norm == pytest.approx(0.01, rel=1e-4)
        assert found["metrics"][0]["update/grad_norm"] > 0.1


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_bfloat16_passes_are_those_of_one_process_too(
    several: dict[str, list[Any]], alone: dict[str, Any], sharding: str
) -> None:
    """Autocast over float32 weights, recomputed layers: only the rows of a pass differ, which bfloat16 rounds in its way."""
    name = f"bfloat16.{sharding}"
    whole = alone[name]["gradients"]
    scale = max(float(gradient.norm()) for gradient in whole.values())
    for weight, gradient in several[name][0]["gradients"].items():
        assert gradient.dtype == torch.float32
        assert (gradient - whole[weight]).norm() < 2e-2 * scale, weight


def test_sharded_weights_are_shared_out(several: dict[str, list[Any]]) -> None:
    whole = several["steps.none"][0]["elements"]
    shares = [found["elements"] for found in several["steps.full"]]
    assert sum(shares) == whole
    assert max(shares) < 1.1 * whole / len(shares)


def test_one_row_leaves_the_other_processes_without_any(several: dict[str, list[Any]]) -> None:
    """And they still make as many passes."""
    for sharding in ("none", "full"):
        pieces = [found["pieces"][0] for found in several[f"one-row.{sharding}"]]
        assert [[piece.filler for piece in own] for own in pieces] == [[False]] + [[True]] * (len(pieces) - 1)


def test_uneven_rows_make_equally_many_passes_over_each_row_once(several: dict[str, list[Any]]) -> None:
    pieces = [found["pieces"][0] for found in several["uneven.none"]]
    assert len({len(own) for own in pieces}) == 1
    rows = [row for own in pieces for piece in own if not piece.filler for row in piece.rows]
    assert len(rows) == sum(advantage != 0 for group in ADVANTAGES for advantage in group)
    assert len({(row.rollout.problem_id, row.rollout.response_tokens) for row in rows}) == len(rows)
    tokens = [sum(row.width for piece in own if not piece.filler for row in piece.rows) for own in pieces]
    assert max(tokens) - min(tokens) <= 20


def test_what_processes_hand_around(several: dict[str, list[Any]]) -> None:
    found = several["exchanges"]
    size = len(found)
    for rank, own in enumerate(found):
        assert own["gathered"] == [{"rank": other} for other in range(size)]
        assert own["any"] == (True, False)
        assert own["broadcast"] == "from 0"
        assert own["phase"] == rank
        # The first process prints it, as what it is; the others end silently, with the same status.
        assert own["first fails"] == ("PeerFailed" if rank else "UsageError", "process 0 cannot", 2)
        assert own["second fails"] == ("PeerFailed" if rank else "RunError", "process 1 cannot", 1)
        assert own["after that"] == list(range(size))
        assert own["on machine"] == size
    for number, shares in zip((0, 1, 5, 7), zip(*(own["shares"] for own in found), strict=True), strict=True):
        assert [i for share in shares for i in share] == list(range(number))  # in order, nothing twice
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shares_are_balanced_by_tokens(make_groups: Callable[..., list[ScoredGroup]]) -> None:
    """Widths 20, 13, 12, 9, 8, 7, 6, 5, 5 (prompts of 4): longest first to the lightest; by hand."""
    lengths = [[16, 9, 8, 5, 4, 3, 2, 1, 1]]
    rows = rows_of(make_groups(lengths, [[1.0] * 9])[0])
    shares = balance_rows(rows, 2)
    assert [[row.width for row in share] for share in shares] == [[20, 9, 7, 5], [13, 12, 8, 6, 5]]
    assert [[row.width for row in share] for share in balance_rows(rows[:1], 3)] == [[20], [], []]


def test_a_process_with_fewer_passes_makes_up_for_them(make_groups: Callable[..., list[ScoredGroup]]) -> None:
    """Widths 24 and four times 6, passes of 12: one pass over the long row, two over the short ones; by hand."""
    rows = rows_of(make_groups([[20, 2, 2, 2, 2]], [[1.0] * 5])[0])
    first, second = (own_pieces([rows], rank, 2, 12) for rank in range(2))
    assert [([row.width for row in piece.rows], piece.filler) for piece in first] == [([24], False), ([6], True)]
    assert [([row.width for row in piece.rows], piece.filler) for piece in second] == [([6, 6], False)] * 2


def test_one_process_keeps_its_micro_batches(make_groups: Callable[..., list[ScoredGroup]]) -> None:
    from luspo_cli.policy.packing import split_mini_batches

    batch = split_mini_batches(make_groups(LENGTHS, ADVANTAGES), 1, 40)[0]
    pieces = own_pieces(batch.with_advantage, 0, 1, 40)
    assert tuple(piece.rows for piece in pieces) == batch.with_advantage
    assert not any(piece.filler for piece in pieces)
    assert own_pieces((), 1, 3, 40) == []


def test_one_process_exchanges_nothing() -> None:
    assert ALONE.gather(3) == [3]
    assert ALONE.broadcast("x") == "x"
    with pytest.raises(UsageError, match="as it is"), ALONE.phase():
        raise UsageError("as it is")
    weight = torch.ones(2)
    assert whole_weight(weight) is weight


def test_a_failure_that_may_be_one_process_s_own_is_said_once(tmp_path: Path) -> None:
    assert run_processes(2, rank_cases.fail_apart, tmp_path) == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.found", weights_only=False) for rank in range(2))
    assert (first[0], second[0]) == (None, True)
    assert (first[1], second[1]) == (True, None)
    assert sorted([first[2], second[2]]) == [False, True]


def test_what_fails_alike_on_all_processes_is_printed_by_one(tmp_path: Path) -> None:
    assert run_processes(2, rank_cases.fail_outside_a_phase, tmp_path) == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.found", weights_only=False) for rank in range(2)]
    assert sorted(name for name, _, _ in found) == ["PeerFailed", "RunError"]
    assert {(sentence, status) for _, sentence, status in found} == {("the loss was not finite", 1)}


@pytest.mark.parametrize(
    ("wanted", "size", "here", "workers"),
    [(0, 1, 1, 0), (3, 1, 1, 3), (200, 1, 1, 16), (0, 2, 2, 2), (200, 2, 2, 8), (1, 8, 8, 1), (5, 8, 8, 4)],
)
def test_workers_that_check_answers_are_bounded_by_the_cores(
    monkeypatch: pytest.MonkeyPatch, wanted: int, size: int, here: int, workers: int
) -> None:
    """Four cores: at most four workers for each that this process has; a run may go on with fewer cores than it began with."""
    from doubles.messages import heard
    from luspo_cli.processes.accelerate import rubric_workers
    from luspo_cli.processes.ranks import Ranks

    monkeypatch.setattr("luspo_cli.processes.ranks.usable_cores", lambda: 4)
    with heard() as said:
        assert rubric_workers(wanted, Ranks(0, size, here)) == workers
    assert bool(said) is (wanted > workers > 0)
    if said:
        assert f"reward.workers = {wanted} is more than 4 for each of this process's" in said[0]
        assert said[0].endswith(f"processor cores: {workers} check answers")
