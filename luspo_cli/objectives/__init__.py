"""The public door of the objectives: everything else in this folder is an equation behind it."""

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.config.own_objective import OwnObjective
from luspo_cli.objectives.aggregation import Counts, GroupCounts, counts_of
from luspo_cli.objectives.objective import PolicyLoss, policy_loss, row_outcomes
from luspo_cli.objectives.own import ObjectiveBatch
from luspo_cli.objectives.surrogate import SurrogateLoss

__all__ = [
    "Counts", "GroupCounts", "ObjectiveBatch", "ObjectiveConfig", "OwnObjective", "PolicyLoss", "SurrogateLoss", "counts_of",
    "policy_loss", "row_outcomes",
]  # fmt: skip
