"""verl's environment has torch and verl, and none of our other dependencies: what the plug-in imports there."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from luspo_cli.config.verl_losses import VERL_LOSSES, verl_too_old

ROOT = Path(__file__).resolve().parents[2]
DEPENDENCIES = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
IMPORT_NAMES = {"math-verify": "math_verify", "pillow": "PIL"}
BLOCKED = {IMPORT_NAMES.get(name, name) for name in (text.split(">")[0] for text in DEPENDENCIES)} - {"torch"}
# A verl that has nothing but its version and its registry.
CODE = """
import json, logging, sys, types

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}} (blocked)")

sys.meta_path.insert(0, Block())
registry = {{}}
for name in ("verl", "verl.trainer", "verl.trainer.ppo", "verl.trainer.ppo.core_algos"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["verl"].__version__ = {version!r}
core = sys.modules["verl.trainer.ppo.core_algos"]
core.POLICY_LOSS_REGISTRY = registry
core.register_policy_loss = lambda name: lambda function: registry.setdefault(name, function)
{body}
"""
LOSS = """
import luspo_cli.verl_plugin.policy_loss
print(json.dumps(sorted(registry)))
"""
REWARD = r"""
from luspo_cli.verl_plugin.reward import compute_score
print(json.dumps([compute_score("p", r"\boxed{5}", "5")["score"], "torch" in sys.modules]))
"""


def run(body: str, version: str = "0.9.1", blocked: set[str] = BLOCKED) -> subprocess.CompletedProcess[str]:
    code = CODE.format(blocked=blocked, version=version, body=body)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_the_losses_need_torch_and_verl_alone() -> None:
    assert {"pydantic", "typer", "transformers", "math_verify", "PIL"} <= BLOCKED
    found = run(LOSS)
    assert found.returncode == 0, found.stderr
    assert set(json.loads(found.stdout)) == set(VERL_LOSSES)


def test_the_reward_needs_not_even_torch() -> None:
    found = run(REWARD, blocked=BLOCKED | {"torch", "verl", "numpy"})
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == [1.0, False]


CHECK = """
from luspo_cli.verl_plugin.check import main
sys.exit(main([]))
"""


def test_check_says_why_an_older_verl_has_no_plugin() -> None:
    found = run(CHECK, "0.9.0")
    assert found.returncode == 1
    assert "luspo's plug-in cannot be loaded: verl 0.9.0 is too old" in found.stderr.splitlines()[-1]


@pytest.mark.parametrize("version", ["0.7.1", "0.9.0", "0.9.1rc1", "0.9.1.dev0"])
def test_an_older_verl_is_said_where_verl_would_swallow_it(version: str) -> None:
    found = run(LOSS, version)
    assert found.returncode == 1
    assert f"verl {version} is too old for luspo's objectives: install verl 0.9.1 or newer" in found.stderr


def test_the_entry_point_is_the_module_that_registers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["verl.plugins"] == {"luspo": "luspo_cli.verl_plugin.policy_loss"}


@pytest.mark.parametrize(
    ("version", "old"),
    [("0.9", True), ("0.9.1", False), ("0.9.1.post1", False), ("0.9.1+cu130", False), ("v0.9.1b2", True), ("0.10.0rc1", False),
     ("1.0.dev3", False), ("0.9.0.post9", True), ("unknown", True)],
)  # fmt: skip
def test_a_release_of_verl_is_older_or_not(version: str, old: bool) -> None:
    assert verl_too_old(version) == old
