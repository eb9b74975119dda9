"""Which of the stored rollouts a page holds: at most 20,000, by a rule that is written on the page.

Runs share the room equally. A run's first and last stored steps are always in; the others lie evenly over the steps that all
runs stored, so that a prompt can be read beside its twin of another objective. Groups stay whole and are taken evenly over the
batch, the same places in each run. Where not everything fits, more steps come before more groups of a step, up to `STEPS` steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from luspo_cli.analysis.history import RunHistory
from luspo_cli.runs.stored_rollouts import count_rows, groups_of, read_columns, stored_steps

LIMIT = 20_000
STEPS = 24
"""Steps of a run between which its room is shared before further groups of a step are taken."""
LEAST_GROUPS = 2
"""Groups of a step below which fewer steps are taken."""


@dataclass(frozen=True, slots=True)
class ChosenStep:
    """The rollouts of one stored step that go onto the page."""

    run: int
    step: int
    file: Path
    groups: tuple[range, ...]
    """Rows of the file, group by group."""
    stored: int
    """Rollouts that the file holds."""

    @property
    def rollouts(self) -> int:
        return sum(map(len, self.groups))


def evenly(count: int, wanted: int) -> list[int]:
    """Return at most `wanted` positions of `count` at equal distances, the first and the last among them."""
    if wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [0]
    return [round(place * (count - 1) / (wanted - 1)) for place in range(wanted)]


def choose_rollouts(runs: Sequence[RunHistory], limit: int = LIMIT) -> list[ChosenStep]:
    """Return what is shown of each run, in the order of runs and steps; never more than `limit` rollouts."""
    stored = {place: found for place, run in enumerate(runs) if (found := stored_steps(run.path))}
    if not stored:
        return []
    shared = set.intersection(*(set(found) for found in stored.values()))
    # Ends that not all runs stored come on top, so that the steps between them are the same ones in every run.
    ends = max(len({min(found), max(found)} - shared) for found in stored.values())
    needs = {place: sum(map(count_rows, found.values())) for place, found in stored.items()}
    rooms = shares(needs, limit)
    chosen: list[ChosenStep] = []
    left = limit
    for place, files in stored.items():
        if rooms[place] >= needs[place]:
            of_run = [_step(place, step, file, _groups(file), needs[place]) for step, file in files.items()]
        else:
            of_run = _of_run(place, files, sorted(shared), ends, rooms[place])
        for one in of_run:
            if one.rollouts <= left:
                chosen.append(one)
                left -= one.rollouts
    return chosen


def shares(needs: Mapping[int, int], room: int) -> dict[int, int]:
    """Share `room` equally; what one does not need goes to the others."""
    given: dict[int, int] = {}
    for place in sorted(needs, key=lambda place: needs[place]):
        given[place] = min(needs[place], (room - sum(given.values())) // (len(needs) - len(given)))
    return given


def _of_run(run: int, files: Mapping[int, Path], shared: Sequence[int], ends: int, room: int) -> list[ChosenStep]:
    groups = {step: _groups(files[step]) for step in (min(files), max(files))}
    last = groups[max(files)]
    size = max(map(len, last), default=1)
    groups_a_step = min(len(last), max(LEAST_GROUPS, room // STEPS // size))
    wanted = max(2, room // max(1, groups_a_step * size))
    among = shared or sorted(files)
    inner = [among[place] for place in evenly(len(among), max(1, wanted - (ends if shared else 0)))]
    steps = sorted({*groups, *inner})
    # Counted over all runs, not this one: groups stand at the same places in each.
    most = min(wanted, len(among) + (ends if shared else 0))
    share = room // max(most, len(steps))
    return [_step(run, step, files[step], groups.get(step) or _groups(files[step]), share) for step in steps]


def _step(run: int, step: int, file: Path, groups: Sequence[range], share: int) -> ChosenStep:
    return ChosenStep(run, step, file, tuple(_within(groups, share)), sum(map(len, groups)))


def _within(groups: Sequence[range], share: int) -> list[range]:
    """As many groups as fit, evenly over the batch; one at least, since a step without any would not be shown at all."""
    for count in range(len(groups), 1, -1):
        taken = [groups[place] for place in evenly(len(groups), count)]
        if sum(map(len, taken)) <= share:
            return taken
    return list(groups[:1])


def _groups(file: Path) -> list[range]:
    return groups_of(read_columns(file, ["problem_id"])["problem_id"].to_pylist())


def rule(shown: int, stored: int, taken: int, limit: int) -> str:
    """Say on the page what was chosen, and how; `taken` is below `limit` where larger responses would not have fitted."""
    if shown == stored:
        return f"All {stored:,} stored rollouts are on this page."
    size = f" ({taken:,} of this size fit into a page)" if taken < limit else ""
    return (
        f"{shown:,} of {stored:,} stored rollouts are on this page, at most {limit:,}{size}: runs share the room equally; a run's"
        " first and last stored steps are always in, the others lie evenly over the steps that all runs stored; groups are whole"
        " and taken evenly over the batch."
    )
