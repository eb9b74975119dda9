"""What is asked of an objective of one's own before it trains, or the lab runs it: the proofs, on a small mini-batch.

Decided here: what could not train is refused before anything is written; a loss that depends on how its batch was split trains,
and the run says so, for many published ones do.
"""

from __future__ import annotations

import logging
from functools import cache

from luspo_cli.config.objective import NAMED_OBJECTIVES, ObjectiveConfig
from luspo_cli.config.objective_text import configured
from luspo_cli.config.own_objective import is_own, load_own, objectives_of
from luspo_cli.config.run import TrainRun
from luspo_cli.errors import UsageError, nearest
from luspo_cli.training.objective_proofs import (
    FINITE,
    GRADIENT,
    LAB,
    RUNS,
    WITHOUT_ADVANTAGE,
    Proven,
    does_not_run,
    prove,
)
from luspo_cli.training.optimizer import check_optimizer

logger = logging.getLogger(__name__)


def check_update(config: TrainRun, aloud: bool = True) -> None:
    """UsageError for an optimizer that cannot run here, and for an objective of one's own that could not train.

    Warns `aloud` of one that is not the same however its batch is split.
    """
    check_optimizer(config.update)
    refused, warning = own_objective_faults(config) if config.objective.own_parts else (None, None)
    if refused:
        raise UsageError(refused)
    if warning and aloud:
        logger.warning(warning)


def own_objective_faults(config: TrainRun) -> tuple[str | None, str | None]:
    """Why an objective of one's own could not train, and what a run with it is warned of."""
    objective = config.objective
    try:
        proven = prove(objective)
    except UsageError as error:
        return str(error), None
    from luspo_cli.training.update import needs_every_row

    check = f"luspo objectives check {objective.name}"
    # What makes every other proof fail too goes first.
    for proof in sorted(proven.failed(), key=lambda one: one.name not in (FINITE, GRADIENT)):
        if proof.name == RUNS:
            return proof.error, None
        if proof.name in (FINITE, GRADIENT):
            what = "no token has a gradient" if proof.name == GRADIENT else "value or gradient is not finite"
            return f"objective {objective.name} cannot train: {what}{_of(proof.error)}; {check} says more", None
        if proof.name == WITHOUT_ADVANTAGE and not needs_every_row(config):
            return (
                f"objective {objective.name} is another one where rows whose advantage is 0 are left out, as updates do: set"
                f" update.skip_rows_without_advantage=false ({check} says how far they are apart)"
            ), None
    return None, _dependence(proven, check)


def refuse_in_lab(objective: ObjectiveConfig) -> None:
    """UsageError for an objective of one's own that the lab would run as another one, or not at all."""
    if not objective.own_parts:
        return
    if load_own(objective.name).sha256 != objective.sha256:
        raise UsageError(f"{objective.name} was changed since the run whose recipe this is: put the file back")
    if reason := _lab_fault(objective.name, str(objective.sha256)):
        raise UsageError(reason)


@cache
def _lab_fault(name: str, sha256: str) -> str | None:
    """Why the functions of this version of a file cannot run in the lab. They are the same under each cause that a command takes
    out and at each value that it sweeps, so they are proven once."""
    for proof in prove(configured(name)).proofs:
        if proof.name in (RUNS, *LAB) and not proof.holds:
            return (
                f"objective {name} cannot run in the lab ({proof.what}){_of(proof.error)}: multiply by batch.amounts"
                f" before a sum over tokens, and sum over the last axis alone; luspo objectives check {name} says more"
            )
    return None


def proven_of(target: str) -> list[Proven]:
    """The proofs of a built-in objective, of one of one's own, or of all in a file or module; UsageError where there is none."""
    if target in NAMED_OBJECTIVES or (is_own(target) and not target.endswith(".py")):
        return [prove(configured(target))]
    try:
        names = objectives_of(target)
    except UsageError as error:
        meant = "" if "." in target else nearest(target, NAMED_OBJECTIVES)
        raise UsageError(f"{error}{meant}") from None
    found = []
    for name in names:
        try:
            found.append(prove(configured(name)))
        except UsageError as error:  # the other objectives of the file are still looked at
            found.append(does_not_run(name, str(error)))
    return found


def _dependence(proven: Proven, check: str) -> str | None:
    found = [
        f"{proof.name} (by {proof.difference:.1g})" for proof in proven.failed() if proof.name != WITHOUT_ADVANTAGE
    ]
    if not found:
        return None
    return (
        f"objective {proven.name} is not invariant: {', '.join(found)}; its numbers depend on what should not matter, such as"
        f" update.tokens_per_micro_batch and --processes ({check})"
    )


def _of(error: str) -> str:
    return f" ({error})" if error else ""
