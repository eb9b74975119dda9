r"""The final answer of a response, or None: extraction is a step of its own, and never guesses.

Decided here, once for reward and evaluation: an answer inside an unfinished or earlier thought does not count; a
response that has a box is answered by its last box alone, so an empty, unclosed or placeholder box is no answer even
where an earlier box or an "answer:" line exists; braces are matched by counting; the last number of a text is an
answer only for callers that ask for `Form.LAST_NUMBER`. Every pattern has bounded repetition and runs in time linear
in the response, since a response may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum


class Form(StrEnum):
    """A way of marking the final answer; callers give them in the order in which they are tried."""

    BOXED = "boxed"
    r"""The last `\boxed{...}` or `\fbox{...}`; where one is present it decides, even by holding nothing."""
    HASHES = "hashes"
    """The last line `#### N` with a number (GSM8K's mark; a Markdown heading is not one)."""
    ANSWER_LINE = "answer-line"
    """The last line with `answer:` or `answer is`, any case."""
    A_LINE = "a-line"
    """The last line that starts with `A:`."""
    LAST_NUMBER = "last-number"
    """The last number anywhere. A guess: off unless asked for."""


DEFAULT_FORMS: tuple[Form, ...] = (Form.BOXED, Form.HASHES, Form.ANSWER_LINE)

_THINK_OPEN = re.compile(r"<think(?:ing)?>", re.IGNORECASE)
_THINK_CLOSE = re.compile(r"</think(?:ing)?>", re.IGNORECASE)
# At least two letters between the bars, so that `<|x|>` of a formula stays.
_SPECIAL_TOKEN = re.compile(
    r"<\|[a-zA-Z_]\w{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|<(?:pad|eos|bos|unk)>|<(?:start|end)_of_turn>"
)
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_BARE_BOX_END = re.compile(r"[$\s]")
_PLACEHOLDERS = frozenset(
    {"answer", "$answer", "youranswer", "finalanswer", "...", "…", r"\dots", r"\ldots", r"\cdots"}
)
_WRAPPED_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
_NUMBER = re.compile(r"[-−+]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?")
_HASHES = re.compile(
    r"####[ \t*]*\\?\$?[ \t]{0,4}([-−+]?\\?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:/\d+)?)"
    r"[ \t]{0,4}\\?%?[ \t]{0,4}[a-zA-Z ]{0,30}\.?[ \t$*]*"
)
_ANSWER_MARK = re.compile(
    r"\banswer(?:[ \t]{0,8}\*{0,3}[ \t]{0,8}[:：][ \t]{0,8}\*{0,3}"
    r"|[ \t]{1,8}is\b(?:[ \t]{0,8}[:：])?[ \t]{0,8}\*{0,3})",
    re.IGNORECASE,
)
_A_MARK = re.compile(r"^[ \t*]{0,8}A[ \t*]{0,4}[:：]\**", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.;]\s+(?=[A-Z\\])")
_MATH_SPAN = re.compile(r"(?<!\\)\$\$?((?:\\.|[^$\\])+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_LONGEST_ANSWER = 2000
"""Characters of a marked line that are read: more is not an answer, and the patterns stay cheap on hostile text."""


def final_text(response: str) -> str | None:
    """Return what follows the last thought, without special tokens; None where a thought never ended."""
    text = _SPECIAL_TOKEN.sub("\n", response)
    end = 0
    for match in _THINK_CLOSE.finditer(text):
        end = match.end()
    if end == 0 and _THINK_OPEN.search(text):
        return None
    text = text[end:]
    reopened = _THINK_OPEN.search(text)
    return text[: reopened.start()] if reopened else text


def has_box(text: str) -> bool:
    r"""Whether a `\boxed` or `\fbox` occurs at all, closed or not."""
    return _BOX.search(text) is not None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed` or `\fbox`, stripped; None for none, empty or unclosed."""
    last = None
    for last in _BOX.finditer(text):  # noqa: B007 - the last match is what is wanted
        pass
    if last is None:
        return None
    start = last.end()
    if start < len(text) and text[start] == "{":
        end = _closing_brace(text, start)
        return None if end is None else text[start + 1 : end].strip() or None
    stop = _BARE_BOX_END.search(text, start)
    return text[start : stop.start() if stop else len(text)].strip() or None


def last_hashes(text: str) -> str | None:
    """Return N of the last line that ends in `#### N`, as written."""
    for line in reversed(text.split("\n")):
        at = line.rfind("####")
        if at < 0:
            continue
        match = _HASHES.fullmatch(line[at:].strip())
        if match:
            return match.group(1).replace("\\", "").replace("$", "")
    return None


def last_answer_line(text: str) -> str | None:
    """Return what follows `answer:` or `answer is` on the last line that has it, or else the next line."""
    return _tail_of_last(text, _ANSWER_MARK)


def last_number(text: str) -> str | None:
    """Return the last number of the text as written; None where there is no digit."""
    found = None
    for match in _NUMBER.finditer(text):
        found = match.group(0).rstrip(",")
    return found


def extract_answer(response: str, forms: Sequence[Form] = DEFAULT_FORMS) -> str | None:
    """Return the final answer by the first of `forms` that marks one, or None; never an empty string."""
    text = final_text(response)
    if text is None:
        return None
    for form in forms:
        if form is Form.BOXED and has_box(text):
            return _without_placeholder(last_boxed(text))
        found = _EXTRACTORS[form](text)
        if found is not None:
            return _without_placeholder(found)
    return None


def _closing_brace(text: str, start: int) -> int | None:
    """Return the index of the brace that closes `text[start]`; escaped braces are characters, not braces."""
    depth = 0
    at = start
    while at < len(text):
        character = text[at]
        if character == "\\":
            at += 2
            continue
        if character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return at
        at += 1
    return None


def _tail_of_last(text: str, mark: re.Pattern[str]) -> str | None:
    last = None
    for last in mark.finditer(text):  # noqa: B007 - the last match is what is wanted
        pass
    if last is None:
        return None
    line, _, rest = text[last.end() :].partition("\n")
    return _clean(line) or _clean(rest.lstrip().partition("\n")[0])


def _clean(tail: str) -> str | None:
    """Return the answer of a marked line: one formula without its dollars, or the first sentence without its period."""
    tail = tail.strip()[:_LONGEST_ANSWER].strip("*").strip()
    spans = list(_MATH_SPAN.finditer(tail))
    if len(spans) == 1:
        span = spans[0]
        outside = tail[: span.start()] + tail[span.end() :]
        # Prose around a single formula is dropped; digits outside it are part of the answer.
        if not any(character.isdigit() for character in outside):
            tail = next(group for group in span.groups() if group is not None).strip()
    end = _SENTENCE_END.search(tail)
    if end:
        tail = tail[: end.start()]
    tail = tail.strip().strip("*").strip()
    if tail.endswith((".", ",", ";")) and not tail.endswith(("..", r"\.", r"\,", r"\;")):
        tail = tail[:-1].strip()
    return tail.strip("*").strip() or None


def _without_placeholder(answer: str | None) -> str | None:
    """Return None for the prompt's own placeholder given back as an answer."""
    if answer is None:
        return None
    bare = _WRAPPED_TEXT.sub(r"\1", answer)
    return None if "".join(bare.split()).strip("[]<>{}").lower() in _PLACEHOLDERS else answer


_EXTRACTORS = {
    Form.BOXED: last_boxed,
    Form.HASHES: last_hashes,
    Form.ANSWER_LINE: last_answer_line,
    Form.A_LINE: lambda text: _tail_of_last(text, _A_MARK),
    Form.LAST_NUMBER: last_number,
}
