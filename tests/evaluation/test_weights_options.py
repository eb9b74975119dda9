"""Which weights are read: the revision of a hub id, and Python code that comes with a model."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from doubles.evaluation import aime_folder
from doubles.models import character_model
from luspo_cli.app import app
from luspo_cli.config.eval import SamplingConfig
from luspo_cli.errors import UsageError
from luspo_cli.evaluation.evaluate import resolved_sampling
from luspo_cli.evaluation.weights import Weights, find_weights

OWN_CODE = """
import os
from pathlib import Path
from transformers import Qwen2Config, Qwen2ForCausalLM

Path(os.environ["OWN_CODE_RAN"]).write_text("yes")

class OwnConfig(Qwen2Config):
    model_type = "own_qwen2"

class OwnForCausalLM(Qwen2ForCausalLM):
    config_class = OwnConfig
"""


def test_a_revision_of_a_hub_id_is_the_commit_that_the_result_stores(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    for branch, commit in (("main", "1" * 40), ("v1", "2" * 40)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / branch).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
    assert find_weights("owner/name", None).fingerprint() == "1" * 40
    assert find_weights("owner/name", None, "v1").fingerprint() == "2" * 40
    assert find_weights("owner/name", None, "absent").fingerprint() is None


def test_a_revision_goes_with_a_hub_id_alone(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="--revision is of a hub id"):
        find_weights(str(tmp_path), None, "v1")


def test_a_runs_own_chat_template_arguments_hold_unless_others_are_given(tmp_path) -> None:
    run = Weights("run", "path", tmp_path, run_config={"rollout": {"chat_template": {"enable_thinking": False}}})
    other = Weights("model", "path", tmp_path)
    asked = SamplingConfig(dtype="float32", sampler="in-process")
    assert resolved_sampling(asked, run).chat_template == {"enable_thinking": False}
    assert resolved_sampling(asked, other).chat_template == {}
    own = asked.model_copy(update={"chat_template": {"enable_thinking": True}})
    assert resolved_sampling(own, run).chat_template == {"enable_thinking": True}
    assert resolved_sampling(asked.model_copy(update={"chat_template": {}}), run).chat_template == {}


def test_a_models_own_code_runs_only_when_it_is_allowed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    ran = tmp_path / "ran"
    monkeypatch.setenv("OWN_CODE_RAN", str(ran))
    model = character_model(tmp_path / "model")
    config = json.loads((model / "config.json").read_text()) | {
        "model_type": "own_qwen2",
        "architectures": ["OwnForCausalLM"],
        "auto_map": {"AutoConfig": "own_code.OwnConfig", "AutoModelForCausalLM": "own_code.OwnForCausalLM"},
    }
    (model / "config.json").write_text(json.dumps(config))
    before = find_weights(str(model), None).fingerprint()
    (model / "own_code.py").write_text(OWN_CODE)
    assert find_weights(str(model), None).fingerprint() != before  # the code decides what is sampled
    data = aime_folder(tmp_path / "aime24")
    words = ["eval", model, "--benchmark", "aime24", "--data", data, "--out", tmp_path / "out", "--limit", "1"]
    words += ["--max-response-tokens", "4", "--dtype", "float32"]
    refused = CliRunner().invoke(app, list(map(str, words)))
    assert isinstance(refused.exception, UsageError), refused.output
    assert "--trust-remote-code" in str(refused.exception)
    assert not ran.exists()
    allowed = CliRunner().invoke(app, list(map(str, [*words, "--trust-remote-code"])))
    assert allowed.exit_code == 0, allowed.output
    assert ran.exists()
    assert (tmp_path / "out/AIME24.json").is_file()
