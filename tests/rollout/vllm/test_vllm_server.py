"""Servers: the sentence for each way in which one can fail, and a real local vLLM server that is pushed to.

The first part talks to small HTTP servers that answer as a failing vLLM does, or to nobody; the second part, marked `vllm`,
starts vLLM's own server with a tiny model.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from doubles.processes import free_port
from doubles.servers import Answer, PushTarget, answering, info, serving, wrapped
from luspo_cli.errors import RunError, UsageError
from luspo_cli.records import Prompt, Rollout
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.rollout.vllm import server as vllm_server
from luspo_cli.rollout.vllm.server import VllmServerSampler

ROOT = Path(__file__).resolve().parents[3]
PROMPTS = [Prompt("a", (5, 9, 17, 33, 2) * 3), Prompt("b", (7, 8))]
DRAWS = SamplingOptions(2, 8)


@pytest.fixture
def serve() -> Iterator[Callable[[Answer], str]]:
    """Return a function that starts a server answering (path, body) → (status, JSON), and gives its address."""
    with serving() as start:
        yield start


def sampler(
    *urls: str,
    tokenizer: Any = None,
    longest: int = 64,
    timeout_s: float = 5.0,
    draws: SamplingOptions = DRAWS,
) -> VllmServerSampler:
    return VllmServerSampler(urls, tokenizer, [1], "float32", 8, longest, timeout_s, draws)


def test_nobody_there() -> None:
    with pytest.raises(UsageError, match=r"does not answer .*vllm serve MODEL") as caught:
        sampler(f"http://127.0.0.1:{free_port()}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({"server_info": (404, {"detail": "Not Found"})}, "has no /server_info: .*VLLM_SERVER_DEV_MODE=1"),
        ({"server_info": {"hello": 1}}, "does not describe itself as vllm 0.32"),
        ({"server_info": info(max_model_len=50)}, "--max-model-len 64"),
        (
            {"server_info": {"vllm_config": {**info()["vllm_config"], "weight_transfer_config": None}}},
            "takes no weights from luspo",
        ),
        (
            {"server_info": {"vllm_config": {**info()["vllm_config"], "weight_transfer_config": {"backend": "nccl"}}}},
            "its transfer is nccl",
        ),
    ],
)
def test_a_server_of_another_kind(serve: Any, routes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        sampler(serve(answering(**routes)))
    assert "\n" not in str(caught.value)


def test_a_refused_handshake_gives_the_workers_own_reason(serve: Any, make_model: Callable[..., Any]) -> None:
    url = serve(answering(init_weight_transfer_engine=(500, wrapped("hidden_size 128 here"))))
    with pytest.raises(RunError, match=r"\(500: hidden_size 128 here\).*--resume"):
        sampler(url).load_weights(make_model())


def test_a_server_that_refuses_the_stream_does_not_leave_us_waiting(serve: Any, make_model: Callable[..., Any]) -> None:
    url = serve(answering(update_weights=(500, {"detail": "no memory"})))
    started = time.monotonic()
    with pytest.raises(RunError, match="no memory"):
        sampler(url, timeout_s=600.0).load_weights(make_model())
    assert time.monotonic() - started < 120  # of the 600 that a worker may take to come


def test_a_server_whose_workers_never_come(serve: Any, make_model: Callable[..., Any]) -> None:
    """It says that all went well, and nobody took the weights."""
    with pytest.raises(RunError, match=r"the weights did not reach the vLLM server \S+ \(timed out\)"):
        sampler(serve(answering()), timeout_s=0.5).load_weights(make_model())


def test_a_server_that_answers_too_late(serve: Any, make_model: Callable[..., Any]) -> None:
    """Here in an earlier request, where no worker is waited for."""
    url = serve(answering(start_weight_update=lambda body: time.sleep(1.5) or {}))
    with pytest.raises(RunError, match=r"did not answer within 0\.5 s \(/start_weight_update\)"):
        sampler(url, timeout_s=0.5).load_weights(make_model())


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """What the pushes of a test gathered, in order: the name of each weight, and whether that was in the main thread."""
    found: list[tuple[str, bool]] = []
    real = vllm_server.checkpoint_weights

    def noted(policy: Any, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in real(policy, dtype):
            found.append((name, threading.current_thread() is threading.main_thread()))
            yield name, weight

    monkeypatch.setattr(vllm_server, "checkpoint_weights", noted)
    return found


def test_one_pass_over_the_weights_serves_all_servers(serve: Any, make_model: Any, gathered: Any) -> None:
    """Getting a sharded weight is an exchange: each process makes it once a push, however many servers it has."""
    model, targets = make_model(), [PushTarget() for _ in range(3)]
    own = sampler(*map(serve, targets))
    for _ in range(2):
        gathered.clear()
        own.load_weights(model)
        assert gathered == [(name, True) for name, _ in model.named_parameters()]
        for target in targets:
            assert target.received.keys() == dict(model.named_parameters()).keys()
            assert all(torch.equal(target.received[name], weight) for name, weight in model.named_parameters())
            assert (target.version, target.active, target.routes[-1]) == (own.version, False, "resume")


def test_a_server_that_fails_leaves_the_pass_over_the_weights_whole(serve: Any, make_model: Any, gathered: Any) -> None:
    """The other processes of the run make as many exchanges, and the other servers get their weights."""
    model, targets = make_model(), [PushTarget(fail_after=2), PushTarget()]
    urls = [serve(target) for target in targets]
    with pytest.raises(RunError, match=rf"{urls[0]} refused /update_weights \(500: no memory left\).*--resume"):
        sampler(*urls).load_weights(model)
    assert len(gathered) == len(list(model.named_parameters())) == len(targets[1].received)
    assert targets[1].routes[-1] == "resume"
    refusing = sampler(*(serve(answering(start_weight_update=(500, wrapped("no")))) for _ in range(2)))
    gathered.clear()
    with pytest.raises(RunError, match="no"):
        refusing.load_weights(model)
    assert len(gathered) == len(list(model.named_parameters()))


def test_a_process_that_pushes_to_nobody_passes_over_the_weights_and_queues_none(
    serve: Any, make_model: Any, gathered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, target = make_model(), PushTarget()
    own = VllmServerSampler([serve(target)], None, [1], "float32", 8, 64, 5.0, DRAWS, pushes=False)
    asked = len(target.routes)
    monkeypatch.setattr(vllm_server.WeightFeed, "__init__", None)  # making one fails
    own.load_weights(model)
    assert gathered == [(name, True) for name, _ in model.named_parameters()]
    assert len(target.routes) == asked


def test_weights_that_cannot_be_gathered_are_no_push(
    serve: Any, make_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, targets = make_model(), [PushTarget(), PushTarget()]
    real = vllm_server.checkpoint_weights

    def lost(*arguments: Any) -> Iterator[Any]:
        yield from list(real(*arguments))[:3]
        raise ZeroDivisionError("the other process is gone")

    monkeypatch.setattr(vllm_server, "checkpoint_weights", lost)
    with pytest.raises(ZeroDivisionError):
        sampler(*map(serve, targets)).load_weights(model)
    for target in targets:
        assert "finish_weight_update" not in target.routes


def test_an_update_that_a_killed_trainer_left_open_is_finished_first(serve: Any, make_model: Any) -> None:
    model, target = make_model(), PushTarget(active=True)
    own = sampler(serve(target))
    own.load_weights(model)
    assert target.routes[-8:] == [
        "pause", "start_weight_update", "finish_weight_update", "start_weight_update", "update_weights",
        "finish_weight_update", "reset_prefix_cache", "resume",
    ]  # fmt: skip
    assert target.version == own.version
    assert len(target.received) == len(list(model.named_parameters()))


@pytest.mark.parametrize(
    ("mode", "draws", "start_it_with"),
    [
        ("raw_logprobs", SamplingOptions(2, 8, temperature=0.8), "processed_logprobs"),
        ("raw_logprobs", SamplingOptions(2, 8), None),
        ("raw_logprobs", SamplingOptions(2, 8, temperature=0.8, top_p=0.9), None),  # neither kind has them
        ("processed_logprobs", SamplingOptions(2, 8, temperature=0.8), None),
        ("processed_logprobs", SamplingOptions(2, 8, top_k=5), "raw_logprobs"),
        ("raw_logits", SamplingOptions(2, 8), "raw_logprobs"),
    ],
)
def test_a_server_that_reports_other_logprobs_than_it_could(
    serve: Any, mode: str, draws: SamplingOptions, start_it_with: str | None
) -> None:
    url = serve(answering(server_info=info(logprobs_mode=mode)))
    if start_it_with is None:
        sampler(url, draws=draws)
        return
    with pytest.raises(UsageError, match=rf"reports {mode}, .*: start it with --logprobs-mode {start_it_with}$"):
        sampler(url, draws=draws)


def drawn(version: str, **changes: Any) -> dict[str, Any]:
    choice = {
        "token_ids": [7, 1],
        "logprobs": {"content": [{"logprob": -0.5}, {"logprob": -0.25}]},
        "weight_versions": [{"version": version, "start": 0, "end": 2}],
        **changes,
    }
    return {"choices": [choice]}


def test_answers_of_other_weights_are_not_trained_on(serve: Any, made_tokenizer: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate=drawn("mine"))), tokenizer=made_tokenizer)
    own.version = "mine"
    groups = own.sample_groups(PROMPTS, SamplingOptions(2, 8))
    assert [[rollout.response_tokens for rollout in group] for group in groups] == [[(7, 1)] * 2] * 2
    assert groups[0][0].rollout_logprobs == (-0.5, -0.25)
    own.version = "newer"
    with pytest.raises(RunError, match="other weights"):
        own.sample_groups(PROMPTS, SamplingOptions(2, 8))


def test_rollouts_are_handed_over_while_others_are_drawn(serve: Any, made_tokenizer: Any) -> None:
    """The first problem's answers wait until one of the second's was handed over."""
    handed_over = threading.Event()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        if body["token_ids"] == list(PROMPTS[0].tokens):
            assert handed_over.wait(60)
        return drawn("mine")

    own = sampler(serve(answering(inference_v1_generate=answer)), tokenizer=made_tokenizer, timeout_s=90.0)
    own.version = "mine"
    heard: list[tuple[int, Rollout]] = []

    def on_finished(row: int, rollout: Rollout) -> None:
        heard.append((row, rollout))
        handed_over.set()

    groups = own.sample_groups(PROMPTS, SamplingOptions(2, 8), on_finished=on_finished)
    assert heard[0][0] in (2, 3)
    assert dict(heard) == dict(enumerate(rollout for group in groups for rollout in group))
    assert all(rollout.response for _, rollout in heard)


def test_what_a_listener_raises_ends_the_call(serve: Any, made_tokenizer: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate=drawn("mine"))), tokenizer=made_tokenizer)
    own.version = "mine"
    with pytest.raises(TypeError, match="takes"):
        own.sample_groups(PROMPTS, SamplingOptions(2, 8), on_finished=lambda: None)


def test_an_answer_in_another_form(serve: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate={"choices": []})))
    with pytest.raises(RunError, match=r"another form than vllm 0\.32"):
        own.sample_groups(PROMPTS, SamplingOptions(2, 8))


def test_a_server_that_takes_too_long(serve: Any) -> None:
    own = sampler(serve(answering(inference_v1_generate=lambda body: time.sleep(1.0) or {})), timeout_s=0.3)
    with pytest.raises(RunError, match=r"within 0\.3 s .*timeout_s.*--resume"):
        own.sample_groups(PROMPTS[:1], SamplingOptions(1, 8))


def test_problems_go_round_the_servers(serve: Any, made_tokenizer: Any) -> None:
    asked: dict[int, list[Any]] = {0: [], 1: []}

    def recorder(number: int) -> Answer:
        return answering(inference_v1_generate=lambda body: (asked[number].append(body), drawn("v"))[1])

    urls = [serve(recorder(number)) for number in range(2)]
    own = sampler(*urls, tokenizer=made_tokenizer)
    own.version = "v"
    prompts = [Prompt(str(i), (10 + i,)) for i in range(3)]
    heard: list[int] = []
    own.sample_groups(prompts, SamplingOptions(2, 8, seed=4), heard.append)
    assert sorted(body["token_ids"] for body in asked[0]) == [[10], [10], [12], [12]]
    assert sorted(body["token_ids"] for body in asked[1]) == [[11], [11]]
    assert len({body["sampling_params"]["seed"] for bodies in asked.values() for body in bodies}) == 6
    assert heard == [1, 2, 3, 4, 5, 6]


# The real server.


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    """The address of a vLLM server with a tiny model, the model's folder and the model."""
    from vllm_models import CONTEXT, served, tiny_model

    folder = tmp_path_factory.mktemp("served")
    model = tiny_model(folder, tied=True)
    with served(folder, CONTEXT) as url:
        yield url, folder, model


