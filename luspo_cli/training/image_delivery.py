"""Brings a batch's images to the processes that compute its rows, and lets go of all others.

Each process decodes the images of the problems that it samples, and no other ones. The rows of a group are trained on one process
(policy/packing.py), which may be another one: that process alone is sent the group's images, or the features that a frozen tower
made of them. What no row needs, as those of groups without signal, is not sent and not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from luspo_cli.policy.packing import Row
from luspo_cli.processes.ranks import Ranks
from luspo_cli.records import Prompt, ScoredGroup
from luspo_cli.training.noise_floor import measured_rows
from luspo_cli.training.update import Updater


def deliver_images(
    groups: Sequence[ScoredGroup], updater: Updater, ranks: Ranks, noise_is_measured: bool
) -> list[ScoredGroup]:
    """The batch with the images that this process needs for it, and no others; all processes call this together.

    Each group's images are on one process at least. The rows of the noise floor are computed by every process.
    """
    if not any(group.problem.images for group in groups):
        return list(groups)
    budget = updater.config.update.tokens_per_micro_batch
    measured = _problems(measured_rows(groups, budget) if noise_is_measured else [])
    wanted = [measured | _problems(piece.rows for piece in updater.passes(groups, rank)) for rank in range(ranks.size)]
    held = {
        group.problem.id: group.prompt
        for group in groups
        if group.prompt is not None and group.prompt.image_inputs is not None
    }
    parcels = [{name: prompt for name, prompt in held.items() if name in names} for names in wanted]
    here: dict[str, Prompt] = {}
    for parcel in ranks.exchange(parcels):
        here |= parcel
    return [
        replace(group, prompt=here[group.problem.id]) if group.problem.id in here else group.without_images()
        for group in groups
    ]


def _problems(batches: Iterable[Sequence[Row]]) -> set[str]:
    """The problems whose images these rows need."""
    return {row.images_of for rows in batches for row in rows if row.images_of}
