"""Weights over a real socket: what arrives is what was sent, and nobody else gets any."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from luspo_cli.rollout.vllm.weight_stream import WeightSender, checkpoint_weights, describe, received_weights


def receive(sender: WeightSender, described: dict[str, Any], timeout_s: float = 10.0) -> dict[str, torch.Tensor]:
    found = received_weights(sender.address, described["names"], described["shapes"], described["dtype"], timeout_s)
    return dict(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_gets_every_weight(make_model: Callable[..., Any], dtype: torch.dtype, workers: int) -> None:
    model = make_model(seed=3)
    described = describe(model, dtype)
    with WeightSender("127.0.0.1", workers, 10.0) as sender, ThreadPoolExecutor(workers) as threads:
        answers = [threads.submit(receive, sender, described) for _ in range(workers)]
        sent = sender.send(checkpoint_weights(model, dtype))
        received = [answer.result() for answer in answers]
    assert sent == sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    for found in received:
        assert list(found) == [name for name, _ in model.named_parameters()]
        for name, weight in model.named_parameters():
            assert torch.equal(found[name], weight.to(dtype)), name


def test_a_tied_head_is_sent_once(make_model: Callable[..., Any]) -> None:
    assert "lm_head.weight" in describe(make_model(), torch.float32)["names"]
    assert "lm_head.weight" not in describe(make_model(tied=True), torch.float32)["names"]


def test_a_stranger_gets_nothing_and_does_not_take_the_workers_place(make_model: Callable[..., Any]) -> None:
    model = make_model()
    described = describe(model, torch.float32)
    with WeightSender("127.0.0.1", 1, 10.0) as sender, ThreadPoolExecutor(2) as threads, socket.socket() as stranger:
        stranger.connect((sender.address["host"], sender.address["port"]))
        stranger.sendall(b"x" * 16)
        answer = threads.submit(receive, sender, described)
        sender.send(checkpoint_weights(model, torch.float32))
        assert answer.result().keys() == set(described["names"])
        assert stranger.recv(1) == b""


def test_no_worker_comes() -> None:
    with WeightSender("127.0.0.1", 1, 0.2) as sender, pytest.raises(OSError, match="timed out"):
        sender.send([])


def test_a_closed_sender_stops_waiting() -> None:
    with WeightSender("127.0.0.1", 1, 30.0) as sender, ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(sender.send, [])
        sender.close()
        with pytest.raises(OSError, match=r".+"):
            waiting.result(timeout=5)


def test_a_stream_that_ends_early_is_no_weight(make_model: Callable[..., Any]) -> None:
    model = make_model()
    described = describe(model, torch.float32)
    with WeightSender("127.0.0.1", 1, 10.0) as sender, ThreadPoolExecutor(1) as thread:
        answer = thread.submit(receive, sender, described)
        sender.send(list(checkpoint_weights(model, torch.float32))[:-1])
        with pytest.raises(OSError, match="early"):
            answer.result(timeout=5)
