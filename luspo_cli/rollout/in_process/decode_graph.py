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


class DecodeGraph:
    """Replays `step` (tokens [R], positions [R], valid [R, C], cache → logits [R, V]) while its storage stays where it is."""

    def __init__(self, step: Step) -> None:
        self.step = step
        self.captures = 0
        """How often a graph was captured."""
        self._graph: Any = None
        self._place: tuple[int, ...] = ()
        self._tokens = self._positions = self._open = self._logits = torch.zeros(0)

    def forget(self) -> None:
        """Let the captured graph go: the weights or the storage may lie elsewhere from now on."""
        self._graph, self._place = None, ()

    def __call__(self, tokens: Tensor, positions: Tensor, storage: WholeStorage) -> Tensor:
        """Logits [R, V], which hold until the next call; keys and values are written into the open column."""
        if not tokens.is_cuda:
            return self.step(tokens, positions, storage.valid, storage)
        if self._graph is None or storage.place != self._place:
            self._capture(tokens, positions, storage)
        self._tokens.copy_(tokens)
        self._positions.copy_(positions)
        self._open.copy_(storage.open)
        self._graph.replay()
        return self._logits

    def _capture(self, tokens: Tensor, positions: Tensor, storage: WholeStorage) -> None:
        self.forget()
        self._tokens, self._positions, self._open = tokens.clone(), positions.clone(), storage.open.clone()
        own = WholeStorage(storage.keys, storage.values, storage.valid, self._open)
        try:
            # Once outside: what kernels set up at their first call cannot be captured. It writes what the replay writes again.
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self.step(self._tokens, self._positions, own.valid, own)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Only what this thread does is captured, and only it may not wait for the device meanwhile.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._logits = self.step(self._tokens, self._positions, own.valid, own)
        except RuntimeError as error:
            raise RunError(
                "a decode step of this model cannot be captured as a CUDA graph"
                f" ({str(error).strip().splitlines()[0]}): set model.kernels.decode = layers"
            ) from error
        self._graph, self._place = graph, storage.place
        self.captures += 1
