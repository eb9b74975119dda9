"""What an update does to a network, from the token log-ratios that a run stored: `python -m bench.lab_measure RUN`.

By windows of steps: how far one optimizer step moves stopping and answers, how much responses differ, whether the two move
together, and how unequal problems are. Needs a run of a made task with run.rollouts_every = 1 (docs/length.md, section 7).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from luspo_cli.analysis.history import read_run
from luspo_cli.config.lab import resolve_lab
from luspo_cli.errors import UsageError
from luspo_cli.experiments.lab.experiment import move_of_noise
from luspo_cli.experiments.lab.measurements import (
    Moves,
    StoredStep,
    coupling,
    increments,
    kinds_of,
    moves,
    read_steps,
    skill_spread,
)

WINDOWS = ((1, 1), (2, 3), (4, 10), (11, 20), (21, 40), (41, 10**9))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    run: Path = parser.parse_args().run
    history = read_run(run)
    steps = read_steps(run, history.last_step)
    mini_batches = history.config["update"]["mini_batches"]
    found = moves(steps)
    if not found:
        raise SystemExit(f"{run} stores no token log-ratios: train it with --set run.rollouts_every=1.")
    for first, last in WINDOWS:
        own = [one for one in found if first <= one.step <= last]
        if own:
            print(f"steps {own[0].step} to {own[-1].step}")
            stored = [step for step in steps if first <= step.step <= last]
            for name, value in _numbers(own, stored, mini_batches):
                print(f"  {name:<58} {value}")


def _numbers(own: Sequence[Moves], steps: Sequence[StoredStep], mini_batches: int) -> Iterator[tuple[str, str]]:
    later = [one for one in own if one.mini_batch]
    for kind in ("stop", "right", "wrong", "end", "filler"):
        moved = list(increments(own, kind).values())
        spread = [value[1] for one in later if (value := one.kinds[kind]) is not None]
        if moved:
            yield (
                f"{kind}: move of the mean in one optimizer step, rms",
                f"{_rms(moved):.4f}, mean {statistics.fmean(moved):+.4f}",
            )
            yield f"{kind}: spread over the responses of a mini-batch", f"{_rms(spread):.4f}"
    noise = [value for one in later if (value := noise_of(one, mini_batches)) is not None]
    if noise:
        yield "wrong answers: noise of the first optimizer step (logits)", f"{_rms(noise):.3f}"
    slope = coupling([own])
    if slope is not None:
        yield (
            "coupling: stopping's move for one of the answer's",
            f"{slope.mean:+.3f} ± {slope.half_width:.3f} (n = {slope.n})",
        )
    for first, second in (("stop", "answer"), ("filler", "answer"), ("filler", "stop")):
        found = within(steps, first, second)
        if found is not None:
            yield f"{first} and {second} of one response: correlation", f"{found:+.3f}"
    spread_of_skill = skill_spread(steps)
    if spread_of_skill is not None:
        yield "problems: spread of the logit of being right", f"{spread_of_skill:.2f}"


def noise_of(one: Moves, mini_batches: int) -> float | None:
    """The lab's `model.answer_noise` that makes the wrong answers of one mini-batch move as far as they did."""
    value = one.kinds["wrong"]
    updates = [(one.step - 1) * mini_batches + number + 1 for number in range(one.mini_batch)]
    reach = math.sqrt(sum(move_of_noise(update, BETA) ** 2 for update in updates))
    return None if value is None or not reach else math.hypot(*value) / reach


def within(steps: Sequence[StoredStep], first: str, second: str) -> float | None:
    """Correlation over responses, within mini-batches after the first, of the log-ratios of two kinds of token."""
    pairs: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for step, kinds in zip(steps, kinds_of(steps), strict=True):
        if not step.has_updates:
            continue
        for row, known in enumerate(kinds):
            number, ratios = step.columns["mini_batch"][row], step.columns["token_log_ratios"][row]
            if known is None or not number or not ratios or known.stop is None or not known.fillers:
                continue
            values = {
                "stop": ratios[known.stop],
                "answer": ratios[known.answer],
                "filler": statistics.fmean(ratios[: known.fillers]),
            }
            pairs.setdefault((step.step, number), []).append((values[first], values[second]))
    found = [statistics.correlation(*zip(*rows, strict=True)) for rows in pairs.values() if _varied(rows)]
    return statistics.fmean(found) if found else None


def _varied(rows: Sequence[tuple[float, float]]) -> bool:
    return len(rows) > 2 and all(len(set(column)) > 1 for column in zip(*rows, strict=True))


def _rms(values: Sequence[float]) -> float:
    return math.sqrt(statistics.fmean(value * value for value in values))


BETA = resolve_lab("luspo").update.betas[0]

if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        raise SystemExit(str(error)) from None
