"""`luspo push` against a stand-in of the hub: what is sent, what the card says, and every way in which it fails."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from doubles.hub import BREAK, TOKEN, Hub, serving
from doubles.reports import write_run
from luspo_cli.app import app
from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.objective_text import describe
from luspo_cli.errors import RunError, UsageError
from luspo_cli.report.push import Upload, plan_push, push
from luspo_cli.runs.checkpoints import MANIFEST, digest

WEIGHTS = b"\x02\x00\x00\x00\x00\x00\x00\x00{}"
PROVENANCE = {
    "luspo": "0.1.0", "code": {"commit": "c0ffee", "uncommitted": "d1ff"}, "python": "3.11.7", "seed": 3,
    "packages": {"torch": "2.13.0", "vllm": None}, "hardware": {"processor": "a processor", "gpus": ["a GPU"]},
    "data": {"train": {"path": "/srv/somebody/data/train.parquet", "sha256": "ab12"}},
    "model": {"path": "owner/base", "commit": "beef", "weights": None}, "configuration": "cd34",
}  # fmt: skip


def run_with_checkpoint(below: Path, *, base: str = "owner/base", adapter_of: str | None = None) -> Path:
    """A run of 4 planned steps with a checkpoint of step 4, a held-out record, one benchmark and rollouts."""
    run = write_run(below, "mine", "luspo", 3, rollouts={4: [{"response": "secret"}]})
    config = json.loads((run / "config.json").read_text())
    config |= {"model": {"path": base}, "rollout": {"group_size": 4}, "evaluation": {"samples": 4}}
    config["data"] = {"train": "/srv/somebody/data/train.parquet"}
    (run / "config.json").write_text(json.dumps(config))
    (run / "provenance.json").write_text(json.dumps(PROVENANCE))
    (run / "evals").mkdir()
    accuracy = {"evaluation/accuracy_low": 0.4, "evaluation/accuracy_high": 0.6, "evaluation/problems": 64}
    lines = [{"step": step, "evaluation/accuracy": 0.5 + step / 100, **accuracy} for step in (0, 4)]
    lines[1]["evaluation/truncated_fraction"] = 0.25  # older runs have none
    (run / "evals/held-out.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    metrics = {"accuracy": 0.25, "accuracy_interval_95": [0.1, 0.43], "truncated_fraction": 0.125}
    result = {"benchmark": "AIME26", "version": 1, "mode": "rule", "step": 2, "n_problems": 30, "n_samples": 8}
    (run / "evals/AIME26.json").write_text(json.dumps(result | {"metrics": metrics}))
    checkpoint = run / "checkpoints/step-000004"
    folder = checkpoint / ("model" if adapter_of is None else "adapter")
    folder.mkdir(parents=True)
    if adapter_of is None:
        (folder / "config.json").write_text('{"model_type": "qwen2"}')
        (folder / "model.safetensors").write_bytes(WEIGHTS)
    else:
        (folder / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "base_model_name_or_path": adapter_of, "revision": "main"})
        )
        (folder / "adapter_model.safetensors").write_bytes(WEIGHTS)
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"/root/": 0}}}')
    listed = {str(file.relative_to(checkpoint)): digest(file) for file in checkpoint.rglob("*") if file.is_file()}
    (checkpoint / MANIFEST).write_text(json.dumps({"files": listed}))
    return run


def planned(run: Path, to: str = "me/mine", branch: str | None = None, private: bool = False) -> Upload:
    folder = next(run.glob("checkpoints/*/model"), None) or next(run.glob("checkpoints/*/adapter"))
    return plan_push(run, folder, 4, to, branch, private=private)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The stand-in, which this process's client talks to without waiting between its attempts."""
    with serving() as found:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", found.endpoint)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield found


