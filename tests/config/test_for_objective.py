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
        ("[for_objective.gspo]\nclip_lo = 1e-3\n", "unknown key 'objective.clip_lo'.*clip_low"),
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


def test_a_part_that_the_name_fixes_cannot_be_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[for_objective.gspo]\nratio = "token"\n')
    with pytest.raises(UsageError, match="gspo fixes ratio"):
        resolve_train(preset="tiny", objective="gspo", config_file=file)
