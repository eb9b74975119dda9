"""The public door of the objectives: everything else in this folder is an equation behind it."""

from luspo_cli.config.objective import ObjectiveConfig
from luspo_cli.objectives.aggregation import Counts
from luspo_cli.objectives.objective import PolicyLoss, policy_loss, row_outcomes

__all__ = ["Counts", "ObjectiveConfig", "PolicyLoss", "policy_loss", "row_outcomes"]