def test_a_push_is_one_commit_of_the_model_folder_the_card_and_the_record(tmp_path: Path, hub: Hub) -> None:
    run = run_with_checkpoint(tmp_path)
    url = push(planned(run))
    assert url.startswith(f"{hub.endpoint}/me/mine/commit/")
    stored = hub.repositories["me/mine"]["main"]
    assert sorted(stored) == [
        ".gitattributes", "README.md", "config.json", "luspo/config.json", "luspo/lengths.png", "luspo/metrics.jsonl",
        "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert stored["model.safetensors"] == WEIGHTS
    assert stored["luspo/metrics.jsonl"] == (run / "metrics.jsonl").read_bytes()
    assert stored["luspo/lengths.png"].startswith(b"\x89PNG")
    assert hub.messages == ["Step 4 of a luspo run with objective luspo"]
    assert not hub.private["me/mine"]
    assert hub.asked.count("commit") == 1


def test_nothing_of_the_machine_and_no_rollout_is_sent(tmp_path: Path, hub: Hub) -> None:
    push(planned(run_with_checkpoint(tmp_path)))
    text = b"".join(
        content
        for name, content in hub.repositories["me/mine"]["main"].items()
        if not name.endswith(("png", "tokenizer.json"))
    )
    for private in (b"somebody", str(tmp_path).encode(), TOKEN.encode(), b"secret", b"rollouts/"):
        assert private not in text
    assert b"train.parquet" in text


def test_a_second_push_sends_no_weights_again_and_a_branch_leaves_the_main_one(tmp_path: Path, hub: Hub) -> None:
    run = run_with_checkpoint(tmp_path)
    push(planned(run, private=True))
    stores = hub.asked.count("store")
    before = dict(hub.repositories["me/mine"]["main"])
    push(planned(run, branch="step-4", private=True))
    assert hub.asked.count("store") == stores
    assert hub.private["me/mine"]
    assert hub.repositories["me/mine"]["main"] == before
    assert hub.repositories["me/mine"]["step-4"]["model.safetensors"] == WEIGHTS


def test_private_is_not_promised_of_a_repository_that_is_public(tmp_path: Path, hub: Hub) -> None:
    run = run_with_checkpoint(tmp_path)
    hub.repositories["me/mine"], hub.private["me/mine"] = {"main": {}}, False
    with pytest.raises(RunError, match=r"me/mine is there already and public.*nothing was sent"):
        push(planned(run, private=True))
    assert hub.repositories["me/mine"] == {"main": {}}


@pytest.mark.parametrize(
    ("route", "failure", "sentence"),
    [
        ("create", 401, r"the hub refuses the access \(401\): log in.*HF_TOKEN.*; nothing was sent"),
        ("create", 403, r"the hub refuses the access \(403\).*nothing was sent"),
        ("create", 500, "the hub answered 500, an error of its own; nothing was sent"),
        ("create", BREAK, "the hub cannot be reached .*; nothing was sent"),
        ("preupload", 503, "the hub answered 503, an error of its own; no commit was made"),
        ("batch", 500, "the hub answered 500, an error of its own; no commit was made"),
        ("store", 500, "the hub answered 500, an error of its own; no commit was made"),
        ("store", BREAK, "the hub cannot be reached .*; no commit was made"),
        ("commit", 502, "the hub answered 502, an error of its own; no commit was made"),
        ("commit", BREAK, "the hub cannot be reached .*; whether the commit was made is not known: look at http"),
    ],
)
def test_a_failure_is_one_sentence_that_says_what_became_of_it(
    tmp_path: Path, hub: Hub, route: str, failure: int | str, sentence: str
) -> None:
    upload = planned(run_with_checkpoint(tmp_path))
    hub.fails[route] = failure
    with pytest.raises(RunError, match=f"^cannot push to me/mine: {sentence}") as caught:
        push(upload)
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert all("README.md" not in files for files in hub.repositories.get("me/mine", {}).values())
    hub.fails.clear()
    push(upload)  # the same command goes on
    assert hub.repositories["me/mine"]["main"]["model.safetensors"] == WEIGHTS


def test_without_a_token_and_where_nobody_answers(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = planned(run_with_checkpoint(tmp_path))
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(RunError, match=r"refuses the access \(401\)"):
        push(upload)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(RunError, match=r"cannot be reached .*; nothing was sent"):
        push(upload)


def test_the_card_tells_the_objective_as_the_report_does(tmp_path: Path) -> None:
    card = planned(run_with_checkpoint(tmp_path)).card
    equation = describe(ObjectiveConfig(name="luspo", clip_low=2e-3, clip_high=2.5e-3)).equation
    assert equation in card
    front = yaml.safe_load(card.split("---\n")[1])
    assert front == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "base_model": "owner/base",
        "tags": ["luspo", "reinforcement-learning", "rlvr"],
    }  # fmt: skip
    for said in (
        "| held-out | 0 | 50.0% [40.0%, 60.0%] | 64 | 4 | ? |",
        "| held-out | 4 | 54.0% [40.0%, 60.0%] | 64 | 4 | 25.0% |",
        "| AIME26 (version 1, rule) | 2 | 25.0% [10.0%, 43.0%] | 30 | 8 | 12.5% |",
        "| mean response length, tokens | 20 | 23 |",
        "| `model.path` | `owner/base` |",
        "| commit | `c0ffee` |",
        "| data, train | `train.parquet, sha256 ab12` |",
        "![Response length and accuracy over training steps](luspo/lengths.png)",
    ):
        assert said in card
    assert "`rollout.temperature`" not in card.split("## Settings")[1]  # as it is by default


def test_the_card_says_what_the_run_does_not_show(tmp_path: Path) -> None:
    card = planned(run_with_checkpoint(tmp_path)).card
    limits = card.split("## What this run does not show")[1]
    for said in (
        "one run with one seed (3)",
        "Not scored at the step of these weights: AIME26",
        "before and after the training overlap: a change in accuracy is not shown",
        "uncommitted changes",
        "No licence is stated here",
    ):
        assert said in limits
    assert "were planned" not in limits
    (tmp_path / "bare").mkdir()
    bare = run_with_checkpoint(tmp_path / "bare", base="made")
    for file in ("evals/held-out.jsonl", "evals/AIME26.json"):
        (bare / file).unlink()
    limits = planned(bare).card.split("## What this run does not show")[1]
    for said in ("scored on no benchmark", "No held-out accuracy was measured", "made on the spot for a made task"):
        assert said in limits


def test_an_adapter_is_sent_only_where_others_have_its_base(tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    upload = planned(run_with_checkpoint(tmp_path / "hub", adapter_of="owner/base"))
    assert yaml.safe_load(upload.card.split("---\n")[1])["library_name"] == "peft"
    (tmp_path / "local").mkdir()
    with pytest.raises(UsageError, match=r"base model is a folder of this machine .*luspo merge"):
        planned(run_with_checkpoint(tmp_path / "local", adapter_of=str(tmp_path)))


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ({"_name_or_path": "FOLDER"}, "config.json names a path of this machine under '_name_or_path'"),
        ({"inner": {"token": TOKEN}}, "config.json holds a token of the hub"),
    ],
)
def test_a_model_file_with_a_path_or_a_token_is_refused(tmp_path: Path, entries: dict[str, Any], sentence: str) -> None:
    run = run_with_checkpoint(tmp_path)
    text = json.dumps(entries).replace("FOLDER", str(tmp_path))
    (run / "checkpoints/step-000004/model/config.json").write_text(text)
    with pytest.raises(UsageError, match=re.escape(sentence)):
        planned(run)


