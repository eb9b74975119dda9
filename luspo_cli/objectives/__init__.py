"""The public door of the objectives: everything else in this folder is an equation behind it."""

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives.aggregation import Counts, GroupCounts, counts_of
from luspo_cli.objectives.objective import PolicyLoss, policy_loss, row_outcomes

__all__ = ["Counts", "GroupCounts", "ObjectiveConfig", "PolicyLoss", "counts_of", "policy_loss", "row_outcomes"]
