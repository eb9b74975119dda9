"""The check of the made tasks: the whole response must be text, one `#`, the answer, and nothing after it.

No extraction rule is involved, so that nothing in the reward can favour one length over another; an answer that the
response limit cut before the end-of-sequence token is not finished and not right.
"""

from __future__ import annotations

import re

from luspo_cli.records import VerificationStatus

_EXACT = re.compile(r"[^#]*#([^#]*)", re.DOTALL)


def score_exact(response: str, gold: str, *, ended: bool) -> tuple[VerificationStatus, str | None]:
    """Return the status and the X of `text#X`; `response` without its end token, `ended`: by that token."""
    match = _EXACT.fullmatch(response)
    if match is None or not match.group(1) or not ended:
        return VerificationStatus.NO_ANSWER, None
    found = match.group(1)
    return (VerificationStatus.CORRECT if found == gold else VerificationStatus.INCORRECT), found
