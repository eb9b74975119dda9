"""One decode step: the next token of every row in, its logits out; where it can be, as a recording of what the layers did once.

A step of a small model is a hundred short operations, and its layers' Python takes longer than they do. A recording
(torch.jit.trace) is the flat list of these operations with sizes left open, run without Python: the same operations in the same
order give the same bits. Weights are inputs of it, so that whatever replaces one is read. It is made of plain decoders in
float32 on a CPU alone, whose operations depend on no number (no experts, no positions that are scaled by length), and kept only
where it gives the layers' own logits, keys and values, bit for bit, at another number of rows and columns than it was made with.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luspo_cli.errors import UsageError
from luspo_cli.policy.logprobs import head_logits
from luspo_cli.policy.supported import graph_unfit, steps_are_plain
from luspo_cli.rollout.in_process.cache import BLOCK, Columns, KeyValueCache, decode_mask
from luspo_cli.rollout.in_process.decode_graph import GRAPH_BLOCK, DecodeGraph

ROWS, COLUMNS = 3, 5
"""What a recording is made with: sizes that no model has, so that none of them is taken for a constant."""

logger = logging.getLogger(__name__)


class DecodeStep:
    """Decode steps of one model (parts `model` and `lm_head`), whose layers stay and whose weights each call reads anew."""

    def __init__(self, model: Any, record: bool = True, graph: bool = False) -> None:
        """`record`: where it can be. `graph`: over the cache's whole storage, on CUDA as a graph; then nothing is recorded."""
        self.model = model
        if graph and (reason := graph_unfit(model.config.to_dict())):
            raise UsageError(reason)
        self.graph = DecodeGraph(self._whole) if graph else None
        self._to_record = record
        self._places: list[tuple[dict[str, Any], str]] = []
        self._recording: Any = None

    def next(self, tokens: Tensor, positions: Tensor, cache: KeyValueCache) -> Tensor:
        """Logits [R, V] after `tokens` [R] at `positions` [R], whose keys and values come into a new column of `cache`."""
        if self.graph is None:
            return self(tokens, positions, *cache.open_column())
        return self.graph(tokens, positions, cache.open_in_place())

    @property
    def block(self) -> int:
        """Columns by which the cache grows."""
        return BLOCK if self.graph is None else GRAPH_BLOCK

    def begin(self) -> None:
        """A call of the sampler begins: weights and storage may lie elsewhere than in the last one."""
        if self.graph is not None:
            self.graph.forget()

    @property
    def is_recorded(self) -> bool:
        """Whether the next call runs a recording."""
        return self._recording is not None

    def __call__(self, tokens: Tensor, positions: Tensor, valid: Tensor, columns: Columns) -> Tensor:
        """Logits [R, V] after `tokens` [R] at `positions` [R]; their keys and values are written into the last of the `columns`.

        `valid` [R, S]: which columns a row reads.
        """
        inputs = tokens, positions, valid, *columns.keys, *columns.values
        if self._recording is None:
            logits = self._layers(*inputs)
            if self._to_record:  # known now: the device may have been another one before the first call
                self._to_record = False
                if _is_recordable(self.model):
                    self._recording = self._recorded(inputs, logits)
            return logits
        # Fusing or rewriting operations would change their last bits.
        with torch.jit.optimized_execution(False):
            found: Tensor = self._recording(*self._weights(), *inputs)
        return found

    def _layers(self, tokens: Tensor, positions: Tensor, valid: Tensor, *states: Tensor) -> Tensor:
        layers = len(states) // 2
        return self._whole(tokens, positions, valid, Columns(states[:layers], states[layers:]))

    def _whole(self, tokens: Tensor, positions: Tensor, valid: Tensor, cache: Any) -> Tensor:
        hidden = self.model.model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=decode_mask(valid, self.model.dtype),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        return head_logits(self.model, hidden[:, -1])

    def _weights(self) -> list[Tensor]:
        return [holder[key] for holder, key in self._places]

    def _recorded(self, inputs: Sequence[Tensor], logits: Tensor) -> Any:
        """The recording; None where it cannot be made or gives other bits than `logits` for these `inputs`."""
        self._places = [
            (holder, key)
            for module in self.model.modules()
            for holder in (module._parameters, module._buffers)
            for key, tensor in holder.items()
            if tensor is not None
        ]
        own = self._weights()

        def step(*given: Tensor) -> Tensor:
            try:
                for (holder, key), weight in zip(self._places, given[: len(own)], strict=True):
                    holder[key] = weight
                return self._layers(*given[len(own) :])
            finally:
                for (holder, key), weight in zip(self._places, own, strict=True):
                    holder[key] = weight

        tokens, positions, valid, *states = inputs
        small = [
            tokens.new_zeros(ROWS),
            positions.new_zeros(ROWS),
            valid.new_ones(ROWS, COLUMNS),
            *(state.new_zeros(ROWS, state.shape[1], COLUMNS, state.shape[3]) for state in states),
        ]
        try:
            with warnings.catch_warnings():
                # Of each size that is compared in Python, and that torch will part with tracing one day.
                warnings.simplefilter("ignore")
                recording = torch.jit.trace(step, (*own, *small), check_trace=False)
            written = [state.clone() for state in states]
            with torch.jit.optimized_execution(False):
                again = recording(*own, *inputs)
            same = torch.equal(again, logits) and all(map(torch.equal, states, written))
            reason = "" if same and not _holds_tensors(recording) else "it does not give the layers' own numbers"
        except Exception as error:  # of torch's many kinds
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if reason:
            logger.warning(
                f"sampling runs the model's layers one by one: a decode step could not be recorded ({reason})"
            )
            return None
        return recording


def _is_recordable(model: Any) -> bool:
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or not steps_are_plain(model.config.to_dict()):
        return False
    # A tensor beside parameters and buffers would be taken for a constant and its later values not be read.
    return not any(isinstance(value, Tensor) for module in model.modules() for value in vars(module).values())


def _holds_tensors(recording: Any) -> bool:
    """Whether more than single numbers were taken for constants."""
    graph = recording.inlined_graph  # its nodes do not outlive it
    constants = [node for node in graph.findAllNodes("prim::Constant") if node.hasAttribute("value")]
    held = [node.t("value") for node in constants if node.kindOf("value") == "t"]
    return any(tensor.dim() for tensor in held)
