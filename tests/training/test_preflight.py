"""What is refused before the run folder is touched: with --if-exists replace the old run is still there afterwards."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from luspo_cli.commands.display.plan import plan_text
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import RunError, UsageError
from luspo_cli.policy.loading import LoadedModel
from luspo_cli.processes.ranks import ALONE, Ranks
from luspo_cli.rollout import samplers
from luspo_cli.training import session
from luspo_cli.training.dry_run import make_plan
from luspo_cli.training.preflight import check_stages
from luspo_cli.training.problems import LongestPrompt

Configure = Callable[..., TrainRun]


@pytest.fixture
def configure(tmp_path: Path, make_model: Callable[..., Any], made_tokenizer: Any) -> Configure:
    """Return a function from further assignments to a run on a random model (256 positions) and eight problems."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    make_model().save_pretrained(tmp_path / "model")
    made_tokenizer.save_pretrained(tmp_path / "model")
    rows = {
        "data_source": ["test"] * 8,
        "prompt": [[{"role": "user", "content": f"a{n}b2="}] for n in range(8)],
        "reward_model": [{"style": "rule", "ground_truth": "3"}] * 8,
    }
    for split in ("train", "test"):
        pq.write_table(pa.table(rows), tmp_path / f"{split}.parquet")
    sets = [f"model.path={tmp_path / 'model'}", f"data.train={tmp_path}", f"data.held_out={tmp_path}"]
    sets += ["evaluation.problems=4", "rollout.problems=4", "update.mini_batches=1", "run.steps=1"]
    return lambda *more: resolve_train(preset="tiny", sets=[*sets, *more])


@pytest.fixture
def old_run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl", "checkpoints/weights"):
        (run / name).write_text("{}")
    return run


def replace(config: TrainRun, run: Path) -> None:
    session.run_training(config, run, "replace", lambda _: None)


def nobody() -> str:
    """An address where no server listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.parametrize(
    ("sets", "variables", "sentence"),
    [
        (["rollout.sampler=vllm"], {}, "needs vllm, which is not installed"),
        (["rollout.sampler=vllm-server", "rollout.vllm.servers=[SERVER]"], {}, "does not answer"),
        (
            ["rollout.sampler=vllm-server", 'rollout.vllm.servers=[SERVER, "http://other"]'],
            {"RANK": "0", "WORLD_SIZE": "3"},
            "name one server a process at least",
        ),
        ([], {"ACCELERATE_USE_FSDP": "true"}, "leave out its FSDP options"),
        (["rollout.max_response_tokens=300"], {}, "the training prompt of problem .* set rollout.max_response_tokens to 25"),
    ],
)  # fmt: skip
def test_an_old_run_is_not_replaced_by_one_that_cannot_start(
    configure: Configure,
    old_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    sets: list[str],
    variables: dict[str, str],
    sentence: str,
) -> None:
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: False)
    config = configure(*(one.replace("SERVER", f'"{nobody()}"') for one in sets))
    monkeypatch.setattr(session, "joined", alone)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=sentence):
        replace(config, old_run)
    assert sorted(str(path.relative_to(old_run)) for path in old_run.rglob("*")) == [
        "checkpoints", "checkpoints/weights", "config.json", "metrics.jsonl"
    ]  # fmt: skip


class Alike(Ranks):
    """A process whose others do all as it does."""

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.size

    def broadcast(self, value: Any) -> Any:
        return value


def alone(wait_s: float) -> Any:
    """In the place of `joined`: the variables of a launcher stand there, and no other process."""
    return nullcontext(Alike(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))))


@pytest.mark.parametrize(
    ("sets", "training", "held_out", "advice"),
    [
        (["rollout.max_response_tokens=200"], 56, 56, None),
        (
            ["rollout.max_response_tokens=200"], 57, 0,
            "the training prompt of problem 'p' has 57 tokens and the model's context 256, so 200 response tokens do not fit:"
            " set rollout.max_response_tokens to 199 or less, or data.max_prompt_tokens to 56 or less",
        ),
        (
            ["rollout.max_response_tokens=300"], 260, 0,
            "the training prompt of problem 'p' has 260 tokens and the model's context 256, so 300 response tokens do not fit:"
            " take a model with a longer context",
        ),
        (
            ["rollout.max_response_tokens=100"], 9, 157,
            "the held-out prompt of problem 'h' has 157 tokens and the model's context 256, so 100 response tokens do not fit:"
            " set evaluation.max_response_tokens to 99 or less",
        ),
        (["rollout.max_response_tokens=100", "evaluation.max_response_tokens=99"], 9, 157, None),
        (
            ["rollout.max_response_tokens=100", "evaluation.max_response_tokens=250"], 9, 7,
            "the held-out prompt of problem 'h' has 7 tokens and the model's context 256, so 250 response tokens do not fit:"
            " set evaluation.max_response_tokens to 249 or less",
        ),
    ],
)  # fmt: skip
def test_prompt_and_response_limit_must_fit_into_the_context(
    make_model: Callable[..., Any], sets: list[str], training: int, held_out: int, advice: str | None
) -> None:
    config = resolve_train(preset="tiny", sets=sets)
    loaded = LoadedModel(make_model(), None, ())
    prompts = LongestPrompt(training, "p"), LongestPrompt(held_out, "h") if held_out else None
    if advice is None:
        check_stages(config, loaded, *prompts, ALONE)
        silent = SimpleNamespace(config=SimpleNamespace(get_text_config=object))
        check_stages(config, LoadedModel(silent, None, ()), LongestPrompt(10**6, "p"), None, ALONE)
        return
    with pytest.raises(UsageError) as caught:
        check_stages(config, loaded, *prompts, ALONE)
    assert str(caught.value) == advice


def test_what_a_vision_model_cannot_do_is_refused_too(make_model: Callable[..., Any]) -> None:
    model = make_model()
    model.visual = torch.nn.Linear(2, 2)
    model.config.image_token_id = 5
    loaded = LoadedModel(model, None, (), processor=object())
    config = resolve_train(
        preset="tiny",
        sets=["rollout.sampler=vllm", "rollout.temperature=0.7", "update.sampler_correction=sequence"],
    )
    with pytest.raises(UsageError, match=r"vLLM does not return .* of a vision model"):
        check_stages(config, loaded, None, None, ALONE)
    config = resolve_train(preset="tiny", sets=["model.sharding=full"])
    check_stages(config, loaded, None, None, ALONE)
    with pytest.raises(UsageError, match=r"set model\.freeze_vision = true"):
        check_stages(config, loaded, None, None, Ranks(1, 2))
    check_stages(
        resolve_train(preset="tiny", sets=["model.sharding=full", "model.freeze_vision=true"]),
        loaded,
        None,
        None,
        Ranks(1, 2),
    )


def test_a_correction_is_refused_for_the_sampler_that_would_run(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`auto` without vllm is the in-process sampler, which has the log-probs that vLLM does not return."""
    loaded = LoadedModel(make_model(), None, ())
    sets = ["update.sampler_correction=sequence", "rollout.top_p=0.9", "rollout.temperature=0.8"]
    config = resolve_train(preset="tiny", sets=[*sets, "rollout.sampler=auto"])
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: False)
    check_stages(config, loaded, None, None, ALONE)
    monkeypatch.setattr(samplers, "vllm_is_installed", lambda: True)
    monkeypatch.setattr(samplers, "has_cuda", lambda: True)
    with pytest.raises(UsageError, match="needs log-probs that vLLM does not return"):
        check_stages(config, loaded, None, None, ALONE)
    for sampler, servers in (("vllm", []), ("vllm-server", [f'rollout.vllm.servers=["{nobody()}"]'])):
        with pytest.raises(UsageError, match="needs log-probs that vLLM does not return"):
            resolve_train(preset="tiny", sets=[*sets, f"rollout.sampler={sampler}", *servers])


