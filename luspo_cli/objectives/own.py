"""What functions of the user's own are called with in the place of parts of an objective, and what they may return.

Decided here: they see tensors with nothing at masked positions (log-probs 0, advantages 0 in rows without a token), and
the sizes of the whole mini-batch, so that a loss written with these is the same however the batch was padded and split. What they
raise, and a wrong shape, becomes one sentence with the line of their file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.own_objective import OWN, functions_of, load_own
from luspo_cli.errors import RunError
from luspo_cli.function_path import said
from luspo_cli.objectives.aggregation import BatchSize, GroupCounts
from luspo_cli.objectives.surrogate import SurrogateLoss


@dataclass(frozen=True)
class ObjectiveBatch:
    """The rows of one micro-batch; a leading axis holds batches that know nothing of each other (`luspo lab`)."""

    logprobs: torch.Tensor
    """[..., B, T] natural logs under the policy, with gradient; 0 where masked."""
    old_logprobs: torch.Tensor
    """[..., B, T] before the batch's first update; 0 where masked."""
    log_ratio: torch.Tensor
    """[..., B, T] their difference, with gradient."""
    advantages: torch.Tensor
    """[..., B, 1]."""
    mask: torch.Tensor
    """[..., B, T] bool, true on response tokens."""
    amounts: torch.Tensor
    """[..., B, T] how many tokens stand at a position: 1, or 0 where masked; in `luspo lab` also more. To sum over tokens,
    multiply by it."""
    lengths: torch.Tensor
    """[..., B, 1] tokens of each row; 1 in a row without one, so that it can be divided by."""
    sequences: torch.Tensor
    """[..., 1, 1] N, sequences of the whole mini-batch; at least 1."""
    tokens: torch.Tensor
    """[..., 1, 1] M, tokens of the whole mini-batch; at least 1."""
    max_response_length: int | None
    """L, the response limit; None where the caller of `policy_loss` did not say it."""
    group_ids: torch.Tensor | None
    """[..., B] which rows answer one prompt."""
    groups: GroupCounts | None
    """Sizes of the groups of the whole mini-batch, where the base's aggregation needs them (dapo_prompt_mean, balanced)."""
    config: ObjectiveConfig
    """With the base's free keys, such as `clip_low`."""


class OwnParts:
    """The functions of an objective, called on one batch."""

    def __init__(self, config: ObjectiveConfig, batch: ObjectiveBatch) -> None:
        self._config, self._batch = config, batch
        self._functions = functions_of(config)

    def ratio(self) -> torch.Tensor:
        """[..., B, 1] or [..., B, T], as the base has it."""
        found = self._called("ratio", self._functions.ratio, self._batch)
        wanted = self._row_shape if self._config.by_sequence else self._token_shape
        if found.shape != wanted:
            each = "sequence" if self._config.by_sequence else "token"
            raise self._wrong(
                "ratio", found, f"{list(wanted)}, since its base {self._config.base} has one ratio a {each}"
            )
        return self._where_tokens_are(found, 1)

    def surrogate(self, ratio: torch.Tensor) -> SurrogateLoss:
        """The losses, and the marks where the function gives them."""
        given = self._called(
            "surrogate", self._functions.surrogate, ratio, self._batch, kind=(torch.Tensor, SurrogateLoss)
        )
        found = given if isinstance(given, SurrogateLoss) else SurrogateLoss(given, None, None)
        for name, value in found._asdict().items():
            if not isinstance(value, torch.Tensor) and (value is not None or name == "loss"):
                raise self._no_tensor("surrogate", value, f" as {name}")
        shapes = (self._token_shape, self._row_shape)
        if found.loss.shape not in shapes:
            raise self._wrong("surrogate", found.loss, " or ".join(str(list(shape)) for shape in shapes))
        for mark in found[1:]:
            if mark is not None and (mark.shape != ratio.shape or mark.dtype != torch.bool):
                raise self._wrong("surrogate", mark, f"marks that are bool of the ratio's shape, {list(ratio.shape)}")
        return found._replace(loss=self._where_tokens_are(found.loss, 0))

    def weights(self) -> torch.Tensor:
        """[..., B, T] of the elements, times the tokens that stand there."""
        found = self._called("aggregation", self._functions.aggregation, self._batch, kind=(torch.Tensor, float, int))
        found = torch.as_tensor(found, dtype=self._batch.logprobs.dtype, device=self._batch.logprobs.device)
        try:
            found = found.expand(self._token_shape)
        except RuntimeError:
            raise self._wrong(
                "aggregation", found, f"a weight of each token, which broadcasts to {list(self._token_shape)}"
            ) from None
        return self._where_tokens_are(found, 0) * self._batch.amounts

    @property
    def _token_shape(self) -> torch.Size:
        return self._batch.logprobs.shape

    @property
    def _row_shape(self) -> torch.Size:
        return torch.Size((*self._token_shape[:-1], 1))

    def _where_tokens_are(self, found: torch.Tensor, elsewhere: float) -> torch.Tensor:
        mask = self._batch.mask
        return torch.where(mask if found.shape == mask.shape else mask.any(dim=-1, keepdim=True), found, elsewhere)

    def _called(self, part: str, function: Callable[..., Any] | None, *given: Any, kind: Any = torch.Tensor) -> Any:
        assert function is not None  # the configuration says that it is there
        found = called(self._config.name, part, function, *given)
        if not isinstance(found, kind):
            raise self._no_tensor(part, found)
        return found

    def _no_tensor(self, part: str, found: object, where: str = "") -> RunError:
        return RunError(
            f"objective {self._config.name}: its {part} returned {type(found).__name__}{where} and no tensor"
        )

    def _wrong(self, part: str, found: torch.Tensor, wanted: str) -> RunError:
        return RunError(
            f"objective {self._config.name}: its {part} returned {str(found.dtype).removeprefix('torch.')} of shape"
            f" {list(found.shape)} and must return {wanted}"
        )