@pytest.mark.vllm
def test_pushed_weights_draw_over_a_server(live: tuple[str, Path, Any]) -> None:
    from vllm_models import differences, randomise

    from luspo_cli.training.made.build import made_tokenizer

    url, _, model = live
    own = sampler(url, tokenizer=made_tokenizer(512), longest=128, timeout_s=120.0)
    before = None
    for seed in (1, 2):
        randomise(model, seed)
        own.load_weights(model)
        greedy = [group[0] for group in own.sample_groups(PROMPTS, SamplingOptions(1, 20, 0.0))]
        drawn_now = own.sample_groups(PROMPTS, SamplingOptions(3, 40, 1.0, seed=3))
        for rollouts in (greedy, [rollout for group in drawn_now for rollout in group]):
            assert differences(model, rollouts, 1.0).max() < 1e-4
        assert own.sample_groups(PROMPTS, SamplingOptions(3, 40, 1.0, seed=3)) == drawn_now
        assert drawn_now != before
        before = drawn_now


@pytest.mark.vllm
def test_another_trainer_and_another_model_are_found_out(live: tuple[str, Path, Any]) -> None:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from luspo_cli.training.made.build import made_tokenizer

    url, _, model = live
    first, second = (sampler(url, tokenizer=made_tokenizer(512), longest=128, timeout_s=120.0) for _ in range(2))
    first.load_weights(model)
    second.load_weights(model)
    with pytest.raises(RunError, match="other weights"):
        first.sample_groups(PROMPTS, SamplingOptions(1, 4))
    other = Qwen2ForCausalLM(Qwen2Config(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2))
    stranger = sampler(url, tokenizer=made_tokenizer(512), longest=128, timeout_s=120.0)
    with pytest.raises(RunError, match=r"has hidden_size 128 and the trainer's 64: serve the trainer's model"):
        stranger.load_weights(other)
    assert len(second.sample_groups(PROMPTS, SamplingOptions(2, 4))) == 2  # and nothing is broken by it


