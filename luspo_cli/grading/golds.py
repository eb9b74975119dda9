"""Gold answers that our own grammar reads; what it does not read is asked of math-verify."""

from __future__ import annotations

from luspo_cli.grading.maths.expression import parse_expression
from luspo_cli.grading.maths.normalise import is_words, normalise
from luspo_cli.grading.maths.numbers import parse_number
from luspo_cli.grading.maths.structures import (
    Equation,
    InBase,
    Matrix,
    Ordered,
    Unordered,
    is_label,
    is_name,
    read_shape,
)
from luspo_cli.grading.maths.tokens import NotUnderstood

_DEEPEST = 8


def understood(gold: str) -> bool:
    """Whether a gold answer is a number, words, or built of expressions that our grammar reads."""
    normal = normalise(gold)
    return bool(normal.text) and (normal.is_text or _understood(normal.text, 0))


def _understood(text: str, depth: int) -> bool:
    if depth > _DEEPEST or not text:
        return False
    if parse_number(text) is not None or is_name(text) or is_label(text) or is_words(text):
        return True
    shape = read_shape(text)
    if isinstance(shape, InBase):
        return True
    if isinstance(shape, Equation):
        return all(_understood(side, depth + 1) for side in shape.sides)
    if isinstance(shape, Ordered | Unordered):
        return all(_understood(item, depth + 1) for item in shape.items)
    if isinstance(shape, Matrix):
        return all(_understood(entry, depth + 1) for row in shape.rows for entry in row)
    try:
        parse_expression(text)
    except NotUnderstood:
        return False
    return True
