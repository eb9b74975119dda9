"""Weights from the trainer to a sampler's workers as bytes over TCP: any device, any machine, nothing on a disk.

The trainer listens on a free port and the workers, which heard of it through the server's control plane, connect. A worker first
sends the secret of this push, so that a stray connection gets no weights. The stream is the tensors' bytes one after the other,
in the order and with the shapes that the control plane announced. It is not encrypted: for one machine or a trusted network.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

SECRET_BYTES = 16


def checkpoint_weights(policy: nn.Module, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """The policy's weights under their checkpoint names in `dtype`; a tied head comes once, sharded ones are gathered."""
    for name, weight in policy.named_parameters():
        gather = getattr(weight, "full_tensor", None)
        yield name, (gather() if gather else weight).detach().to(dtype)


def describe(policy: nn.Module, dtype: torch.dtype) -> dict[str, Any]:
    """Names, shapes and type of `checkpoint_weights`, as JSON."""
    named = list(policy.named_parameters())
    return {
        "names": [name for name, _ in named],
        "shapes": [list(weight.shape) for _, weight in named],
        "dtype": str(dtype).removeprefix("torch."),
    }


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
