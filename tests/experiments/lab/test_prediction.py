"""`luspo lab --from RUN`: what is fitted to a run's first steps, what follows, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from synthetic_run import write_run
from typer.testing import CliRunner

from luspo_cli.analysis.history import read_run
from luspo_cli.app import app
from luspo_cli.config.lab import LabRun, resolve_lab
from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.experiment import run_experiment
from luspo_cli.experiments.lab.fitting import fit
from luspo_cli.experiments.lab.measurements import KINDS, Moves, StoredStep, coupling, kinds_of
from luspo_cli.experiments.lab.prediction import predict_runs
from luspo_cli.experiments.lab.start_values import measure_start
from luspo_cli.metrics.intervals import Estimate

LAW = (
    "model.length=12", "model.accuracy=0.6", "model.answers=10", "model.answer_noise=0.5", "model.prompt_types=64",
    "model.skill_spread=1.0", "update.answer_rate=0.1", "rollout.problems=128", "run.steps=12",
)  # fmt: skip


def law(*sets: str, objective: str = "gspo") -> LabRun:
    return resolve_lab(objective, sets=[*LAW, *sets])


def fitted(folder: Path) -> LabRun:
    run = read_run(folder)
    return fit(run, measure_start([run]))


@pytest.mark.parametrize(("columns", "source"), [(True, "answers' log-ratios"), (False, "kl_old")])
def test_a_fit_finds_the_law_that_made_the_run(tmp_path, columns: bool, source: str) -> None:
    config = law()
    folder = write_run(tmp_path / "run", config, columns=columns)
    found, start = fitted(folder), measure_start([read_run(folder)])
    assert start.size.source == source
    # 2,048 responses a step: standard errors are 0.2 tokens, 0.006 of accuracy.
    assert found.model.length == pytest.approx(12, abs=0.6)
    assert found.model.accuracy == pytest.approx(0.6, abs=0.025)
    assert found.model.answer_noise == pytest.approx(0.5, rel=0.15)
    assert found.model.skill_spread == pytest.approx(1.0, abs=0.25)
    assert (found.update.learning_rate, found.update.answer_rate) == (0.02, 0.1)
    assert found.update.gradient_clip == pytest.approx(1.0, rel=0.15)
    assert found.objective == config.objective
    assert (found.rollout.problems, found.rollout.group_size, found.update.mini_batches) == (128, 16, 4)
    assert found.run.steps == 12


def test_the_shape_of_the_length_distribution_is_found(tmp_path) -> None:
    """Few stops among the first four positions, many among the next four."""
    config = law("model.stop_profile=[-2.0, 1.0, 1.0]", "model.stop_bin_tokens=4", "update.mini_batches=1")
    found = fitted(write_run(tmp_path / "run", config))
    fine, width = found.model.stop_profile, found.model.stop_bin_tokens
    assert width in (2, 3)  # so the second bin may have positions of both kinds
    assert [fine[place] - fine[0] for place in range(2, 6)] == pytest.approx([3.0] * 4, abs=0.5)


def moved(step: int, number: int, right: float, stop: float) -> Moves:
    kinds = dict.fromkeys(KINDS) | {"right": (right, 0.1), "stop": (stop, 0.1)}
    return Moves(step, number, 64, 0.6, kinds)


def test_the_coupling_is_the_slope_of_moves_from_mini_batch_to_mini_batch() -> None:
    # log p(right) moves by 1 - 0.6 of its logit: logits moved by 0.5, 0.25 and -0.25, the stopping logit by 0.1, 0.05 and -0.05.
    one = [moved(1, 0, 0.0, 0.0), moved(1, 1, 0.2, 0.1), moved(1, 2, 0.3, 0.15), moved(1, 3, 0.2, 0.1)]
    found = coupling([one])
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.2), 3)
    assert found.half_width == pytest.approx(0, abs=1e-9)
    # The same moves the other way round in a second run: no slope, and an interval around 0.
    other = [moved(1, 0, 0.0, 0.0), moved(1, 1, 0.2, -0.1), moved(1, 2, 0.3, -0.15), moved(1, 3, 0.2, -0.1)]
    both = coupling([one, other])
    assert both is not None
    assert both.mean == pytest.approx(0, abs=1e-12)
    # Six points with residuals 0.1, 0.05, 0.05 twice and sum of squares 2 x 0.375: t(5) = 2.5706.
    assert both.half_width == pytest.approx(2.570581836 * (0.03 / 5 / 0.75) ** 0.5)
    assert coupling([one[:3]]) is None


def test_a_coupling_that_cannot_be_told_from_none_is_not_used(tmp_path) -> None:
    found = measure_start([read_run(write_run(tmp_path / "run", law("run.steps=3")))])
    assert found.coupling is not None
    assert found.coupling.n == 9
    assert found.coupled == 0
    sure = replace(found, coupling=Estimate(0.3, 0.1, 0.5, 9))
    assert sure.coupled == 0.3


def test_runs_that_cannot_tell_everything_say_so(tmp_path) -> None:
    older = measure_start([read_run(write_run(tmp_path / "older", law(), columns=False))])
    assert older.profile
    assert any("no log-ratios" in note for note in older.notes)
    bare = measure_start([read_run(write_run(tmp_path / "bare", law(), stored=()))])
    assert (bare.profile, bare.skill_spread, bare.coupling, bare.stored) == ((), None, None, ())
    assert any("only the mean is fitted" in note for note in bare.notes)
    once = measure_start([read_run(write_run(tmp_path / "once", law("update.mini_batches=1")))])
    assert once.size.source == "none"
    assert any("not recorded" in note for note in once.notes)


PLAIN = {
    "objective": {"entropy_coefficient": 0.0},
    "reward": {"accuracy_weight": 1.0, "function": []},
    "rollout": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
    "update": {"weight_decay": 0.0},
}


@pytest.mark.parametrize(
    ("section", "values", "said"),
    [
        ("reward", {"function": [{"function": "own.py:paid"}]}, "the reward has terms beside accuracy"),
        (
            "reward",
            {"function": [{"function": "own.py:paid"}], "accuracy_weight": 0.0},
            "the reward does not pay accuracy (reward.accuracy_weight = 0)",
        ),
        ("rollout", {"temperature": 0.7}, "rollout.temperature = 0.7 is not in the lab"),
        ("rollout", {"top_p": 0.9}, "rollout.top_p = 0.9 is not in the lab"),
        ("rollout", {"top_k": 20}, "rollout.top_k = 20 is not in the lab"),
        ("update", {"weight_decay": 0.1}, "update.weight_decay = 0.1 is not in the lab"),
        ("objective", {"entropy_coefficient": 0.01}, "objective.entropy_coefficient = 0.01 is not in the lab"),
    ],
)
def test_what_the_lab_does_not_model_is_named(tmp_path, section: str, values: dict, said: str) -> None:
    folder = write_run(tmp_path / "run", law("run.steps=3"), stored=())
    stored = json.loads((folder / "config.json").read_text())
    plain = {key: stored.get(key, {}) | PLAIN.get(key, {}) for key in stored | PLAIN}
    (folder / "config.json").write_text(json.dumps(plain))
    before = measure_start([read_run(folder)]).notes
    (folder / "config.json").write_text(json.dumps(plain | {section: plain[section] | values}))
    (note,) = set(measure_start([read_run(folder)]).notes) - set(before)
    assert said in note


def test_a_run_with_an_entropy_term_is_predicted_without_it(tmp_path) -> None:
    folder = write_run(tmp_path / "run", law())
    before, stored = fitted(folder), json.loads((folder / "config.json").read_text())
    stored["objective"]["entropy_coefficient"] = 0.01
    (folder / "config.json").write_text(json.dumps(stored))
    assert fitted(folder) == before
    row = predict_runs([folder], 2, ["objective.entropy_coefficient=0"]).rows[0]
    assert row.config == before


def test_a_response_limit_below_the_labs_own_length_is_fitted(tmp_path) -> None:
    found = fitted(write_run(tmp_path / "run", law("rollout.max_response_tokens=16", "run.steps=4")))
    assert found.rollout.max_response_tokens == 16
    assert found.model.length == pytest.approx(12, abs=1.5)


def test_a_prediction_is_the_experiment_that_was_fitted(tmp_path) -> None:
    folder = write_run(tmp_path / "gspo-seed0", law("run.steps=20"))
    row = predict_runs([folder], 6).rows[0]
    history = run_experiment(row.config, 6)
    assert row.final == pytest.approx(float(history.length[:, 18:].mean()), rel=1e-12)
    assert row.curve.mean == pytest.approx(history.length.mean(0).tolist(), rel=1e-12)
    assert row.low < row.final < row.high
    lengths = [json.loads(line)["response_length/mean"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert row.no_change == pytest.approx(sum(lengths[:3]) / 3)
    assert row.real is not None
    assert row.real.mean == pytest.approx((lengths[18] + lengths[19]) / 2)
    assert row.error == pytest.approx(row.final - row.real.mean)
    assert row.no_change_error == pytest.approx(row.no_change - row.real.mean)
    assert row.same_direction == ((row.final < row.no_change) == (row.real.mean < row.no_change))


def test_a_fit_reads_nothing_after_step_three(tmp_path) -> None:
    folder = write_run(tmp_path / "run", law(), stored=(1, 2, 3, 4))
    before = fitted(folder)
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:4]))
    (folder / "rollouts" / "step-000004.parquet").write_bytes(b"torn")
    assert fitted(folder) == before


def test_seeds_of_one_recipe_are_one_row_and_the_figure_has_the_tables_numbers(tmp_path) -> None:
    for seed in range(2):
        for objective in ("gspo", "luspo"):
            config = law("rollout.problems=16", f"run.seed={seed}", objective=objective)
            write_run(tmp_path / "runs" / f"{objective}-seed{seed}", config)
    out = tmp_path / "from.svg"
    result = CliRunner().invoke(
        app, ["lab", "--from", str(tmp_path / "runs"), "--seeds", "3", "--json", "--figure", str(out)]
    )
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"<?xml")
    found = json.loads(result.stdout)
    assert [row["label"] for row in found["predictions"]] == ["gspo", "luspo"]
    assert [len(row["runs"]) for row in found["predictions"]] == [2, 2]
    shown = predict_runs([tmp_path / "runs"], 3)
    for row, panel in zip(found["predictions"], shown.figure.panels, strict=True):
        predicted, *real = panel.curves
        assert panel.heading == row["label"]
        assert list(predicted.mean) == row["curve"]["mean"]
        assert predicted.mean[-1] == pytest.approx(row["predicted"]["final"])  # one step is the last tenth of twelve
        assert [curve.mean[-1] for curve in real] == [run["final"] for run in row["runs"]]
        assert row["real"]["mean"] == pytest.approx(sum(run["final"] for run in row["runs"]) / 2)


def test_an_unfinished_run_is_predicted_and_has_no_real_end(tmp_path) -> None:
    folder = write_run(tmp_path / "run", law())
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:5]))
    out = str(tmp_path / "from.svg")
    result = CliRunner().invoke(app, ["lab", "--from", str(folder), "--seeds", "2", "--figure", out])
    assert result.exit_code == 0, result.output
    assert "no real final length yet: step 5 of 12" in " ".join(result.stdout.split())
    row = predict_runs([folder], 2).rows[0]
    assert (row.real, row.error, row.same_direction) == (None, None, None)
    assert row.curve.x[-1] == 12


def test_a_key_that_is_set_replaces_what_was_fitted(tmp_path) -> None:
    folder = write_run(tmp_path / "run", law())
    row = predict_runs([folder], 2, ["objective.clip_low=1.0", "model.length=30"]).rows[0]
    assert row.config.objective.clip_low == 1.0
    assert row.config.model.length == 30


def set_lag(run: Path, lag: int) -> None:
    config = json.loads((run / "config.json").read_text())
    config["rollout"]["lag"] = lag
    (run / "config.json").write_text(json.dumps(config))


def test_what_cannot_be_fitted_is_refused(tmp_path) -> None:
    short = write_run(tmp_path / "short", law("run.steps=2"), stored=(1, 2))
    with pytest.raises(UsageError, match=r"short has 2 recorded steps and a fit reads 3: wait until it has them"):
        predict_runs([short], 2)
    over = write_run(tmp_path / "over", law("run.steps=3"), stored=(1, 2, 3))
    with pytest.raises(
        UsageError, match=r"over is planned for 3 steps and a fit reads steps 1 to 3, so nothing is left to"
    ):
        predict_runs([over], 2)
    row = predict_runs([over], 2, ["run.steps=4"]).rows[0]
    assert (row.real, len(row.curve.x)) == (None, 4)
    right = write_run(tmp_path / "right", law())
    metrics = [
        json.loads(line) | {"reward/accuracy/mean": 1.0} for line in (right / "metrics.jsonl").read_text().splitlines()
    ]
    (right / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    with pytest.raises(UsageError, match="the accuracy of steps 1 to 3 is 1; with all responses alike"):
        predict_runs([right], 2)
    for lag, first in ((1, "1, which the lab does not model: its first step"), (2, "2, .* its first 2 steps")):
        set_lag(right, lag)
        with pytest.raises(UsageError, match=rf"right has rollout\.lag = {first} trains? nothing, .* without a lag"):
            predict_runs([right], 2)
    log = tmp_path / "trainer_state.json"
    log.write_text(
        json.dumps({"log_history": [{"step": step, "completions/mean_length": 9.0} for step in (1, 2, 3, 4)]})
    )
    with pytest.raises(UsageError, match="is a log of trl: a fit needs the configuration"):
        predict_runs([log], 2)


@pytest.mark.parametrize(
    "option", [["--objectives", "gspo"], ["--switch"], ["--sweep", "a.b=1,2"], ["--preset", "tiny"]]
)
def test_a_recipe_beside_a_run_is_refused(option: list[str]) -> None:
    result = CliRunner().invoke(app, ["lab", "--from", "runs/none", *option])
    assert isinstance(result.exception, UsageError)
    assert f"{option[0]} does not go with --from" in str(result.exception)


def without_characters(folder: Path) -> None:
    """Make the stored texts those of a model whose tokens are words."""
    for file in (folder / "rollouts").iterdir():
        table = pq.read_table(file)
        texts = pa.array([text.replace(".", "so ") for text in table["response"].to_pylist()])
        pq.write_table(table.set_column(table.schema.get_field_index("response"), "response", texts), file)


def test_a_model_of_words_is_fitted_to_whole_sequences(tmp_path) -> None:
    folder = write_run(tmp_path / "run", law())
    without_characters(folder)
    start = measure_start([read_run(folder)])
    assert start.size.source == "sequences' log-ratios"
    assert (start.coupling, start.coupled) == (None, 0)
    assert any("each token is one character" in note for note in start.notes)
    assert fitted(folder).model.answer_noise == pytest.approx(0.5, rel=0.2)


def test_the_size_is_read_in_clip_fractions_where_nothing_else_is(tmp_path) -> None:
    folder = write_run(tmp_path / "run", law(), stored=())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["policy/kl_old"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    start = measure_start([read_run(folder)])
    assert start.size.source == "clip fractions"
    assert start.size.by_step[2] == lines[1]["objective/clip_low_fraction"] + lines[1]["objective/clip_high_fraction"]
    assert any("clip fractions alone" in note for note in start.notes)


def test_where_an_answer_stands_is_known_in_texts_of_characters_alone() -> None:
    columns = {
        "response": ["....#12", "..7", "....#12", "......", "....#12"],
        "extracted": ["12", "7", "1", None, "12"],
        "response_length": [8, 4, 8, 6, 7],
        "stop_reason": ["end", "end", "end", "length", "length"],
    }
    found = kinds_of([StoredStep(1, columns)])[0]
    assert found[:2] == [(4, 4, 5, 7), (2, None, 2, 3)]
    assert found[2:] == [None] * 3
    # One of four ended responses has fewer tokens than characters: that the others fit may be chance.
    words = {
        key: [*values, value] for (key, values), value in zip(columns.items(), ["so 12", "12", 3, "end"], strict=True)
    }
    assert kinds_of([StoredStep(1, words)])[0] == [None] * 6
