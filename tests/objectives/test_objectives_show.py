"""`luspo objectives show` for our own runs, names and presets."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from doubles.reports import write_run
from luspo_cli.analysis.history import read_run
from luspo_cli.analysis.variants import split_into_variants
from luspo_cli.app import app
from luspo_cli.commands.objectives_show import SHOW_EXAMPLES
from luspo_cli.config.executed import Counts, off_policy
from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import UsageError
from luspo_cli.report.tables import formulas

invoke = partial(CliRunner().invoke, app)


def shown(*words: str) -> dict[str, Any]:
    done = invoke(["objectives", "show", *words, "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def stored(tmp_path: Path, *sets: str, objective: str = "luspo") -> Path:
    run = write_run(tmp_path, "a")
    config = resolve_train(preset="tiny", objective=objective, sets=sets).model_dump(mode="json")
    (run / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return run


def test_a_run_shows_the_formula_of_the_report(tmp_path: Path) -> None:
    run = stored(tmp_path, "objective.clip_high=0.003", "objective.kl_coefficient=0.01")
    answer = shown(str(run))
    (of_report,) = formulas(split_into_variants([read_run(run)]))
    assert answer["equation"] == of_report["equation"]
    assert answer["rows"] == of_report["rows"]
    assert answer["equation"] == (
        "L = −(1/N) Σ_i |y_i| · min(s_i A_i, clip(s_i, 1−0.002, 1+0.003) A_i) + 0.01 · (1/N) Σ_i Σ_t k3_it"
    )


def test_every_number_is_that_of_the_run(tmp_path: Path) -> None:
    sets = ("rollout.problems=6", "rollout.group_size=4", "update.mini_batches=3", "rollout.max_response_tokens=50")
    rows = dict(shown(str(stored(tmp_path, *sets, objective="dapo_prompt_mean")))["rows"])
    assert rows["N, sequences of a mini-batch"] == "8"
    assert rows["B, groups of a mini-batch"] == "2"
    assert rows["L, the response limit"] == "50 tokens"
    assert "3 optimizer steps" in rows["off-policy by"]
    rows = dict(shown(str(stored(tmp_path / "b", *sets, objective="dapo")))["rows"])
    assert rows["M, tokens of a mini-batch"].endswith("at most N L = 400")
    assert "B, groups of a mini-batch" not in rows


def test_masked_responses_are_in_no_count(tmp_path: Path) -> None:
    rows = dict(shown(str(stored(tmp_path, "reward.truncated=mask")))["rows"])
    assert rows["reward.truncated"] == "mask"
    assert rows["N, sequences of a mini-batch"] == "64, less those that the limit cut"


def test_smaller_moments_are_shown(tmp_path: Path) -> None:
    assert dict(shown(str(stored(tmp_path, "update.moments=8bit")))["rows"])["update.moments"] == "8bit"
    assert "update.moments" not in dict(shown(str(stored(tmp_path / "b", "update.optimizer=adamw-8bit")))["rows"])


def test_where_off_policyness_comes_from() -> None:
    assert off_policy(Counts(updates=1)).startswith(
        "nothing: each response is trained on once, a batch makes 1 optimizer step,"
    )
    assert off_policy(Counts(updates=4)).endswith("in the last one the responses are 3 behind")
    assert "up to 11 optimizer steps old" in off_policy(Counts(updates=4, lag=2))
    assert "trained on 2 times" in off_policy(Counts(updates=8, epochs=2))


def test_a_name_with_a_preset_is_what_the_preset_would_run() -> None:
    answer = shown("gspo", "--preset", "tiny")
    config = resolve_train(preset="tiny", objective="gspo").model_dump(mode="json")
    assert answer["config"] == config["objective"]
    assert dict(answer["rows"])["N, sequences of a mini-batch"] == "64"
    assert "N, sequences of a mini-batch" not in dict(shown("gspo")["rows"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lupso"], r"lupso is neither a folder, nor a file, nor an objective \(did you mean 'luspo'\?\)"),
        (["custom"], "must set advantage"),
        (["luspo", "--preset", "nano"], "unknown preset 'nano'"),
        (["{folder}"], r"config.json cannot be read"),
        (["{folder}", "--preset", "tiny"], "--preset goes with an objective's name"),
    ],
)
def test_what_cannot_be_shown_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    error = invoke(["objectives", "show", *(word.format(folder=tmp_path) for word in words)]).exception
    assert isinstance(error, UsageError)
    with pytest.raises(UsageError, match=said):
        raise error


def test_an_objective_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"objective": {"name": "luspo2"}}', encoding="utf-8")
    error = invoke(["objectives", "show", str(tmp_path)]).exception
    assert "an objective that this version does not know" in str(error)


def test_words_without_a_command_list_as_before() -> None:
    listed = invoke(["objectives", "luspo", "gspo", "--json"])
    assert list(json.loads(listed.stdout)) == ["luspo", "gspo"]
    assert invoke(["objectives", "list", "luspo", "gspo", "--json"]).stdout == listed.stdout
    assert "Objectives" in invoke(["objectives"]).stdout


def test_examples_that_need_no_run() -> None:
    for example in SHOW_EXAMPLES:
        if "runs/" not in example and "." not in example:
            assert invoke(example.split()[1:]).exit_code == 0
