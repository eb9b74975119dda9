"""The check of the made tasks: the whole response must be text, one `#`, the answer, and nothing after it.

No extraction rule is involved, so that nothing in the reward can favour one length over another; an answer that the
response limit cut before the end-of-sequence token is not finished and not right.
"""

from __future__ import annotations

import re

from luspo_cli.grading.verdict import NO_ANSWER, DecidedBy, ReadFrom, Reason, Verdict

_EXACT = re.compile(r"[^#]*#([^#]*)", re.DOTALL)


def score_exact(response: str, gold: str, *, ended: bool) -> Verdict:
    """Return the verdict on the X of `text#X`; `response` without its end token, `ended`: by that token."""
    match = _EXACT.fullmatch(response)
    if match is None or not match.group(1) or not ended:
        return NO_ANSWER
    found = match.group(1)
    reason = Reason.EXACT if found == gold else Reason.DIFFERENT
    return Verdict(found, found == gold, reason, ReadFrom.OWN_MARK, DecidedBy.EXACT)