def test_a_gpu_without_memory_is_a_sentence(
    configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total capacity of 3 GiB"
        )

    monkeypatch.setattr(session, "make_stages", full)
    with pytest.raises(RunError, match=r"is used up \(tried to allocate 1\.16 GiB\): lower .*--resume") as caught:
        session.run_training(configure(), tmp_path / "new", "refuse", lambda _: None)
    for key in ("update.tokens_per_micro_batch", "model.gradient_checkpointing", "rollout.max_rows"):
        assert key in str(caught.value)
    assert "rollout.vllm.memory_share" in str(caught.value)
    assert (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize(("processes", "unlike"), [(1, False), (2, False), (3, False), (4, True), (6, False)])
def test_servers_that_cannot_be_shared_evenly_are_named_by_the_dry_run(
    monkeypatch: pytest.MonkeyPatch, processes: int, unlike: bool
) -> None:
    monkeypatch.setattr("luspo_cli.training.dry_run.crowded", lambda *_: None)
    servers = json.dumps([f"http://127.0.0.1:{port}" for port in range(1, 4)])
    config = resolve_train(preset="tiny", sets=["rollout.sampler=vllm-server", f"rollout.vllm.servers={servers}"])
    missing = make_plan(config, processes).missing
    names = f"rollout.vllm.servers names 3 and the run has {processes} processes, which cannot share them evenly"
    assert [reason.startswith(names) for reason in missing] == ([True] if unlike else [])


@pytest.mark.parametrize("sampler", ["vllm-server", "in-process"])
def test_the_dry_run_says_that_it_does_not_ask_servers(sampler: str) -> None:
    servers = [f'rollout.vllm.servers=["{nobody()}"]'] if sampler == "vllm-server" else []
    text = plan_text(make_plan(resolve_train(preset="tiny", sets=[f"rollout.sampler={sampler}", *servers])))
    assert ("whether its servers answer is not asked here" in text) == (sampler == "vllm-server")
