"""What a run began with against what is there now: named, refused, accepted once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import UsageError
from luspo_cli.grading.verdict import GRADER_VERSION
from luspo_cli.training.provenance import (
    as_records,
    changed_inputs,
    configuration_fingerprint,
    input_elsewhere,
    provenance,
    record_provenance,
    refuse_changed,
)

OLD, NEW = "a" * 64, "b" * 64


def origin(
    data: str = OLD, weights: Mapping[str, str] | None = None, configuration: str | None = OLD
) -> dict[str, Any]:
    return {
        "data": {"train": {"path": "data/train.parquet", "sha256": data}},
        "model": {"path": "start", "weights": weights or {"model.safetensors": OLD}},
        "configuration": configuration,
    }


@pytest.mark.parametrize(
    ("found", "names"),
    [
        (origin(), []),
        (origin(data=NEW), ["data/train.parquet, the data of data.train,"]),
        (origin(weights={"model.safetensors": NEW}), ["model.safetensors of the starting model start"]),
        (origin(weights={"model-1.safetensors": OLD}), ["model-1.safetensors of", "model.safetensors of"]),
        (origin(configuration=NEW), ["config.json"]),
        (origin(NEW, {"model.safetensors": NEW}, NEW), ["data", "model.safetensors", "config.json"]),
    ],
)
def test_every_change_is_named(tmp_path: Path, found: dict[str, Any], names: list[str]) -> None:
    stored = tmp_path / "provenance.json"
    record_provenance(stored, origin(), 0)
    changes = changed_inputs(stored, found)
    assert len(changes) == len(names)
    assert all(name in change.what for change, name in zip(changes, names, strict=True))


def test_the_refusal_has_both_fingerprints_and_the_way_out(tmp_path: Path) -> None:
    record_provenance(tmp_path / "provenance.json", origin(), 0)
    refuse_changed([], tmp_path)
    with pytest.raises(UsageError) as caught:
        refuse_changed(changed_inputs(tmp_path / "provenance.json", origin(data=NEW, configuration=NEW)), tmp_path)
    assert str(caught.value) == (
        "changed since the run began: data/train.parquet, the data of data.train, (sha256 aaaaaaaaaaaa… when the run began,"
        " bbbbbbbbbbbb… now), and 1 more; put back what was there, start a new run, or go on all the same with"
        f" luspo train --run {tmp_path} --resume --allow-changed, which provenance.json records"
    )


def of_hub(commit: str | None) -> dict[str, Any]:
    return origin() | {"model": {"path": "owner/name", "weights": None, "commit": commit}}


def test_another_commit_of_a_hub_id_is_a_change(tmp_path: Path) -> None:
    stored = tmp_path / "provenance.json"
    record_provenance(stored, of_hub("1" * 40), 0)
    assert changed_inputs(stored, of_hub("1" * 40)) == []
    assert changed_inputs(stored, of_hub(None)) == []
    (change,) = changed_inputs(stored, of_hub("2" * 40))
    assert str(change) == (
        "the starting model owner/name of the hub (commit 111111111111… when the run began, 222222222222… now)"
    )
    older = of_hub(None)
    del older["model"]["commit"]
    record_provenance(stored, older, 0)
    assert changed_inputs(stored, of_hub("2" * 40)) == []


def test_the_commit_of_a_hub_id_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("1" * 40)
    (repository / "snapshots" / ("1" * 40)).mkdir(parents=True)
    (repository / "snapshots" / ("1" * 40) / "config.json").write_text("{}")
    monkeypatch.setattr("luspo_cli.training.provenance.fingerprint", lambda path, split: OLD)
    config = resolve_train(preset="qwen2.5-0.5b", sets=["model.path=owner/name"])
    assert provenance(config, None)["model"] == {"path": "owner/name", "weights": None, "commit": "1" * 40}


def test_an_accepted_change_is_recorded_and_not_asked_about_again(tmp_path: Path) -> None:
    stored = tmp_path / "provenance.json"
    record_provenance(stored, origin(), 0)
    (change,) = changed_inputs(stored, origin(data=NEW))
    record_provenance(stored, origin(data=NEW), 4, [{"what": change.what, "was": change.was, "now": change.now}])
    content = json.loads(stored.read_text())
    assert content["data"]["train"]["sha256"] == OLD  # what the run began with stays
    assert content["resumed"][0]["after_step"] == 4
    assert content["resumed"][0]["changed"] == [{"what": change.what, "was": OLD, "now": NEW}]
    assert changed_inputs(stored, origin(data=NEW)) == []
    assert len(changed_inputs(stored, origin())) == 1  # the first file again is a change again


@pytest.mark.parametrize("missing", ["data", "model", "configuration"])
def test_what_an_older_version_did_not_record_is_not_compared(tmp_path: Path, missing: str) -> None:
    stored = origin()
    del stored[missing]
    (tmp_path / "provenance.json").write_text(json.dumps(stored))
    found = origin(NEW, {"model.safetensors": NEW}, NEW)
    assert len(changed_inputs(tmp_path / "provenance.json", found)) == 2
    assert changed_inputs(tmp_path / "none.json", found) == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_an_unreadable_record_is_one_sentence(tmp_path: Path, content: str) -> None:
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(UsageError, match=r"provenance\.json is not readable JSON.*restore it"):
        changed_inputs(tmp_path / "provenance.json", origin())


def test_a_configurations_fingerprint_is_of_its_content() -> None:
    one = configuration_fingerprint({"a": {"x": 1e-6, "y": [1, 2]}, "b": None})
    assert one == configuration_fingerprint(json.loads('{"b": null, "a": {"y": [1, 2], "x": 0.000001}}'))
    assert one != configuration_fingerprint({"a": {"x": 2e-6, "y": [1, 2]}, "b": None})


@pytest.mark.parametrize("earlier", [None, 1])
def test_an_older_grader_is_a_change_that_is_named_by_its_version(tmp_path: Path, earlier: int | None) -> None:
    stored = tmp_path / "provenance.json"
    record_provenance(stored, origin() | ({} if earlier is None else {"grader": earlier}), 0)
    now = origin() | {"grader": GRADER_VERSION}
    (change,) = changed_inputs(stored, now)
    assert str(change) == f"the grader that rewards its answers (version 1 when the run began, {GRADER_VERSION} now)"
    # Rewards of the made tasks come from no grader.
    assert changed_inputs(stored, origin() | {"grader": None}) == []
    record_provenance(stored, now, 2, as_records([change]))
    assert changed_inputs(stored, now) == []


def test_the_version_of_the_grader_is_recorded_where_it_rewards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luspo_cli.training.provenance.fingerprint", lambda path, split: OLD)
    monkeypatch.setattr("luspo_cli.training.provenance.hub_commit", lambda path, revision: None)
    for verifier, version in (("math", GRADER_VERSION), ("exact", None)):
        config = resolve_train(preset="qwen2.5-0.5b", sets=["model.path=owner/name", f"reward.verifier={verifier}"])
        assert provenance(config, None)["grader"] == version


@pytest.mark.parametrize(
    ("key", "sets"),
    [
        ("model.path", ["model.path=here/x"]),
        ("data.train", ["model.path=m", "data.train=here/x"]),
        ("data.held_out", ["model.path=m", "data.held_out=here/x"]),
    ],
)
def test_a_relative_path_is_looked_for_where_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, sets: list[str]
) -> None:
    """The sentence names the key and both folders; nothing is said where the input is here too, or was given in full."""
    config = resolve_train(preset="qwen2.5-0.5b", sets=sets)
    stored, began_in = tmp_path / "provenance.json", tmp_path / "there"
    section, name = key.split(".")

    def began(relative_to: str | None) -> dict[str, Any]:
        entry = {"path": "here/x", "relative_to": relative_to}
        return {section: entry if section == "model" else {name: entry}}

    stored.write_text(json.dumps(began(str(began_in))))
    monkeypatch.chdir(tmp_path)
    said = input_elsewhere(stored, config)
    assert said is not None
    assert said.startswith(f"{key} 'here/x' is relative, and there is no such file or folder in {tmp_path}: ")
    assert said.endswith(f"it was {began_in}/here/x; resume from {began_in}")
    # A later session in another folder counts, as it does for what changed.
    stored.write_text(json.dumps(began(str(began_in)) | {"resumed": [began(str(tmp_path / "later"))]}))
    assert f"resume from {tmp_path}/later" in str(input_elsewhere(stored, config))
    (tmp_path / "here" / "x").mkdir(parents=True)
    assert input_elsewhere(stored, config) is None
    (tmp_path / "here" / "x").rmdir()
    stored.write_text(json.dumps(began(None)))
    assert input_elsewhere(stored, config) is None


def test_a_change_behind_a_relative_path_names_both_places(tmp_path: Path) -> None:
    stored = tmp_path / "provenance.json"
    began = origin()
    began["data"]["train"] |= {"relative_to": "/a"}
    began["model"] |= {"relative_to": "/a"}
    now = origin(NEW, {"model.safetensors": NEW})
    now["data"]["train"] |= {"relative_to": "/b"}
    now["model"] |= {"relative_to": "/b"}
    record_provenance(stored, began, 0)
    assert [change.what for change in changed_inputs(stored, now)] == [
        "/b/data/train.parquet, which was /a/data/train.parquet, the data of data.train,",
        "model.safetensors of the starting model /b/start, which was /a/start",
    ]


def test_where_relative_paths_are_looked_for_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each of them by one rule; `~` is the home folder in each, and no relative path."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    for folder in ("model", "data", "home/data"):
        (tmp_path / folder).mkdir(parents=True)
        for split in ("train", "test"):
            (tmp_path / folder / f"{split}.parquet").write_bytes(b"some")
    config = resolve_train(preset="qwen2.5-0.5b", sets=["model.path=model", "data.train=data", "data.held_out=~/data"])
    found = provenance(config, None)
    assert found["model"]["relative_to"] == found["data"]["train"]["relative_to"] == str(tmp_path)
    assert found["data"]["held_out"].keys() == {"path", "sha256"}
