"""The experts that each token of a call of the sampler meets, kept for a replay in the update."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from luspo_cli.policy.routing import as_stored, taken


class ExpertsMet:
    """Filled pass by pass."""

    def __init__(self, found: list[tuple[Tensor, Tensor]], places: int) -> None:
        """`found`: what `read_routers` notes; `places` of response tokens, those of all rows end to end."""
        self._found, self._places = found, places
        self._prompts: list[np.ndarray] = []  # [P, L, k] each
        self._responses = torch.zeros(0)  # [places, L, k]

    def add_prompts(self, lengths: Sequence[int]) -> None:
        """Take the experts of prompts of these lengths, which one pass computed padded on the right."""
        chosen = taken(self._found)
        chosen = chosen.view(chosen.shape[0], len(lengths), -1, chosen.shape[-1]).permute(1, 2, 0, 3)
        self._prompts += [own[:length].cpu().numpy() for own, length in zip(chosen, lengths, strict=True)]

    def add_step(self, places: Tensor) -> None:
        """Take the experts of the tokens at these places [R], which one decode step was fed."""
        chosen = taken(self._found).transpose(0, 1)  # [R, L, k]
        if not self._responses.numel():
            self._responses = chosen.new_zeros(self._places, *chosen.shape[1:])
        self._responses[places] = chosen

    def of_row(self, prompt: int, first: int, length: int) -> bytes:
        """Those of a finished row whose response of `length` tokens, the last of which was fed to nobody, begins at `first`."""
        own = self._prompts[prompt]
        if length > 1:
            own = np.concatenate([own, self._responses[first : first + length - 1].cpu().numpy()])
        return as_stored(own)
