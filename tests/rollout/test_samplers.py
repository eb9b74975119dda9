"""Who draws: the decision, its reason, and the sentences where it cannot be had."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.rollout import VllmConfig
from luspo_cli.errors import UsageError
from luspo_cli.rollout import samplers
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.rollout.samplers import (
    SamplerModel,
    check_sampler,
    choose_sampler,
    folder_reads_images,
    make_sampler,
    own_servers,
)
from luspo_cli.training.dry_run import make_plan


@pytest.mark.parametrize(
    ("installed", "cuda", "images", "name", "reason"),
    [
        (True, True, False, "vllm", "a CUDA device and vllm are there"),
        (True, False, False, "in-process", "no CUDA device"),
        (False, True, False, "in-process", "vllm is not installed"),
        (True, True, True, "in-process", "the model reads images"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch, installed: bool, cuda: bool, images: bool, name: str, reason: str
) -> None:
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: installed)
    monkeypatch.setattr(samplers, "has_cuda", lambda: cuda)
    chosen = choose_sampler("auto", reads_images=images)
    assert (chosen.name, chosen.reason) == (name, reason)


def test_a_name_is_taken_at_its_word_unless_the_model_reads_images() -> None:
    assert choose_sampler("vllm").name == "vllm"
    assert choose_sampler("in-process", reads_images=True).name == "in-process"
    with pytest.raises(UsageError, match="in-process"):
        choose_sampler("vllm-server", reads_images=True)


def test_a_vision_model_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_vl", "vision_config": {}}))
    assert folder_reads_images(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    assert not folder_reads_images(str(tmp_path))
    assert not folder_reads_images("owner/name")


def test_the_dry_run_says_which_and_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("luspo_cli.training.dry_run.vllm_is_installed", lambda: False)
    plan = make_plan(resolve_train(preset="tiny", objective="luspo"))
    assert plan.sampler["name"] == "in-process"
    assert not any("vllm" in sentence for sentence in plan.missing)
    plan = make_plan(resolve_train(preset="tiny", objective="luspo", sets=["rollout.sampler=vllm"]))
    assert plan.sampler == {"name": "vllm", "reason": "asked for"}
    assert any("make vllm" in sentence for sentence in plan.missing)


def test_without_vllm_the_way_to_get_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: False)
    model = SamplerModel("nowhere", None, (1,), "float32")
    draws, wanted = SamplingOptions(2, 4), choose_sampler("vllm")
    with pytest.raises(UsageError, match="make vllm"):
        check_sampler(wanted, longest=8, draws=draws, vllm=VllmConfig())
    with pytest.raises(UsageError, match="make vllm"):
        make_sampler(wanted, model, None, max_rows=4, longest=8, draws=draws, seed=0, vllm=VllmConfig())


def test_no_two_processes_push_to_one_server() -> None:
    servers = ("a", "b", "c")
    assert own_servers(servers, 0, 1) == servers
    shares = [own_servers(servers, rank, 2) for rank in range(2)]
    assert shares == [("a", "c"), ("b",)]
    with pytest.raises(UsageError, match="one server a process"):
        own_servers(servers, 0, 4)
