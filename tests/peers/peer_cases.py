"""Objectives and random batches on which our loss and a peer's are compared; nothing here needs more than torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig, resolve
from luspo_cli.config.peers import PeerSettings
from luspo_cli.objectives import policy_loss

LIMIT = 40
"""The response limit, divisor of seq-mean-token-sum-norm: not the width of the batch."""
CLIPS = {"clip": (0.2, 0.28), "cispo": (1.0, 0.3), "gmpo": (0.2, 0.3)}
SEQUENCE_CLIP = (2e-3, 2.5e-3)


def objectives(settings: Callable[[ObjectiveConfig], PeerSettings]) -> dict[str, ObjectiveConfig]:
    """All names, every mix of parts that the peer has settings for, and further terms on top of some."""
    found = {name: resolve(name) for name in NAMED_OBJECTIVES}
    for ratio, surrogate, aggregation in product(
        ("token", "sequence"),
        ("clip", "cispo", "sapo", "gmpo"),
        ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
    ):
        if surrogate == "gmpo" and ratio == "sequence":
            continue
        low, high = SEQUENCE_CLIP if ratio == "sequence" and surrogate == "clip" else CLIPS.get(surrogate, (None, None))
        temperatures = (1.0, 1.3) if surrogate == "sapo" else (None, None)
        found[f"{ratio} {surrogate} {aggregation}"] = resolve(
            "custom",
            advantage="group_mean_std",
            ratio=ratio,
            surrogate=surrogate,
            aggregation=aggregation,
            clip_low=low,
            clip_high=high,
            sapo_temperature_positive=temperatures[0],
            sapo_temperature_negative=temperatures[1],
        )
    for surrogate, aggregation in product(
        ("dppo-tv", "dppo-kl", "reinforce"),
        ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
    ):
        bounds = {} if surrogate == "reinforce" else {"clip_low": 0.03, "clip_high": 0.05, "ratio_cap": 1.2}
        parts = {"advantage": "group_mean", "ratio": "token", "surrogate": surrogate, "aggregation": aggregation}
        found[f"{surrogate} {aggregation}"] = resolve("custom", **parts, **bounds)
    for normalise, exponent in (("none", 0.0), ("none", 1.0), ("batch", 0.0), ("batch", 1.0), ("delta-l", 1.0)):
        found[f"length power {exponent} {normalise}"] = resolve(
            "length_power", length_exponent=exponent, length_normalise=normalise
        )
    found["vespo with other exponents"] = resolve("vespo", vespo_k_positive=1.5, vespo_lambda_negative=0.7)
    found["std of the batch"] = resolve(
        "custom", advantage="group_mean_batch_std", ratio="token", surrogate="clip", aggregation="token-mean",
        clip_low=0.2, clip_high=0.28,
    )  # fmt: skip
    for name in ("grpo", "dr_grpo", "dapo"):
        found[f"{name} with a dual clip"] = resolve(name, dual_clip=1.5)
    for name, clip_on in product(("gspo", "luspo"), ("root", "sum")):
        found[f"{name} on the {clip_on}"] = resolve(name, clip_on=clip_on, clip_low=4e-3, clip_high=5e-3)
    found["luspo with a dual clip"] = resolve("luspo", dual_clip=1.003)
    product_of_ratios = {"ratio": "sequence-product", "surrogate": "clip", "aggregation": "seq-mean-token-sum"}
    found["sequence-product clip seq-mean-token-sum"] = resolve(
        "custom", advantage="group_mean", clip_low=0.02, clip_high=0.03, clip_on="sum", **product_of_ratios
    )
    for name, estimator in product(NAMED_OBJECTIVES, ("k1", "k2", "k3")):
        found[f"{name} with {estimator}"] = resolve(name, kl_coefficient=0.3, kl_estimator=estimator)
    for name in NAMED_OBJECTIVES:
        found[f"{name} with entropy"] = resolve(name, entropy_coefficient=0.2)
    same = ((), ("a mean over the rows of each micro-batch",))  # a whole mini-batch is one micro-batch here
    return {
        name: config
        for name, config in found.items()
        if settings(config).values and settings(config).differences in same
    }


@dataclass
class Batch:
    """[B, T] tensors of one mini-batch; rows are padded on the right and have gaps, as between turns of a tool."""

    logprobs: torch.Tensor
    old_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    """[B]"""
    mask: torch.Tensor
    lengths: torch.Tensor
    """[B], gaps included."""


def make_batch(config: ObjectiveConfig, seed: int, dtype: torch.dtype) -> Batch:
    """A batch whose ratios leave the objective's clip range in both directions, and stay within it."""
    generator = torch.Generator().manual_seed(seed)
    rows, width = 12, 3 + seed % 9

    def normal() -> torch.Tensor:
        return torch.randn(rows, width, generator=generator, dtype=torch.float64)

    lengths = torch.randint(1, width + 1, (rows,), generator=generator)
    lengths[:2] = torch.tensor([1, width])
    inside = torch.arange(width) < lengths[:, None]
    gaps = torch.rand(rows, width, generator=generator) < 0.2
    gaps[:, 0] = False  # every row has a token: peers count empty rows, we do not
    spread = max(config.clip_low or 0.2, config.clip_high or 0.2) if config.by_sequence else 0.4
    old = -normal().abs() - 0.1
    drift = spread * normal()
    if config.by_sequence:
        drift = 0.3 * drift + 1.5 * spread * normal()[:, :1]  # a row's tokens drift together
    return Batch(
        logprobs=(old + drift).to(dtype).requires_grad_(),
        old_logprobs=old.to(dtype),
        ref_logprobs=(old + 0.3 * normal()).to(dtype),
        entropy=normal().abs().to(dtype).requires_grad_(),
        advantages=torch.randn(rows, generator=generator, dtype=torch.float64).to(dtype),
        mask=inside & ~gaps,
        lengths=lengths,
    )


