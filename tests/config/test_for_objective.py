"""`[for_objective.NAME]`: free keys that hold when that objective is chosen, below --set, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import UsageError


def test_the_tiny_probe_compares_aggregations_only() -> None:
    gspo, luspo = (resolve_train(preset="tiny", objective=name).objective for name in ("gspo", "luspo"))
    assert (gspo.clip_low, gspo.clip_high) == (luspo.clip_low, luspo.clip_high) == (2e-3, 2.5e-3)
    assert (gspo.ratio, gspo.surrogate, gspo.advantage) == (luspo.ratio, luspo.surrogate, luspo.advantage)
    assert gspo.aggregation != luspo.aggregation


def test_set_wins_and_other_objectives_are_untouched() -> None:
    own = ["objective.clip_low=3e-4", "objective.clip_high=4e-4"]
    gspo = resolve_train(preset="tiny", objective="gspo", sets=own).objective
    assert (gspo.clip_low, gspo.clip_high) == (3e-4, 4e-4)
    assert resolve_train(preset="tiny", objective="dapo").objective.clip_high == 0.28
    assert resolve_train(preset="tiny", objective="dr_grpo").objective.clip_high == 0.2
    chosen_by_set = resolve_train(preset="tiny", sets=["objective.name=gspo"]).objective
    assert (chosen_by_set.name, chosen_by_set.clip_low) == ("gspo", 2e-3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[for_objective.gsop]\nclip_low = 1e-3\n", "unknown objective 'gsop' .did you mean 'gspo'"),
        ("[for_objective.gspo]\nclip_lo = 1e-3\n", "'clip_lo' cannot be set here .did you mean 'clip_low'"),
        ("[for_objective.luspo]\nnonsense = 1\n", "'nonsense' cannot be set here"),
        ("[for_objective.gspo]\nname = 'grpo'\n", "'name' cannot be set here"),
        ("[for_objective.gspo]\nratio = 'token'\n", "'ratio' cannot be set here"),
        ('[for_objective.gspo]\nclip_low = "x"\n', "clip_low"),
        ("for_objective = 3\n", "for_objective"),
    ],
)
def test_bad_tables_are_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        resolve_train(preset="tiny", objective="gspo", config_file=file)
    assert "mine.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("loss.py:nope", "has no 'nope'; it has"),
        ("./loss.py:mine", r"this is loss\.py:mine, spelled in another way"),
        ("loss.py", r"'loss\.py' is no function: write path/to/file\.py:name"),
        ("gone.py:mine", r"there is no file gone\.py"),
        ("loss.py:other", None),
        ("loss.py:mine", None),
    ],
)
def test_a_table_for_an_own_objective_that_no_run_can_mean_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, section: str, message: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    parts = "= OwnObjective('gspo', aggregation=lambda batch: 1 / batch.sequences)"
    Path("loss.py").write_text(
        f"from luspo_cli.objectives import OwnObjective\nmine {parts}\nother {parts}\n", encoding="utf-8"
    )
    file = tmp_path / "mine.toml"
    file.write_text(f'[for_objective."{section}"]\nclip_low = 0.125\n')
    if message:
        with pytest.raises(UsageError, match=message):
            resolve_train(preset="tiny", objective="loss.py:mine", config_file=file)
        return
    found = resolve_train(preset="tiny", objective="loss.py:mine", config_file=file).objective
    assert (found.clip_low == 0.125) == (section == "loss.py:mine")


def test_an_objective_is_named_once() -> None:
    with pytest.raises(UsageError, match=r"--objective luspo and --set objective\.name=gspo: give one of the two"):
        resolve_train(preset="tiny", objective="luspo", sets=["objective.name=gspo"])
    assert resolve_train(preset="tiny", objective="gspo", sets=["objective.name=gspo"]).objective.name == "gspo"


@pytest.mark.parametrize(
    ("setting", "message"),
    [("for_objective.gspo.clip_low=1e-3", "belongs in a file"), ("objective.name=[1]", "objective.name")],
)
def test_settings_that_are_no_choice(setting: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_train(preset="tiny", objective="gspo", sets=[setting])