@pytest.mark.parametrize("to", ["mine", "me/", "me/mine/more", "../mine", "me/a b", "me/a..b"])
def test_what_is_no_repository_is_refused(tmp_path: Path, to: str) -> None:
    with pytest.raises(UsageError, match="give OWNER/NAME"):
        planned(run_with_checkpoint(tmp_path), to)


@pytest.mark.parametrize("branch", ["", "x y", "-x", "a..b", "a/", "/a", "a//b", ".a", "a.lock", "a~1", "a\n"])
def test_what_is_no_branch_is_refused(tmp_path: Path, branch: str) -> None:
    with pytest.raises(UsageError, match="is no name of a branch"):
        plan_push(tmp_path, tmp_path, 4, "me/mine", branch, private=False)


@pytest.mark.parametrize("branch", ["main", "step-50", "runs/luspo_0.1"])
def test_what_is_a_branch_is_taken(tmp_path: Path, branch: str) -> None:
    run = run_with_checkpoint(tmp_path)
    model = run / "checkpoints/step-000004/model"
    assert plan_push(run, model, 4, "me/mine", branch, private=False).branch == branch


def test_what_is_no_run_is_refused_in_words_of_push(tmp_path: Path) -> None:
    def said(folder: Path) -> str:
        return str(CliRunner().invoke(app, ["push", str(folder), "--to", "me/mine", "--dry-run"]).exception)

    run = run_with_checkpoint(tmp_path)
    assert f"name its run: luspo push {run} --step 4" in said(run / "checkpoints/step-000004")
    assert "There is no run folder" in said(tmp_path / "none")
    assert "hub id" not in said(tmp_path / "none")


def test_the_command_from_dry_run_to_a_refusal(tmp_path: Path) -> None:
    """As a user gives it: HF_ENDPOINT and HF_TOKEN in the environment."""
    run = run_with_checkpoint(tmp_path)

    def luspo(*words: str, token: str = TOKEN) -> tuple[int, str, str]:
        own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": token, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        command = [sys.executable, "-m", "luspo_cli", "push", str(run), "--to", "me/mine", *words]
        found = subprocess.run(command, capture_output=True, text=True, env=os.environ | own, timeout=300)
        return found.returncode, found.stdout, found.stderr

    with serving() as hub:
        code, out, _ = luspo("--dry-run")
        assert (code, hub.asked, hub.repositories) == (0, [], {})
        assert f"{len(WEIGHTS):>15,} bytes  model.safetensors" in out
        assert "## What this run does not show" in out
        code, out, err = luspo(token="wrong")
        assert (code, out) == (1, "")
        assert len(err.strip().splitlines()) == 1
        assert "refuses the access (401)" in err
        code, out, _ = luspo("--json")
        told = json.loads(out)
        assert (code, told["step"], told["repository"]) == (0, 4, "me/mine")
        assert told["url"].startswith(hub.endpoint)
        assert told["files"]["model.safetensors"] == len(WEIGHTS)
        (run / "checkpoints/step-000004/model/model.safetensors").unlink()
        code, out, err = luspo("--dry-run")
        assert (code, out) == (2, "")
        assert "damaged" in err


def test_a_run_without_a_checkpoint_and_a_folder_without_weights(tmp_path: Path) -> None:
    from luspo_cli.evaluation.weights import find_weights

    run = write_run(tmp_path, "young")
    (run / "config.json").write_text(json.dumps({"objective": {"name": "luspo"}, "rollout": {}}))
    with pytest.raises(UsageError, match="has no whole checkpoint yet; let it train on"):
        find_weights(str(run), None)
    (run / "checkpoints/step-000004/model").mkdir(parents=True)
    with pytest.raises(UsageError, match="is no Hugging Face folder with weights, so there is nothing to push"):
        planned(run)
