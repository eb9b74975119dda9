"""A decode step over the whole storage of the cache, whose sizes and addresses stay from step to step, as a CUDA graph.

A step of few rows is hundreds of small kernels, and a GPU waits for the processor to start each of them. A graph starts all of
them at once, but at the sizes and addresses that it was captured with. So the step reads every column of the storage, writes the
open one by a number that lies on the device, and is captured anew after each block of columns and each cut of rows. Columns
that no row reads change the last bits of sums alone. Where there is no CUDA the same step runs as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from luspo_cli.errors import RunError
from luspo_cli.rollout.in_process.cache import WholeStorage

GRAPH_BLOCK = 256
"""Columns by which the storage grows under a graph: a capture takes about as long as several steps."""

Step = Callable[[Tensor, Tensor, Tensor, Any], Tensor]
Captured = tuple[Callable[[], None], Tensor]
"""What replays a computation, and the tensor in which its result then is."""


class DecodeGraph:
    """Replays `step` (tokens [R], positions [R], valid [R, C], cache → logits [R, V]) while its storage stays where it is."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.capture: Callable[[Callable[[], Tensor]], Captured] | None = None
        """How a computation becomes one that can be replayed; None: as a CUDA graph, and where there is no CUDA not at all."""
        self.captures = 0
        """How often that was done."""
        self._captured: Captured | None = None
        self._place: tuple[int, ...] = ()
        self._tokens = self._positions = self._open = torch.zeros(0)

    def forget(self) -> None:
        """Let what was captured go: the weights or the storage may lie elsewhere from now on."""
        self._captured, self._place = None, ()

    def __call__(self, tokens: Tensor, positions: Tensor, storage: WholeStorage) -> Tensor:
        """Logits [R, V], which hold until the next call; keys and values are written into the open column."""
        capture = self.capture or (cuda_graph if tokens.is_cuda else None)
        if capture is None:
            return self.step(tokens, positions, storage.valid, storage)
        if self._captured is None or storage.place != self._place:
            self.forget()  # before another takes its memory
            self._tokens, self._positions, self._open = tokens.clone(), positions.clone(), storage.open.clone()
            own = WholeStorage(storage.keys, storage.values, storage.valid, self._open)
            self._captured = capture(lambda: self.step(self._tokens, self._positions, own.valid, own))
            self._place = storage.place
            self.captures += 1
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        self._open.copy_(storage.open)
        replay, logits = self._captured
        replay()
        return logits


def cuda_graph(compute: Callable[[], Tensor]) -> Captured:
    """Capture `compute` as a CUDA graph; RunError where it cannot be. It is run before, and again with each replay."""
    try:
        # Once outside: what kernels set up at their first call cannot be captured.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Only what this thread does is captured, and only it may not wait for the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = compute()
    except RuntimeError as error:
        raise RunError(
            "a decode step of this model cannot be captured as a CUDA graph"
            f" ({str(error).strip().splitlines()[0]}): set model.kernels.decode = layers"
        ) from error
    return graph.replay, result
