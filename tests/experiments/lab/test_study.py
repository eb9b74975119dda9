"""What `luspo lab` answers: the table, the causes one at a time, a sweep, and its refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from luspo_cli.app import app
from luspo_cli.config.lab import resolve_lab
from luspo_cli.config.objective import NAMED_OBJECTIVES
from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.experiment import run_experiment
from luspo_cli.experiments.lab.study import parse_sweep
from luspo_cli.experiments.lab.summary import summarise
from luspo_cli.experiments.lab.switches import CAUSES, attribute

QUICK = ["--seeds", "3", "--set", "run.steps=10"]


def lab(tmp_path: Path, *options: str) -> dict:
    result = CliRunner().invoke(app, ["lab", *options, "--figure", str(tmp_path / "lab.svg"), "--json"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "lab.svg").read_bytes().startswith(b"<?xml")
    return json.loads(result.stdout)


def test_the_table_is_the_mean_over_seeds_of_the_last_tenth() -> None:
    history = run_experiment(resolve_lab("gspo", sets=["run.steps=20"]), 4)
    row = summarise(history, "gspo")
    final = (history.length[:, 18] + history.length[:, 19]) / 2
    assert row.estimates["length_final"].mean == pytest.approx(float(final.mean()), rel=1e-12)
    # Student's t of 3 degrees of freedom.
    half = 3.182446305 * float(final.std()) / 2
    assert row.estimates["length_final"].half_width == pytest.approx(half, rel=1e-9)
    assert row.spread == pytest.approx(float(final.std()))
    assert row.estimates["drift"].mean == pytest.approx(float((final - history.length[:, 0]).mean()))


def test_objectives_side_by_side(tmp_path) -> None:
    found = lab(tmp_path, "--objectives", "gspo,luspo", *QUICK)
    assert [row["label"] for row in found["rows"]] == ["gspo", "luspo"]
    assert found["rows"][0]["estimates"]["length_start"]["mean"] == pytest.approx(21.5)
    assert found["rows"][0]["seeds"] == 3
    assert found["effects"] == []


def test_a_sweep_has_each_objective_with_each_value(tmp_path) -> None:
    found = lab(tmp_path, "--objectives", "gspo,luspo", "--sweep", "update.mini_batches=1,4", *QUICK)
    assert found["swept"] == "update.mini_batches"
    assert [row["label"] for row in found["rows"]] == ["gspo 1", "gspo 4", "luspo 1", "luspo 4"]
    clipped = [row["estimates"]["clipped_low"]["mean"] for row in found["rows"]]
    # With one mini-batch the policy is its own old policy: nothing can be clipped.
    assert clipped[0] == clipped[2] == 0
    assert min(clipped[1], clipped[3]) > 0


def test_swept_words_are_written_without_quotes(tmp_path) -> None:
    found = lab(tmp_path, "--objectives", "gspo", "--sweep", "data.profile=neutral,pays", *QUICK)
    assert [row["label"] for row in found["rows"]] == ["gspo neutral", "gspo pays"]


def test_causes_are_taken_out_one_at_a_time(tmp_path) -> None:
    found = lab(tmp_path, "--objectives", "luspo", "--switch", *QUICK)
    effects = {effect["cause"]: effect for effect in found["effects"]}
    assert list(effects) == list(CAUSES)
    assert effects["1/|y|"]["effect"] is None  # luspo has no such weight
    assert effects["response limit"]["effect"] is None  # nothing reaches it
    base = found["rows"][0]["estimates"]["length_final"]["mean"]
    for effect in effects.values():
        if effect["effect"] is not None:
            assert effect["effect"]["mean"] == pytest.approx(base - effect["final_without"]["mean"], abs=1e-9)


def test_what_is_taken_out_is_gone() -> None:
    config = resolve_lab("gspo", sets=["run.steps=8", "rollout.max_response_tokens=60"])
    base = run_experiment(config, 2)
    without = {cause: remove(config, base) for cause, remove in CAUSES.items()}
    histories = {cause: run_experiment(other, 2) for cause, other in without.items() if other is not None}
    assert list(histories) == [cause for cause in CAUSES if cause != "balance of the sides"]  # its bounds are fixed
    assert float(base.clip_low.mean()) > 0 < float(base.clip_high.mean())
    assert float(histories["low side of the clip"].clip_low.max()) == 0
    assert float(histories["high side of the clip"].clip_high.max()) == 0
    assert float(histories["later mini-batches"].clip_low.max()) == 0
    assert float(histories["both sides"].kept_advantage.abs().max()) < 1e-12
    assert float(histories["response limit"].truncated.max()) == 0 < float(base.truncated.max())
    weighted = without["1/|y|"]
    assert weighted is not None
    assert weighted.objective.aggregation == "seq-mean-token-sum"
    assert weighted.objective.clip_low == config.objective.clip_low
    plain = without["std of the advantage"]
    assert plain is not None
    assert plain.objective.advantage == "group_mean"
    # SGD's learning rate is chosen so that its steps are as long as AdamW's; the trajectory differs, the scale does not.
    lengths = [float(found.update_norm.mean()) for found in (histories["Adam"], base)]
    assert lengths[0] == pytest.approx(lengths[1], rel=0.5)


@pytest.mark.parametrize("name", NAMED_OBJECTIVES)
def test_every_objective_can_be_taken_apart(name: str) -> None:
    config = resolve_lab(name, sets=["run.steps=2"])
    effects = attribute(config, run_experiment(config, 2))
    assert [effect.cause for effect in effects] == list(CAUSES)
    assert all(torch.isfinite(torch.tensor(e.effect.mean)) for e in effects if e.effect is not None)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("update.mini_batches=1,2,4", [1, 2, 4]),
        ("update.betas=[0.9, 0.99],[0.5, 0.99]", [[0.9, 0.99], [0.5, 0.99]]),
        ("data.profile=neutral,pays", ["neutral", "pays"]),
        ("update.learning_rate=1e-2,0.02", [0.01, 0.02]),
    ],
)
def test_a_sweep_is_read_as_toml_where_it_is_toml(text: str, values: list) -> None:
    assert parse_sweep(text) == (text.partition("=")[0], values)


@pytest.mark.parametrize(
    "text", ["update.mini_batches", "mini_batches=1,2", "update.mini_batches=", "update.mini_batches=4"]
)
def test_a_sweep_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--sweep"):
        parse_sweep(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--switch", "--sweep", "update.mini_batches=1,2"], "--switch and --sweep ask two questions"),
        (["--objectives", "gsop"], "Unknown objective 'gsop' (did you mean 'gspo'?)"),
        (["--set", "update.lr=1"], "unknown key 'update.lr'"),
        (["--sweep", "update.mini_batches=1,3"], "must be a multiple of update.mini_batches (3)"),
        (["--sweep", "update.mini_batches=1,1"], "names a value twice: 1; name each value once."),
        (["--sweep", "update.learning_rate=0.01,0.02,1e-2"], "names a value twice: 0.01"),
        (["--sweep", "update.learning_rate=1,1.0"], "names a value twice: 1.0"),
        (["--sweep", "data.profile=pays,pays"], "names a value twice: pays"),
        (["--sweep", "update.mini_batches=1,x"], "--sweep: update.mini_batches = 'x'"),
        (["--sweep", "rollout.lag=1,2"], "--sweep: unknown key 'rollout.lag': the lab does not model this key"),
        (["--sweep", "update.lr=1,2"], "--sweep: unknown key 'update.lr'"),
        (
            ["--sweep", "objective.name=gspo,luspo"],
            "--sweep objective.name: the lab itself sets this; use --objectives.",
        ),
        (["--sweep", "update.steps=2020-01-01,2020-01-02"], "--sweep: unknown key 'update.steps'"),
        (
            ["--sweep", "update.betas=[0.9, 0.99],[0.5, 0.99]", "--set", "update.optimizer=sgd"],
            "--sweep: update.betas is AdamW's",
        ),
        (
            ["--sweep", "update.mini_batches=1,2", "--set", "update.mini_batches = 4"],
            "--set and --sweep both give update.mini_batches: leave --set update.mini_batches out.",
        ),
        (["--objectives", ""], "--objectives is empty"),
        (["--preset", ""], "preset"),
        (["--from", "run", "--objectives", ""], "--objectives does not go with --from"),
        (["--preset", "tinny"], "unknown preset 'tinny'"),
        (["--figure", "lab.jpg"], "lab.jpg has no suffix that a figure can be written as"),
    ],
)
def test_a_wish_that_does_not_fit_is_one_sentence(options: list[str], message: str) -> None:
    result = CliRunner().invoke(app, ["lab", "--seeds", "2", *options])
    assert isinstance(result.exception, UsageError)
    assert message in str(result.exception)


def test_for_people_there_is_a_table(tmp_path) -> None:
    out = tmp_path / "lab.png"
    result = CliRunner().invoke(app, ["lab", "--objectives", "gspo", "--switch", *QUICK, "--figure", str(out)])
    assert result.exit_code == 0, result.output
    assert "Without one cause" in result.stdout
    assert "low side of the clip" in result.stdout
    assert f"figure: {out}" in result.stdout
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_balanced_range_has_no_single_side_to_take_out() -> None:
    config = resolve_lab("gspo", sets=["run.steps=8", "objective.clip_band=balanced"])
    base = run_experiment(config, 2)
    without = {cause: remove(config, base) for cause, remove in CAUSES.items()}
    assert without["low side of the clip"] is without["high side of the clip"] is None
    fixed = without["balance of the sides"]
    assert fixed is not None
    assert fixed.objective == resolve_lab("gspo").objective
    neither = without["both sides"]
    assert neither is not None
    history = run_experiment(neither, 2)
    assert float(history.clip_low.max()) == float(history.clip_high.max()) == 0


@pytest.mark.parametrize(
    "sets", [[], ["objective.clip_on=sum", "objective.clip_low=0.01", "objective.clip_high=0.0125"]]
)
def test_a_balanced_range_leaves_little_mean_advantage(sets: list[str]) -> None:
    """luspo, whose sequences count |A_i| each: what both sides cut adds up to 0, but for parts of single sequences."""
    histories = [
        run_experiment(resolve_lab("luspo", sets=[*sets, f"objective.clip_band={band}"]), 8)
        for band in ("fixed", "balanced")
    ]
    kept = [float(history.kept_advantage.mean()) for history in histories]
    assert kept[0] > 0.03
    assert abs(kept[1]) < 0.002
    assert float(histories[1].clip_low.mean()) > 0.01 < float(histories[1].clip_high.mean())


def test_seeds_balance_apart() -> None:
    config = resolve_lab("gspo", sets=["run.steps=6", "objective.clip_band=balanced"])
    together = run_experiment(config, 3).length
    alone = run_experiment(config.model_copy(update={"run": config.run.model_copy(update={"seed": 2})}), 1).length
    assert together[2].tolist() == pytest.approx(alone[0].tolist(), rel=1e-9)
