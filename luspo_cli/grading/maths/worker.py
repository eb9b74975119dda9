"""The comparison for workers that will meet sums, integrals or limits: sympy is imported before the first task.

Importing it takes a second or more on a busy machine; inside a task that would count against the task's time limit.
"""

from __future__ import annotations

import latex2sympy2_extended  # noqa: F401
import sympy  # noqa: F401

from luspo_cli.grading.maths.symbolic import decide_fully as decide

__all__ = ["decide"]
