"""We-Math's four-dimensional metrics: what a model knows of a problem's parts against what it makes of the whole.

Per group of n one-step problems and the problem composed of them, with s one-step problems right and m whether the
composed one is: IK (insufficient knowledge) m = 0, s < n; IG (inadequate generalisation) m = 0, s = n; CM (complete
mastery) m = 1 and s = n, or s >= 1 in the loose setting; RM (rote memorisation) the rest of m = 1. The rate of RM
is RM / (CM + RM), all others are over the groups; Score = (CM + 0.5 IG) / groups.

Groups come from the benchmark, never from the responses: in the official script a missing row removes its group
from the counts and is credited in the score. Where no composed problem is right the RM rate is 0 (the script stops).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class FourCounts:
    """Groups in each category, for one setting."""

    ik: int
    ig: int
    cm: int
    rm: int

    @property
    def groups(self) -> int:
        return self.ik + self.ig + self.cm + self.rm

    @property
    def score(self) -> float:
        """(CM + 0.5 IG) / groups."""
        return (self.cm + 0.5 * self.ig) / self.groups if self.groups else 0.0

    @property
    def rm_rate(self) -> float:
        """RM / (CM + RM), 0 where no composed problem is right."""
        mastered = self.cm + self.rm
        return self.rm / mastered if mastered else 0.0

    def as_dict(self) -> dict[str, float]:
        """Score, the four rates in [0, 1] and the four counts, for a result file."""
        groups = self.groups or 1
        rates = {"ik_rate": self.ik / groups, "ig_rate": self.ig / groups, "cm_rate": self.cm / groups}
        counts = {"ik": self.ik, "ig": self.ig, "cm": self.cm, "rm": self.rm}
        return {"score": self.score, **rates, "rm_rate": self.rm_rate, **counts}


def count_groups(groups: Iterable[tuple[tuple[bool, ...], bool]]) -> Mapping[str, FourCounts]:
    """Count (one-step verdicts, composed verdict) pairs into the `strict` and the `loose` setting."""
    ik = ig = 0
    strict_cm = loose_cm = right = 0
    for steps, composed in groups:
        if not composed:
            ik, ig = (ik, ig + 1) if all(steps) else (ik + 1, ig)
            continue
        right += 1
        strict_cm += all(steps)
        loose_cm += any(steps)
    return {
        "strict": FourCounts(ik, ig, strict_cm, right - strict_cm),
        "loose": FourCounts(ik, ig, loose_cm, right - loose_cm),
    }