def advantage_of(config: ObjectiveConfig) -> str | Callable[[Sequence[float]], list[float]]:
    """How one group's rewards become advantages: the built-in kind's name, or the user's function with what it returns checked.

    RunError, from the function, where it fails or returns something else than one finite number a response.
    """
    if config.advantage != OWN:
        return str(config.advantage)
    function = functions_of(config).advantage
    assert function is not None  # the configuration says that it is there

    def advantage(rewards: Sequence[float]) -> list[float]:
        found = called(config.name, "advantage", function, list(rewards))
        try:
            numbers = [float(one) for one in found]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) != len(rewards) or not all(map(math.isfinite, numbers)):
            raise RunError(
                f"objective {config.name}: its advantage returned {str(found)[:80]} for the rewards {list(rewards)} and must"
                f" return {len(rewards)} finite numbers"
            )
        return numbers

    return advantage


def called(name: str, part: str, function: Callable[..., Any], *given: Any) -> Any:
    """What a function of objective `name` returns; RunError, one sentence, for what it raises."""
    try:
        return function(*given)
    except (Exception, SystemExit) as error:  # an exit would end a run in the middle as if it had been whole
        raise RunError(f"objective {name}: its {part} failed: {said(error, Path(load_own(name).file))}") from error


def objective_batch(
    config: ObjectiveConfig,
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    log_ratio: torch.Tensor,
    advantage: torch.Tensor,
    mask: torch.Tensor,
    amounts: torch.Tensor,
    size: BatchSize,
    group_ids: torch.Tensor | None,
) -> ObjectiveBatch:
    """What functions see of a batch: tensors [..., B, T] and [..., B, 1] as `policy_loss` has cleaned them."""
    dtype = logprobs.dtype
    amounts = amounts.to(dtype)

    def whole(number: float | torch.Tensor) -> torch.Tensor:
        found = torch.as_tensor(number, dtype=dtype, device=logprobs.device).clamp(min=1)
        return found.reshape(*found.shape, 1, 1)

    return ObjectiveBatch(
        logprobs=logprobs,
        old_logprobs=torch.where(mask, old_logprobs.detach().to(dtype), 0),
        log_ratio=log_ratio,
        advantages=advantage,
        mask=mask,
        amounts=amounts,
        lengths=amounts.sum(dim=-1, keepdim=True).clamp(min=1),
        sequences=whole(size.sequences),
        tokens=whole(size.tokens),
        max_response_length=size.max_response_length,
        group_ids=group_ids,
        groups=size.groups,
        config=config,
    )
