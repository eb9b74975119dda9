"""The made tasks by name; free of torch, as the dry run asks for their problems."""

from __future__ import annotations

from luspo_cli.config.run import MADE_TERMS
from luspo_cli.training.made.pictures import PICTURE_TASKS
from luspo_cli.training.made.terms import TERMS

TASKS = {MADE_TERMS: TERMS, **PICTURE_TASKS}
"""By what `data.train` and `data.held_out` say."""
