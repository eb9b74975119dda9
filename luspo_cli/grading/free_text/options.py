"""Split the options that a question prints in its text ("(A) 6 (B) 3", "A. 4 B. 3; C. 2") into label and text.

The next letter in order is expected, so a stray "A" inside a text is not an option. A marker that is followed at once
by ";" or the end is debris of the file (a semicolon was put before a capital letter and a dot), and one letter may be
missing (F after C). For scoring only the labels matter; the texts serve to read an answer that names none.
"""

from __future__ import annotations

import re

_PARENTHESISED = re.compile(r"\(([A-I])\)")
_LETTER_DOT = re.compile(r"(?:^|[;\s])([A-G])\s?[.．]")


def options_in_question(question: str) -> dict[str, str]:
    """The options "(A) text (B) text ..." of a question, label → text, in order; empty where it prints no list."""
    return _split(question, _PARENTHESISED, keep_empty=True)


def split_options(option: str) -> dict[str, str]:
    """The options of a We-Math `option` string, label → text, in order."""
    return _split(option, _LETTER_DOT, keep_empty=False)


def _split(text: str, marker: re.Pattern[str], *, keep_empty: bool) -> dict[str, str]:
    found: list[tuple[str, int, int]] = []  # label, start of the marker, start of the text
    expected = "A"
    for match in marker.finditer(text):
        label = match[1]
        followed = text[match.end() : match.end() + 8].lstrip()[:1] not in ("", ";")
        skipped = bool(found) and expected < label <= "G" and marker.search(text, match.end()) is None
        if (label == expected or skipped) and (followed or keep_empty):
            found.append((label, match.start(), match.end()))
            expected = chr(ord(label) + 1)
    if len(found) < 2:
        return {}
    ends = [start for _, start, _ in found[1:]] + [len(text)]
    return {label: text[begin:end].strip(" ,;\t\n") for (label, _, begin), end in zip(found, ends, strict=True)}
