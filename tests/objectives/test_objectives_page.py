"""docs/objectives.md and `luspo objectives` say what the table says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from luspo_cli.commands.objectives import OBJECTIVES_EXAMPLES, objectives_cli
from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.objective_text import PAPERS, chosen_names, describe
from luspo_cli.config.peers import trl_settings, verl_settings
from luspo_cli.errors import UsageError

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "objectives.md").read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL))
VALUES = (
    "clip_low", "clip_high", "sapo_temperature_positive", "sapo_temperature_negative", "length_exponent",
    "vespo_k_positive", "vespo_k_negative", "vespo_lambda_positive", "vespo_lambda_negative",
)  # fmt: skip

app = typer.Typer()
app.command()(objectives_cli)


@pytest.mark.parametrize("name", NAMED_OBJECTIVES)
def test_every_name_has_an_entry_with_the_values_of_the_table(name: str) -> None:
    entry = ENTRIES[name]
    assert entry.count("$$") == 2
    for label in ("- Paper: ", "- Our setting: ", "- TRL: ", "- verl: "):
        assert label in entry
    written = {key: float(value) for key, value in re.findall(r"`(\w+) = ([\d.e-]+)`", entry)}
    assert written == {key: value for key in VALUES if (value := getattr(resolve(name), key)) is not None}
    number = re.search(r"arXiv (\d{4}\.\d{5})", PAPERS[name])
    assert number
    assert number.group(1) in entry


def test_no_entry_without_a_name() -> None:
    assert set(ENTRIES) == {*NAMED_OBJECTIVES, "custom"}


def test_identifiers_of_the_symbol_table_exist() -> None:
    table = PAGE.split("## Symbols and identifiers")[1].split("Every loss below")[0]
    source = "".join(
        path.read_text(encoding="utf-8")
        for path in (Path(__file__).resolve().parents[2] / "luspo_cli").rglob("*.py")
        if path.parent.name in ("objectives", "config") or path.name in ("advantages.py", "records.py")
    )
    rows = [line.split(" | ")[-1] for line in table.splitlines() if line.startswith("| $")]
    identifiers = {word for row in rows for word in re.findall(r"`([A-Za-z_.]+)", row)}
    assert len(identifiers) > 20
    for identifier in identifiers:
        for part in identifier.split("."):
            assert re.search(rf"\b{part}\b", source), identifier


EQUATIONS = {
    "grpo": "L = −(1/N) Σ_i (1/|y_i|) Σ_t min(r_it A_i, clip(r_it, 1−0.2, 1+0.2) A_i)",
    "dr_grpo": "L = −(1/N) Σ_i (1/L) Σ_t min(r_it A_i, clip(r_it, 1−0.2, 1+0.2) A_i)",
    "dapo": "L = −(1/M) Σ_i Σ_t min(r_it A_i, clip(r_it, 1−0.2, 1+0.28) A_i)",
    "gspo": "L = −(1/N) Σ_i min(s_i A_i, clip(s_i, 1−0.0003, 1+0.0004) A_i)",
    "luspo": "L = −(1/N) Σ_i |y_i| · min(s_i A_i, clip(s_i, 1−0.002, 1+0.0025) A_i)",
    "fspo": "L = −(1/N) Σ_i min(ρ_i A_i, clip(ρ_i, exp(−0.03 √|y_i|), exp(0.03 √|y_i|)) A_i)",
    "cispo": "L = −(1/M) Σ_i Σ_t sg(clip(r_it, 1−1, 1+4)) A_i log π(y_it)",
    "sapo": "L = −(1/N) Σ_i (1/|y_i|) Σ_t (4/τ_i) σ(τ_i (r_it − 1)) A_i",
    "gmpo": "L = −(1/N) Σ_i g_i A_i",
    "dapo_prompt_mean": "L = −(1/B) Σ_g (1/M_g) Σ_{i∈g} Σ_t min(r_it A_i, clip(r_it, 1−0.2, 1+0.28) A_i)",
    "balanced": ("L = −(1/B) Σ_g Σ_± (N_g±/N_g) (1/M_g±) Σ_{i∈g±} Σ_t min(r_it A_i, clip(r_it, 1−0.2, 1+0.28) A_i)"),
    "length_power": "L = −(1/N) Σ_i |y_i|^1 · min(s_i A_i, clip(s_i, 1−0.002, 1+0.0025) A_i)",
    "dppo": "L = −(1/N) Σ_i (1/L) Σ_t m_it sg(r_it) A_i log π(y_it)",
    "dppo_kl": "L = −(1/N) Σ_i (1/L) Σ_t m_it sg(r_it) A_i log π(y_it)",
    "vespo": "L = −(1/M) Σ_i Σ_t sg(φ_i) A_i log π(y_it)",
    "reinforce": "L = −(1/N) Σ_i Σ_t A_i log π(y_it)",
}


@pytest.mark.parametrize("name", NAMED_OBJECTIVES)
def test_equations(name: str) -> None:
    assert describe(resolve(name)).equation == EQUATIONS[name]


def test_equation_and_spellings_follow_the_values_set() -> None:
    text = describe(resolve("luspo", clip_low=0.003, kl_coefficient=0.1, kl_estimator="k2", entropy_coefficient=0.01))
    assert text.equation == (
        "L = −(1/N) Σ_i |y_i| · min(s_i A_i, clip(s_i, 1−0.003, 1+0.0025) A_i)"
        " + 0.1 · (1/N) Σ_i Σ_t k2_it − 0.01 · (1/N) Σ_i Σ_t H_it"
    )
    assert "epsilon=0.003" in text.trl
    assert "beta=0.1, use_bias_correction_kl=False, entropy_coef=0.01" in text.trl
    assert "(its KL term is k3 only)" in text.trl
    assert "kl_loss_type=mse" in text.verl
    assert "clip_ratio_low=0.003" in text.verl
    dual = describe(resolve("grpo", dual_clip=3.0))
    assert "dual clip 3" in dual.clip_range
    assert "delta=3" in dual.trl
    assert "clip_ratio_c=3" in dual.verl


def test_peers_without_the_mix_are_not_given_a_wrong_spelling() -> None:
    parts = {"advantage": "leave_one_out", "ratio": "sequence", "surrogate": "sapo", "aggregation": "token-mean"}
    text = describe(
        ObjectiveConfig("custom", sapo_temperature_positive=1.0, sapo_temperature_negative=1.1, **parts)  # type: ignore[arg-type]
    )
    assert text.trl.startswith("no setting")
    assert text.verl.startswith("no setting")
    assert text.paper == "none: your own assembly"


def test_luspo_spellings() -> None:
    text = describe(resolve("luspo"))
    assert 'importance_sampling_level="sequence", loss_type="luspo", epsilon=0.002, epsilon_high=0.0025' in text.trl
    assert "loss_mode=gspo actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum" in text.verl
    assert "epsilon_high=5" in describe(resolve("cispo")).trl


def custom(**parts: object) -> ObjectiveConfig:
    clip = {"clip_low": 0.2, "clip_high": 0.2} if parts.get("surrogate") != "sapo" else {}
    temperatures = {} if clip else {"sapo_temperature_positive": 1.0, "sapo_temperature_negative": 1.1}
    base = {"advantage": "group_mean", "ratio": "token", "surrogate": "clip", "aggregation": "token-mean"}
    return resolve("custom", **(base | clip | temperatures | parts))


@pytest.mark.parametrize(
    ("config", "trl", "verl"),
    [
        (custom(advantage="leave_one_out"), "GRPOTrainer has no leave-one-out baseline", None),
        (custom(surrogate="sapo"), "its sapo averages over", "its sapo ignores loss_agg_mode"),
        (custom(surrogate="gmpo"), "its GMPOTrainer averages", "its geo_mean ignores loss_agg_mode"),
        (custom(surrogate="cispo", aggregation="seq-mean-token-sum"), "its cispo averages over tokens only", None),
        (custom(surrogate="cispo", ratio="sequence"), None, "its cispo has token ratios only"),
        (custom(aggregation="seq-mean-token-sum"), None, None),
    ],
)
def test_settings_are_data_and_say_what_is_missing(config: ObjectiveConfig, trl: str | None, verl: str | None) -> None:
    for found, reason in ((trl_settings(config), trl), (verl_settings(config), verl)):
        assert bool(found.values) is (reason is None)
        assert found.missing.startswith(reason) if reason else not found.missing


def test_the_response_limit_is_a_number_where_it_is_known() -> None:
    assert verl_settings(resolve("dr_grpo"), 8192).values["actor_rollout_ref.actor.loss_scale_factor"] == 8192
    assert trl_settings(resolve("dr_grpo"), 8192).values["max_completion_length"] == 8192
    assert "loss_scale_factor=<the response limit>" in describe(resolve("dr_grpo")).verl


def test_command_prints_every_name() -> None:
    result = CliRunner().invoke(app, [], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for name in NAMED_OBJECTIVES:
        assert EQUATIONS[name] in result.output
        assert PAPERS[name] in result.output


def test_command_json_is_the_resolved_table() -> None:
    result = CliRunner().invoke(app, ["--json", "luspo", "gspo"])
    assert result.exit_code == 0
    answer = json.loads(result.output)
    assert list(answer) == ["luspo", "gspo"]
    assert answer["luspo"]["config"]["clip_high"] == 0.0025
    assert answer["luspo"]["equation"] == EQUATIONS["luspo"]


def test_unknown_name_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"Unknown objective 'lupso' \(did you mean 'luspo'\?\)"):
        chosen_names(["lupso"])
    assert isinstance(CliRunner().invoke(app, ["lupso"]).exception, UsageError)


def test_examples_run() -> None:
    for example in OBJECTIVES_EXAMPLES:
        program, command, *arguments = example.split()
        assert (program, command) == ("luspo", "objectives")
        assert CliRunner().invoke(app, arguments).exit_code == 0


def test_command_needs_no_torch() -> None:
    code = "import sys, luspo_cli.commands.objectives; sys.exit(int('torch' in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
