"""Weights from the trainer to a sampler's workers as bytes over TCP: any device, any machine, nothing on a disk.

The trainer listens on a free port and the workers, which heard of it through the server's control plane, connect. A worker first
sends the secret of this push, so that a stray connection gets no weights. The stream is the tensors' bytes one after the other,
in the order and with the shapes that the control plane announced. It is not encrypted: for one machine or a trusted network.
"""

from __future__ import annotations

import contextlib
import hmac
import queue
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.policy.experts import published
from luspo_cli.policy.lora import merged_weights
from luspo_cli.processes.sharding import whole_weight

SECRET_BYTES = 16
AHEAD = 1
"""How many weights are queued for a server while one is being sent to it; each is a copy in memory."""


def checkpoint_weights(policy: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The weights under their checkpoint names in `dtype`, adapters merged; tied ones come once, sharded ones gathered."""
    for fused, weight in merged_weights(policy):
        yield from published(fused, whole_weight(weight).to(dtype))


def describe(policy: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Names, shapes and type of `checkpoint_weights`, as JSON."""
    named = [
        (name, list(part.shape))
        for fused, weight in merged_weights(policy)
        for name, part in published(
            fused, torch.empty(weight.shape, device="meta")
        )  # a shared weight stays where it is
    ]
    return {
        "names": [name for name, _ in named],
        "shapes": [shape for _, shape in named],
        "dtype": str(dtype).removeprefix("torch."),
    }


class WeightFeed:
    """A bounded queue of weights between the thread that gathers them (`hand_out`) and the one that sends them to a server."""

    def __init__(self) -> None:
        self._queue: queue.Queue[tuple[str, Tensor] | None] = queue.Queue(AHEAD)
        self._closed = self._broken = False

    def put(self, weight: tuple[str, Tensor] | None) -> None:
        """Queue one weight, or None after the last. Waits while `AHEAD` weights are queued; after `close` it drops the weight."""
        if not self._closed:
            self._queue.put(weight)

    def close(self) -> None:
        """Called by the sending thread when it needs no more weights: a waiting `put` returns, and later weights are dropped."""
        self._closed = True
        with contextlib.suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    def break_off(self) -> None:
        """Called when gathering failed: the sending thread gets an OSError instead of a stream that ends too early."""
        self._broken = True
        self.put(None)

    @property
    def closed(self) -> bool:
        return self._closed

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        while (weight := self._queue.get()) is not None:
            yield weight
        if self._broken:
            raise ConnectionError("the trainer could not gather its weights")


def hand_out(weights: Iterable[tuple[str, Tensor]], feeds: Sequence[WeightFeed]) -> None:
    """Give every weight, on the CPU, to all feeds; at most `AHEAD` + 1 of them are in memory for each feed.

    All weights are gathered even where every feed has closed: gathering a sharded weight is a collective call, and the other
    processes of the run would wait for it for ever.
    """
    try:
        for name, weight in weights:
            if not all(feed.closed for feed in feeds):
                whole = weight.cpu().contiguous()
                for feed in feeds:
                    feed.put((name, whole))
    except BaseException:
        for feed in feeds:
            feed.break_off()
        raise
    for feed in feeds:
        feed.put(None)


class WeightSender:
    """Listens for the workers of one server and sends each of them the same weights; use as a context manager."""

    def __init__(self, towards: str, workers: int, timeout_s: float) -> None:
        """Raises OSError where the server's host `towards` cannot be reached."""
        self._workers, self._timeout_s = workers, timeout_s
        self._secret = secrets.token_bytes(SECRET_BYTES)
        self._listener = socket.create_server(("", 0), backlog=workers)
        self._listener.settimeout(timeout_s)
        self._host = _own_address(towards)

    def __enter__(self) -> WeightSender:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def address(self) -> dict[str, Any]:
        """What a worker needs to connect, as JSON."""
        return {"host": self._host, "port": self._listener.getsockname()[1], "secret": self._secret.hex()}

    def send(self, weights: Iterable[tuple[str, Tensor]]) -> int:
        """Wait for all workers, then send; returns the bytes that went to each. Raises OSError (TimeoutError is one)."""
        sent = 0
        with contextlib.ExitStack() as stack:
            workers = [stack.enter_context(self._accept()) for _ in range(self._workers)]
            for _, tensor in weights:
                view = _bytes(tensor.cpu().contiguous()).numpy().data
                for worker in workers:
                    worker.sendall(view)
                sent += len(view)
        return sent

    def close(self) -> None:
        """Stop listening; a `send` that waits for workers ends with OSError."""
        # close alone would leave a thread in accept(); shutdown wakes it.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> socket.socket:
        while True:
            worker, _ = self._listener.accept()
            worker.settimeout(self._timeout_s)
            with contextlib.suppress(OSError):
                if hmac.compare_digest(_receive(worker, SECRET_BYTES), self._secret):
                    return worker
            worker.close()


def received_weights(
    address: dict[str, Any], names: Sequence[str], shapes: Sequence[Sequence[int]], dtype: str, timeout_s: float
) -> Iterator[tuple[str, Tensor]]:
    """Connect to a `WeightSender` and yield what it sends, on the CPU; OSError where it ends early."""
    with socket.create_connection((address["host"], address["port"]), timeout=timeout_s) as trainer:
        trainer.sendall(bytes.fromhex(address["secret"]))
        for name, shape in zip(names, shapes, strict=True):
            tensor = torch.empty(tuple(shape), dtype=getattr(torch, dtype))
            _receive_into(trainer, _bytes(tensor).numpy().data)
            yield name, tensor


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def _receive(peer: socket.socket, size: int) -> bytes:
    content = bytearray(size)
    _receive_into(peer, memoryview(content))
    return bytes(content)


def _receive_into(peer: socket.socket, view: memoryview) -> None:
    while len(view):
        count = peer.recv_into(view)
        if not count:
            raise ConnectionError("the trainer ended the stream of weights early")
        view = view[count:]


def _own_address(towards: str) -> str:
    """The address of this machine that `towards` sees, found without sending anything."""
    kind, _, _, _, address = socket.getaddrinfo(towards, 1, type=socket.SOCK_DGRAM)[0]
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
