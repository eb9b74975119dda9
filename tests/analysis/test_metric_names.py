"""The metric table: the contract's names, no key without a unit, docs equal to code."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from luspo_cli.config.peers import PEER_KEYS
from luspo_cli.metrics.names import METRICS, unknown_metrics

DOCS = Path(__file__).resolve().parents[2] / "docs" / "run-folder.md"
CONTRACT = """step tokens/total response_length/mean response_length/p50 response_length/p90 response_length/max
response_length/correct response_length/incorrect response/truncated_fraction reward/total/mean reward/accuracy/mean
reward/format/mean reward/overlong/mean group/all_correct_fraction group/all_wrong_fraction group/mixed_fraction
objective/loss objective/clip_low_fraction objective/clip_high_fraction ratio/mean ratio/min ratio/max
ratio/noise_floor policy/entropy policy/kl_old update/grad_norm update/learning_rate update/rows_trained
update/rows_skipped time/rollout time/reward time/logprobs time/update time/total length_pressure/grpo
length_pressure/gspo length_pressure/luspo"""


def test_every_name_of_the_contract_is_there() -> None:
    assert [name for name in CONTRACT.split() if name not in METRICS] == []


def test_every_metric_has_a_unit_and_one_sentence() -> None:
    for name, metric in METRICS.items():
        assert metric.unit, name
        assert metric.meaning[0].isupper(), name
        assert metric.meaning.endswith("."), name


def test_documented_table_is_the_table_of_the_code() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## metrics.jsonl")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([^`]+)` \| (.*?) \| (.*) \|$", section, flags=re.MULTILINE)
    assert [(name, metric.unit, metric.meaning) for name, metric in METRICS.items()] == rows


def test_documented_peer_keys_are_those_of_the_code() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## Logs of other frameworks")[1]
    frameworks = ("trl", "trl-before-0.17", "verl", "openrlhf")
    found: dict[str, dict[str, str]] = {framework: {} for framework in frameworks}
    for ours, cells in re.findall(r"^\| `([^`]+)` \| (.*) \|$", section, flags=re.MULTILINE):
        for framework, cell in zip(frameworks, cells.split(" | "), strict=True):
            if cell.strip():
                found[framework][cell.strip().strip("`")] = ours
    assert found == {framework: dict(keys) for framework, keys in PEER_KEYS.items()}


def test_peers_translate_to_known_names_one_to_one() -> None:
    for keys in PEER_KEYS.values():
        assert unknown_metrics(keys.values()) == []
        assert len(set(keys.values())) == len(keys)


def test_unknown_names_are_found() -> None:
    assert unknown_metrics(["step", "reponse_length/mean", "a"]) == ["a", "reponse_length/mean"]


def test_the_table_imports_nothing_heavy() -> None:
    code = "import sys, luspo_cli.metrics.names; print({'torch', 'pandas', 'numpy', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
