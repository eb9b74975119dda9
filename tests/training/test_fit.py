"""A run is made to fit its device, or refused before it begins, with a change that makes it fit."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.training import fit
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.fit import GIB
from luspo_cli.training.memory import estimate_memory
from luspo_cli.training.sampling import rows_at_once


def run_of(*sets: str, preset: str = "qwen2.5-7b") -> TrainRun:
    return resolve_train(preset=preset, objective="luspo", sets=["rollout.sampler=in-process", *sets])


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fit", "memory"):
        monkeypatch.setattr(f"luspo_cli.training.{module}.has_cuda", lambda: False)
    monkeypatch.setattr(fit, "device_memory", lambda: None)


def verdict(config: TrainRun, room: float) -> tuple[str | None, str | None]:
    return fit.does_not_fit(config, config.model.shape, 1, "in-process", room)


def test_rows_in_flight_by_hand() -> None:
    """Keys and values of a row of 10,240 tokens in 28 layers, 4 heads of 128, in bfloat16; 152,064 logits of 8 bytes each."""
    row = 10240 * 28 * 2 * 4 * 128 * 2 + 8 * 152_064
    config = run_of()
    assert (config.model.shape.vocabulary, config.rollout.group_size) == (152_064, 16)
    parts = estimate_memory(config, config.model.shape)
    held = sum(parts[name] for name in ("program", "weights", "optimizer", "sampler_copy"))
    for fitting, rows in ((1000, 256), (256.1, 256), (255.9, 240), (47.9, 32), (16.1, 16), (3, 16)):
        room = held + fitting * row / 0.9
        assert fit.rows_in_flight(config, config.model.shape, 1, "in-process", room) == rows
        assert fit.rows_in_flight(config, config.model.shape, 1, "vllm", room) == 256


@pytest.mark.parametrize("room", [20, 40, 60, 80, 100, 130])
@pytest.mark.parametrize("preset", ["qwen2.5-0.5b", "qwen2.5-7b", "qwen2.5-vl-7b-lora"])
def test_the_change_that_is_named_makes_it_fit_and_is_the_first_that_does(preset: str, room: int) -> None:
    config = run_of("rollout.max_response_tokens=30000", "update.tokens_per_micro_batch=200000", preset=preset)
    reasons = [reason for reason in verdict(config, room * GIB) if reason]
    if max(estimate_memory(config, config.model.shape)[peak] for peak in ("update_peak", "rollout_peak")) <= room * GIB:
        assert not reasons
    for reason in reasons:
        assert f"this machine has {room}.0 GiB: " in reason
        named = re.findall(r"--set (\S+)", reason.partition("give ")[2])
        if named:
            changed = run_of(
                "rollout.max_response_tokens=30000", "update.tokens_per_micro_batch=200000", *named, preset=preset
            )
            assert verdict(changed, room * GIB) == (None, None)
            assert not (len(named) > 1 and any(verdict(run_of(
                "rollout.max_response_tokens=30000", "update.tokens_per_micro_batch=200000", one, preset=preset
            ), room * GIB) == (None, None) for one in named))  # fmt: skip
        else:
            assert "take a smaller model" in reason


def test_what_may_just_fit_gets_a_warning_and_what_cannot_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_of("rollout.max_rows=16")
    parts = estimate_memory(config, config.model.shape)
    most = max(parts["update_peak"], parts["rollout_peak"])
    for share, place in ((1.01, None), (0.99, 1), (0.86, 1), (0.84, 0)):
        found = verdict(config, share * most)
        assert [bool(sentence) for sentence in found] == [place == 0, place == 1]
        monkeypatch.setattr(fit, "memory_bytes", lambda share=share: share * most)
        plan = make_plan(config)
        assert [sum("the update takes up to" in one for one in said) for said in (plan.missing, plan.warnings)] == [
            place == 0,
            place == 1,
        ]
        assert bool(fit.refused_by_memory(config)) is (place == 0)
    monkeypatch.setenv(fit.CHOICE, "off")
    assert fit.refused_by_memory(config) is None


def test_fewer_rows_are_sampled_at_once_where_the_memory_is_small_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = run_of(preset="tiny")
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(fit, "memory_bytes", lambda: 64 * GIB)
    assert rows_at_once(config) == config.rollout.max_rows == 512
    assert not caplog.records
    parts = estimate_memory(config, config.model.shape)
    rows = config.rollout.problems * config.rollout.group_size
    of_rows = parts["key_value_cache"] + 8 * rows * config.model.shape.vocabulary
    # Half of a step's rows, and a little more.
    monkeypatch.setattr(fit, "memory_bytes", lambda: parts["rollout_peak"] - of_rows + 0.51 * of_rows / 0.9)
    assert rows_at_once(config) == rows // 2
    assert caplog.messages == [
        f"{rows // 2} rows are sampled at once, of rollout.max_rows = 512: what the memory holds"
    ]
    assert caplog.messages[0] in make_plan(config).memory_notes


@pytest.mark.parametrize(
    ("preset", "sets", "processes", "gib"),
    [
        ("qwen2.5-7b", ["model.sharding=full"], 4, 79),
        ("qwen2.5-7b", ["model.lora.rank=16"], 1, 79),
        ("qwen2.5-vl-7b", [], 8, 79),
        ("qwen2.5-vl-7b-lora", [], 1, 79),
        ("qwen2.5-0.5b", [], 1, 15.5),
        ("tiny", [], 1, 1.9),
        ("tiny-vl", [], 1, 1.9),
        ("tiny-moe", [], 1, 1.9),
        ("easy-vqa", [], 1, 1.9),
    ],
)
def test_each_preset_fits_the_machine_that_its_first_lines_name(
    preset: str, sets: list[str], processes: int, gib: float
) -> None:
    config = run_of(*sets, preset=preset)
    assert fit.does_not_fit(config, config.model.shape, processes, "in-process", gib * GIB) == (None, None)


def test_a_run_that_cannot_fit_ends_before_anything_is_made(luspo, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked = ["train", "--preset", "tiny", "--objective", "luspo", "--run", str(run)]
    code, out, said = luspo(*asked, "--set", "rollout.max_response_tokens=400000000")
    assert (code, out, len(said.strip().splitlines())) == (2, "", 1)
    assert "the update takes up to" in said
    assert "LUSPO_FIT=off" in said
    assert not run.exists()


def test_more_processes_than_the_machine_carries_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its cores, and by its memory where there is no device with memory of its own: copies times the estimate."""
    config = resolve_train(preset="qwen2.5-7b", sets=["model.sharding=full", "rollout.max_rows=16"])
    each = max(estimate_memory(config, config.model.shape, 4)[peak] for peak in ("update_peak", "rollout_peak"))
    monkeypatch.setattr(fit, "usable_cores", lambda: 2)
    monkeypatch.setattr(fit, "has_cuda", lambda: False)
    monkeypatch.setattr(fit, "memory_bytes", lambda: 4 * each)
    assert fit.crowded(config, 1) is fit.crowded(config, 4) is None
    cores = "9 processes are more than 4 for each of this machine's 2 processor cores: give --processes 8 or less"
    assert fit.crowded(config, 9) == cores
    assert make_plan(config, 9).missing[-1] == cores
    monkeypatch.setattr(fit, "memory_bytes", lambda: 3.5 * each)
    said = fit.crowded(config, 4)
    assert said == (
        f"4 processes are more than fit into this machine's {3.5 * each / GIB:.1f} GiB of memory at {each / GIB:.1f} GiB each"
        " (the estimate of --dry-run): give --processes 3 or less"
    )
    # Each with a run of its own shares out nothing.
    alone = max(estimate_memory(config, config.model.shape)[peak] for peak in ("update_peak", "rollout_peak"))
    assert alone > each
    monkeypatch.setattr(fit, "memory_bytes", lambda: 4 * each)
    assert f"{alone / GIB:.1f} GiB each" in str(fit.crowded(config, 4, of_one_run=False))
    monkeypatch.setattr(fit, "memory_bytes", lambda: each / 2)
    assert str(fit.crowded(config, 4)).endswith("and one does not fit either: see --dry-run without --processes")
    monkeypatch.setattr(fit, "has_cuda", lambda: True)
    assert fit.crowded(config, 8) is None
    assert fit.crowded(config, 9) == cores
