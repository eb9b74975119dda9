"""The rollouts of one step as the page reads them: groups, and one list a column, in the order of the stored rows.

Per-token log-ratios are rounded to 1e-4 nats and come with the length of each token's text, so the page can shade the text.
A column that the run did not store is absent; the page says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.config.reward import LENGTH_TERMS
from luspo_cli.report.selection import ChosenStep
from luspo_cli.report.tokens import TokenTexts, find_tokenizer
from luspo_cli.runs.stored_rollouts import read_columns

RATIO_UNIT = 1e-4
"""Nats of one unit of a stored token log-ratio."""
PLAIN = (
    "response", "response_length", "stop_reason", "status", "extracted", "reason", "read_from", "in_batch", "mini_batch",
)  # fmt: skip
ROUNDED = (
    "reward", "reward_accuracy", "reward_format", "reward_overlong", *(f"reward_{name}" for name in LENGTH_TERMS), "advantage",
    "sequence_ratio", "clip_low_fraction", "clip_high_fraction", "dual_clip_fraction", "loss_weight",
)  # fmt: skip
LOG_RATIOS = "token_log_ratios"
MARKS = ("sequence_ratio", "clip_low_fraction", "clip_high_fraction", "loss_weight")
"""Columns that the update fills; runs of older versions lack them."""


@dataclass
class StepReader:
    """Reads steps of one run; `unplaced` counts responses whose tokens could not be found in their text."""

    run: RunHistory
    unplaced: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    """Column of the update → steps that lack it."""
    steps: int = 0
    _texts: TokenTexts | None = None
    _looked: bool = False

    def read(self, chosen: ChosenStep) -> dict[str, Any]:
        """Return `{"step", "groups": [{"id", "prompt", "answer", "rows"}], "columns": {name: [...]}}`."""
        names = ["problem_id", "prompt", "answer", *PLAIN, *ROUNDED, LOG_RATIOS, "response_tokens"]
        table = read_columns(chosen.file, names)
        rows = [row for group in chosen.groups for row in group]
        taken = table.take(rows)
        columns = {name: taken[name].to_pylist() for name in PLAIN if name in taken.column_names}
        for name in ROUNDED:
            if name in taken.column_names:
                columns[name] = [shortest(value) for value in taken[name].to_pylist()]
        self.steps += 1
        for name in (*MARKS, LOG_RATIOS):
            if name not in taken.column_names:
                self.missing[name] = self.missing.get(name, 0) + 1
        if LOG_RATIOS in taken.column_names:
            ratios = taken[LOG_RATIOS].to_pylist()
            columns["log_ratios"] = [None if one is None else [round(x / RATIO_UNIT) for x in one] for one in ratios]
            columns["pieces"] = self._pieces(columns["response"], taken["response_tokens"].to_pylist(), ratios)
        groups, start = [], 0
        for group in chosen.groups:
            first = {name: table[name][group.start].as_py() for name in ("problem_id", "prompt", "answer")}
            end = start + len(group)
            groups.append(
                {"id": first["problem_id"], "prompt": first["prompt"], "answer": first["answer"], "rows": [start, end]}
            )
            start = end
        return {"step": chosen.step, "groups": groups, "columns": columns}

    def notes(self) -> list[str]:
        """What the rollouts of this run cannot show, one sentence each."""
        notes = []
        if self.missing:
            fewest = min(self.missing.values())
            where = "" if fewest == self.steps else f" in {fewest} of {self.steps} steps"
            notes.append(
                f"The rollouts of {self.run.name} hold no {', '.join(sorted(self.missing))}{where}: an older version wrote"
                " them, or the update failed."
            )
        if self._looked and self._texts is None:
            notes.append(
                f"No tokenizer is stored with {self.run.name} (checkpoints/*/model/tokenizer.json): its token log-ratios cannot"
                " be placed in the text."
            )
        if self.unplaced:
            notes.append(
                f"{self.unplaced:,} responses of {self.run.name} are not shaded: their tokens do not make up their text."
            )
        return notes

    def _pieces(
        self, responses: Sequence[str], tokens: Sequence[Sequence[int]], ratios: Sequence[Sequence[float] | None]
    ) -> list[list[int] | None]:
        if not self._looked:
            self._texts, self._looked = find_tokenizer(self.run), True
        if self._texts is None:
            return [None] * len(responses)
        pieces: list[list[int] | None] = []
        for text, ids, ratio in zip(responses, tokens, ratios, strict=True):
            found = self._texts.lengths(ids, text) if ratio is not None and len(ratio) == len(ids) else None
            self.unplaced += ratio is not None and found is None
            pieces.append(found)
        return pieces


def shortest(value: float | None, digits: int = 6) -> float | None:
    """A number with so many significant digits; None for what is missing, NaN or infinite."""
    if value is None or value != value or value in (float("inf"), float("-inf")):
        return None
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded == int(rounded) else rounded
