"""The keys and values of the in-process sampler: the tokens of all rows end in one column, so a long row begins further left.

All live rows write their next token into one shared column, so a decode step is one rectangular call whatever the prompt
lengths. A new row may join at any time: its prompt is laid into the columns that end there. A finished row's place is given to
a new row or to a live one from the end, and leading columns that no live row uses are left out of every view. Storage grows by
whole blocks instead of one concatenation a token; what was cut out is freed then.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

BLOCK = 64


class _LayerCache:
    """What transformers asks of any cache: ours says where tokens stand by their positions, and is not compiled."""

    is_compileable = False

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0


class PromptCache(_LayerCache):
    """Collects the keys and values of one prefill call; `layers[i]` is ([N, K, P, D], [N, K, P, D])."""

    def __init__(self) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if layer_idx != len(self.layers):
            raise AssertionError(f"prefill visits layers in order; got {layer_idx} after {len(self.layers)}")
        self.layers.append((key, value))
        return key, value


class Columns(_LayerCache):
    """The columns in use, [R, K, S, D] a layer, the last of them open: what one decode step reads and writes."""

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.keys, self.values = keys, values

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one decode step's [R, K, 1, D] into the open column; returns all columns in use."""
        keys, values = self.keys[layer_idx], self.values[layer_idx]
        keys[:, :, -1:].copy_(key)
        values[:, :, -1:].copy_(value)
        return keys, values


class WholeStorage(_LayerCache):
    """All columns of the storage, [R, K, C, D] a layer, of which `valid` [R, C] says what a row reads.

    The open column is a number on the device, [1]: a step over this has the same sizes and addresses until the storage moves.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], valid: Tensor, column: Tensor) -> None:
        self.keys, self.values, self.valid, self.open = keys, values, valid, column

    @property
    def place(self) -> tuple[int, ...]:
        """Where the storage lies and how large it is."""
        states = (self.valid, *self.keys, *self.values)
        return (*self.valid.shape, *(tensor.data_ptr() for tensor in states))

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Write one decode step's [R, K, 1, D] into the open column; returns all columns."""
        for states, new in ((self.keys[layer_idx], key), (self.values[layer_idx], value)):
            states.index_copy_(2, self.open, new.to(states.dtype))
        return self.keys[layer_idx], self.values[layer_idx]


class KeyValueCache:
    """Keys and values of the live rows, [R, K, C, D] a layer, of which columns `begin:end` are in use."""

    def __init__(self, block: int = BLOCK) -> None:
        self.block = block
        """Columns by which the storage grows."""
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.valid = torch.zeros(0, 0, dtype=torch.bool)  # [R, C]
        self.end = 0
        self.begin = 0

    @property
    def rows(self) -> int:
        return self.valid.shape[0]

    def add(self, prompts: PromptCache, lengths: list[int], copies: int) -> None:
        """Append `copies` rows for each prompt; `lengths` are the prompts' true lengths (padding is on the right)."""
        longest = max(lengths)
        if self.rows == 0:
            self._allocate(prompts, longest)
        elif longest > self.end - self.begin:
            self._move(shift=longest - (self.end - self.begin))
        new = len(lengths) * copies
        columns = self.valid.shape[1]
        valid = torch.zeros(new, columns, dtype=torch.bool, device=self.valid.device)
        for i, length in enumerate(lengths):
            valid[i * copies : (i + 1) * copies, self.end - length : self.end] = True
        self.valid = torch.cat([self.valid, valid])
        for store, kind in ((self.keys, 0), (self.values, 1)):
            for layer, states in enumerate(prompts.layers):
                placed = self._placed(states[kind], lengths, copies, columns)
                store[layer] = torch.cat([store[layer], placed]) if len(store[layer]) else placed

    def keep(self, rows: Tensor) -> None:
        """Keep only these rows ([n] indices, each once, in the new order) and the columns that any of them uses.

        A row that keeps its place is not copied, and the others go into places that are left: cutting costs what it moves.
        """
        own = torch.arange(len(rows), device=rows.device)
        places = (rows != own).nonzero()[:, 0]
        for store in (self.keys, self.values):
            for states in store:
                used = states[:, :, self.begin : self.end]
                used[places] = used[rows[places]]
        self.valid = self.valid[rows]
        used_columns = self.valid.any(0).nonzero()
        self.begin = int(used_columns[0]) if len(used_columns) else self.end
        for store in (self.keys, self.values):
            for layer, states in enumerate(store):
                store[layer] = states[: len(rows), :, self.begin :]
        self.valid = self.valid[:, self.begin :]
        self.end -= self.begin
        self.begin = 0

    def open_column(self) -> tuple[Tensor, Columns]:
        """Make room for one more token a row: the columns in use, the new one included, and which a row reads [R, S]."""
        self._open()
        begin, number = self.begin, self.end - self.begin
        in_use = Columns(*([states.narrow(2, begin, number) for states in store] for store in (self.keys, self.values)))
        return self.valid[:, begin : self.end], in_use

    def open_in_place(self) -> WholeStorage:
        """Make room for one more token a row: the whole storage, with columns that no row reads."""
        self._open()
        return WholeStorage(self.keys, self.values, self.valid, torch.tensor([self.end - 1], device=self.valid.device))

    def _open(self) -> None:
        if self.end == self.valid.shape[1]:
            self._grow(self.block)
        self.valid[:, self.end] = True
        self.end += 1

    def _allocate(self, prompts: PromptCache, longest: int) -> None:
        columns = longest + self.block
        self.begin, self.end = 0, longest
        self.keys, self.values = [], []
        for key, value in prompts.layers:
            self.keys.append(key.new_zeros(0, key.shape[1], columns, key.shape[3]))
            self.values.append(value.new_zeros(0, value.shape[1], columns, value.shape[3]))
        self.valid = torch.zeros(0, columns, dtype=torch.bool, device=prompts.layers[0][0].device)

    def _placed(self, states: Tensor, lengths: list[int], copies: int, columns: int) -> Tensor:
        placed = states.new_zeros(len(lengths) * copies, states.shape[1], columns, states.shape[3])
        for i, length in enumerate(lengths):
            placed[i * copies : (i + 1) * copies, :, self.end - length : self.end] = states[i, :, :length]
        return placed

    def _grow(self, columns: int) -> None:
        for store in (self.keys, self.values):
            for layer, states in enumerate(store):
                room = states.new_zeros(states.shape[0], states.shape[1], columns, states.shape[3])
                store[layer] = torch.cat([states, room], dim=2)
        self.valid = torch.cat([self.valid, self.valid.new_zeros(self.rows, columns)], dim=1)

    def _move(self, shift: int) -> None:
        """Open `shift` columns before the used ones, for a prompt longer than every live row so far."""
        for store in (self.keys, self.values):
            for layer, states in enumerate(store):
                room = states.new_zeros(states.shape[0], states.shape[1], shift, states.shape[3])
                store[layer] = torch.cat([room, states[:, :, self.begin :]], dim=2)
        self.valid = torch.cat([self.valid.new_zeros(self.rows, shift), self.valid[:, self.begin :]], dim=1)
        self.end += shift - self.begin
        self.begin = 0


def decode_mask(valid: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn valid columns [B, S] (bool) into the additive mask [B, 1, 1, S] of a decode step."""
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    return mask.masked_fill_(~valid, torch.finfo(dtype).min)[:, None, None, :]