def our_loss(config: ObjectiveConfig, batch: Batch) -> tuple[torch.Tensor, dict[str, float]]:
    """Our loss and its diagnostics."""
    result = policy_loss(
        config,
        batch.logprobs,
        batch.old_logprobs,
        batch.advantages,
        batch.mask,
        max_response_length=LIMIT,
        ref_logprobs=batch.ref_logprobs if config.kl_coefficient > 0 else None,
        entropy=batch.entropy if config.entropy_coefficient > 0 else None,
    )
    return result.loss, result.diagnostics


def compare(
    config: ObjectiveConfig,
    peer_loss: Callable[[Batch], torch.Tensor],
    tolerance: float,
    dtype: torch.dtype,
    seeds: int = 6,
    ours: Callable[[Batch], torch.Tensor] | None = None,
) -> float:
    """Assert equal values and gradients over random batches; the largest relative difference.

    `ours`: another way to our loss than calling it; its clip fractions are those of the direct call.
    Differences are relative to the value, or to 1 if that is larger, and to the largest gradient of a token.
    """
    worst, clipped = 0.0, {"low": 0.0, "high": 0.0}
    for seed in range(seeds):
        batch = make_batch(config, seed, dtype)
        inputs = [batch.logprobs, *([batch.entropy] if config.entropy_coefficient > 0 else [])]
        value, diagnostics = our_loss(config, batch)
        if ours is not None:
            value = ours(batch)
        theirs = peer_loss(batch)
        for side in clipped:
            clipped[side] += diagnostics[f"objective/clip_{side}_fraction"] / seeds
        scale = max(1.0, float(value.detach().abs()))
        worst = max(worst, float((value - theirs).detach().abs()) / scale)
        own = torch.autograd.grad(value, inputs)
        other = torch.autograd.grad(theirs, inputs)
        for one, two in zip(own, other, strict=True):
            assert one.abs().max() > 0
            assert not one[~batch.mask].any()
            worst = max(worst, float((one - two).abs().max() / one.abs().max()))
    if config.surrogate in ("clip", "gmpo", "dppo-tv", "dppo-kl"):
        assert all(0.01 < share < 0.6 for share in clipped.values()), clipped  # or nothing was compared
    assert worst <= tolerance
    return worst