KILLED = """
import sys, time
from pathlib import Path
from transformers import Qwen2ForCausalLM
from luspo_cli.rollout.vllm import server as vllm_server
from luspo_cli.rollout.sampler import SamplingOptions

url, folder, moment = sys.argv[1:]

def stand_still(*_):
    print("here", flush=True)
    time.sleep(600)

if moment == "before the stream":
    vllm_server._Server._stream = stand_still
else:
    real = vllm_server.checkpoint_weights
    def some(*arguments):
        yield from list(real(*arguments))[:int(moment)]
        stand_still()
    vllm_server.checkpoint_weights = some
model = Qwen2ForCausalLM.from_pretrained(folder)
vllm_server.VllmServerSampler([url], None, [1], "float32", 8, 128, 120.0, SamplingOptions(1, 8)).load_weights(model)
"""


@pytest.mark.vllm
@pytest.mark.parametrize("moment", ["before the stream", "2", "7", "20"])
def test_the_push_after_one_whose_trainer_was_killed(live: tuple[str, Path, Any], moment: str) -> None:
    """Killed with the update open, or with so many weights on their way: layers are half loaded, or loaded and not finished."""
    from vllm_models import differences, randomise

    from luspo_cli.training.made.build import made_tokenizer

    url, folder, model = live
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, url, str(folder), moment]
    trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert trainer.stdout is not None
    assert trainer.stdout.readline() == "here\n"
    time.sleep(2.0)  # for what is on its way
    trainer.kill()
    trainer.wait()
    own = sampler(url, tokenizer=made_tokenizer(512), longest=128, timeout_s=120.0)
    for seed in (11, 12):
        randomise(model, seed)
        own.load_weights(model)
        rollouts = [group[0] for group in own.sample_groups(PROMPTS, SamplingOptions(1, 20, 0.0))]
        assert differences(model, rollouts, 1.0).max() < 1e-4
