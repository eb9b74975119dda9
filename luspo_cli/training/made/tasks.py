"""The made tasks by name; free of torch, as the dry run asks for their problems."""

from __future__ import annotations

from luspo_cli.config.run import MADE_PICTURES, MADE_TERMS
from luspo_cli.training.made.pictures import PICTURES
from luspo_cli.training.made.terms import TERMS

TASKS = {MADE_TERMS: TERMS, MADE_PICTURES: PICTURES}
"""By what `data.train` and `data.held_out` say."""
