"""The reward terms that look at form and length instead of the answer's truth.

The overlong penalty is DAPO's "soft overlong punishment" (arXiv 2503.14476, section 3.4): between
`limit - buffer` and `limit` tokens it falls linearly from 0 to -1. A truncated rollout is beyond the limit in that
equation's sense and gets the full -1, whatever its length.
"""

from __future__ import annotations

import re
from typing import Literal

from luspo_cli.grading.answers import final_text, last_boxed

ResponseFormat = Literal["none", "boxed", "gsm8k", "answer-line"]

_HASHES_LINE = re.compile(r"####[ \t]{1,8}[-−+]?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_ANSWER_LINE = re.compile(r"\**answer[ \t]{0,8}\**[ \t]{0,8}:[ \t*]{0,8}[^\s*].*", re.IGNORECASE)


def format_reward(response: str, form: ResponseFormat, *, thought_open: bool = False) -> float:
    r"""Return 1 where the response has the form, else 0: a closed `\boxed{}`, a last line `#### N` or `Answer: ...`.

    An unfinished thought has no form, whether the response or the prompt (`thought_open`) opened it. "none" is 0
    for every response.
    """
    text = final_text(response, thought_open=thought_open)
    if form == "none" or text is None:
        return 0.0
    if form == "boxed":
        return float(last_boxed(text) is not None)
    last_line = text.rstrip().rpartition("\n")[2].strip()
    pattern = _HASHES_LINE if form == "gsm8k" else _ANSWER_LINE
    return float(pattern.fullmatch(last_line) is not None)


def overlong_penalty(length: int, limit: int, buffer: int, *, truncated: bool = False) -> float:
    """Return 0 up to `limit - buffer` tokens, then (limit - buffer - length) / buffer; -1 where truncated.

    `buffer` 0 switches it off: 0 for every response.
    """
    if buffer == 0:
        return 0.0
    if truncated or length >= limit:
        return -1.0
    return min(0.0, (limit - buffer - length) / buffer)
