r"""Where the final answer of a response is read: extraction is a step of its own, and never guesses.

Decided here, once for reward and evaluation (docs/grading.md): the mark that the prompt asked for comes first, then the
last box, then the other explicit marks. A response that has a box or an answer tag is answered by its last one alone, so an
empty, unclosed or placeholder one is no answer even where an earlier one stands. An answer inside an unfinished or
earlier thought does not count, whether the response or the prompt opened the thought. A base model that goes on with
a next question is judged by its answer to the first. Every pattern has bounded repetition and runs in time linear in
the response, since a response may be anything.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from luspo_cli.grading.maths.words import change_formula, changes_value
from luspo_cli.grading.verdict import ReadFrom


class AnswerMark(StrEnum):
    """A way of marking the final answer."""

    BOX = "boxed"
    r"""The last `\boxed{...}` or `\fbox{...}`; where one is present it decides, even by holding nothing."""
    TAGS = "answer-tags"
    """The last `<answer>...</answer>`; where one is opened it decides, even by holding nothing."""
    HASHES = "hashes"
    """The last line `#### N` with a number (GSM8K's mark; a Markdown heading is not one)."""
    HEADING = "heading"
    """What follows a heading `**Final Answer**` on a line of its own."""
    ANSWER_LINE = "answer-line"
    """The last line with `Answer: ...`, any case."""
    A_LINE = "a-line"
    """The last line that starts with `A:`."""
    CHINESE = "chinese"
    """The last 答案：... or 答案是..."""


@dataclass(frozen=True, slots=True)
class Extraction:
    """An answer as the response spells it, never blank, and where it stood."""

    text: str
    read_from: ReadFrom


THOUGHT_TAG = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
"""Opens a thought, or with a slash in its group closes one."""
# At least two letters between the bars, so that `<|x|>` of a formula stays.
_SPECIAL_TOKEN = re.compile(
    r"<\|[a-zA-Z_]\w{1,40}\|>|<｜[^｜<>\n]{1,40}｜>|</?s>|<(?:pad|eos|bos|unk)>|<(?:start|end)_of_turn>"
)
_NEXT_QUESTION = re.compile(
    r"^[ \t]{0,8}(?:#{1,6}[ \t]|\*\*)?(?:Question|Problem|Q|Human|User)(?:[ \t]{0,4}\d{1,4})?(?:\*\*)?[ \t]{0,4}[:：]",
    re.MULTILINE,
)
_QUESTIONS_LOOKED_AT = 4
_BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
_LONGEST_BOX, _MOST_BOXES = 400, 8
"""Characters of a box around another one, and boxes inside of one another, that are looked at."""
_BARE_BOX_END = re.compile(r"[$\s]")
_COLOUR = re.compile(r"\\(?:color|textcolor|colorbox|fcolorbox\{[^{}]{1,40}\})(?:\[[a-zA-Z]{1,8}\])?\{[^{}]{1,40}\}")
_PLACEHOLDERS = frozenset(
    {"answer", "$answer", "youranswer", "finalanswer", "answerhere", "youranswerhere", "finalanswerhere"}
    | {"...", "…", r"\dots", r"\ldots", r"\cdots"}
)
_WRAPPED_TEXT = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox)\s*\{([^{}]*)\}")
# A comma in the number may be escaped, as TeX wants it: 70{,}000.
_DIGITS = r"(?:\d(?:[\d,]|\{,\})*(?:\.\d+)?|\.\d+)(?:/\d+)?"
_NUMBER = re.compile(rf"[-−+]?{_DIGITS}")
_HASHES = re.compile(
    rf"####[ \t*]*\\?\$?[ \t]{{0,4}}([-−+]?\\?\$?{_DIGITS})"
    r"(?:[ \t]{0,4}\\?%)?([ \t]{0,4}[a-zA-Z ]{0,30})\.?[ \t$*]*"
)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_HEADING = re.compile(
    r"^[ \t]{0,8}(?:#{1,6}[ \t]{1,4})?[*_]{0,3}(?:the[ \t]{1,4})?final[ \t]{1,4}answer[ \t]{0,4}[*_]{0,3}[ \t]{0,8}$",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER_MARK = re.compile(
    r"\banswer(?:[ \t]{0,8}\*{0,3}[ \t]{0,8}[:：][ \t]{0,8}\*{0,3}"
    r"|(?P<phrase>[ \t]{1,8}is\b(?:[ \t]{0,8}[:：])?[ \t]{0,8}\*{0,3}))",
    re.IGNORECASE,
)
_A_MARK = re.compile(r"^[ \t*]{0,8}A[ \t*]{0,4}[:：]\**", re.MULTILINE)
_CHINESE_MARK = re.compile(r"答案\*{0,3}[ \t]{0,4}(?:[:：]|应?该?[是为](?!否|不是)[ \t]{0,4}[:：]?)[ \t]{0,4}\*{0,3}")
_LINE_MARKS = {AnswerMark.HEADING: _HEADING, AnswerMark.A_LINE: _A_MARK, AnswerMark.CHINESE: _CHINESE_MARK}
_CHINESE_END = re.compile(r"[。；！]")
_SENTENCE_END = re.compile(r"[.;]\s+(?=[A-Z\\])")
_MATH_SPAN = re.compile(r"(?<!\\)\$\$?((?:\\.|[^$\\])+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]")
_DISPLAYS = (("$$", "$$"), (r"\[", r"\]"))
_LONGEST_ANSWER = 2000
"""Characters of a marked line that are read: more is not an answer, and the patterns stay cheap on hostile text."""


def extract_answer(
    response: str, mark: AnswerMark = AnswerMark.BOX, *, thought_open: bool = False
) -> Extraction | None:
    """Return the final answer, looked for where the prompt asked for it (`mark`) first; None where there is none.

    `thought_open`: the prompt's chat template opened a thought, so that the response begins inside it.
    """
    text = final_text(response, thought_open=thought_open)
    if text is None:
        return None
    for part in answers_to_the_first_question(text):
        found = _read(part, mark)
        if found is not None:
            return found
    return None


def final_text(response: str, *, thought_open: bool = False) -> str | None:
    """Return what follows the last thought, without special tokens; None where a thought never ended."""
    text = _SPECIAL_TOKEN.sub("\n", response)
    tags = list(THOUGHT_TAG.finditer(text))
    opened = [tag.start() for tag in tags if not tag[1]]
    end = max((tag.end() for tag in tags if tag[1]), default=0)
    if end == 0 and (thought_open or opened):
        return None
    reopened = next((start for start in opened if start >= end), len(text))
    return text[end:reopened]


def answers_to_the_first_question(text: str) -> Iterator[str]:
    """Yield the text before each of the first lines that pose a next question, then the whole text."""
    looked_at = 0
    for question in _NEXT_QUESTION.finditer(text):
        before = text[: question.start()]
        if not before.strip():  # the response restates its own question
            continue
        looked_at += 1
        if looked_at > _QUESTIONS_LOOKED_AT:
            break
        yield before
    yield text


def has_box(text: str) -> bool:
    r"""Whether a `\boxed` or `\fbox` occurs at all, closed or not."""
    return _BOX.search(text) is not None


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed` or `\fbox`, stripped; None for none, empty or unclosed.

    Of a box that holds more than another box the whole is the content, as it is seen: `\boxed{6 \boxed{5}}` is no 5.
    """
    last = last_match(_BOX, text)
    if last is None:
        return None
    start = last.end()
    if start < len(text) and text[start] == "{":
        end = _closing_brace(text, start)
        if end is None:
            return None
        around = _box_around(text, last.start(), end)
        return (around or text[start + 1 : end]).strip() or None
    stop = _BARE_BOX_END.search(text, start)
    return text[start : stop.start() if stop else len(text)].strip() or None


def _box_around(text: str, first: int, last: int) -> str | None:
    """Return what the outermost box around text[first:last + 1] holds; None where there is none, or nothing besides."""
    low, near = max(0, first - _LONGEST_BOX), text[: last + _LONGEST_BOX]
    for box in list(_BOX.finditer(text, low, first))[-_MOST_BOXES:]:
        end = _closing_brace(near, box.end()) if text[box.end()] == "{" else None
        if end is not None and end > last:
            content = text[box.end() + 1 : end]
            alone = content.strip(" {}") == text[first : last + 1].strip(" {}")
            return None if alone else _BOX.sub(r" \\boxed", content)
    return None


def last_number(text: str) -> str | None:
    """Return the last number of the text as written; None where there is no digit."""
    found = last_match(_NUMBER, text)
    return None if found is None else found[0].rstrip(",").replace("{,}", ",")


def _read(text: str, mark: AnswerMark) -> Extraction | None:
    """Return the answer by the first mark that has one: the prompt's own, the box, then the others."""
    tried: set[AnswerMark] = set()
    for one in (mark, AnswerMark.BOX, AnswerMark.TAGS, AnswerMark.HASHES, AnswerMark.HEADING):
        if one in tried:
            continue
        tried.add(one)
        place = ReadFrom.BOX if one is AnswerMark.BOX else ReadFrom.OWN_MARK if one is mark else ReadFrom.OTHER_MARK
        if one is AnswerMark.BOX and has_box(text):
            return _extraction(last_boxed(text), place)
        if one is AnswerMark.TAGS and _TAG.search(text):
            return _extraction(_last_tagged(text), place)
        found = _read_line(text, one, own=one is mark)
        if found is not None:
            return _extraction(found, place)
    return _read_last_line(text)


def _read_line(text: str, mark: AnswerMark, *, own: bool) -> str | None:
    """Return the answer of a mark that is no bracket."""
    if mark is AnswerMark.HASHES:
        return _last_hashes(text) or (_after_last_hashes(text) if own else None)
    if mark is AnswerMark.ANSWER_LINE:
        lines = [match for match in _ANSWER_MARK.finditer(text) if match["phrase"] is None]
        return _after(text, lines[-1] if lines else None)
    pattern = _LINE_MARKS.get(mark)
    return None if pattern is None else _after(text, last_match(pattern, text))


def _read_last_line(text: str) -> Extraction | None:
    """Of `Answer:`, `A:`, 答案 and "the answer is" the last one marks the answer: reasoning may hold any of them before."""
    line = last_match(_ANSWER_MARK, text)
    found = [match for match in (line, last_match(_A_MARK, text), last_match(_CHINESE_MARK, text)) if match is not None]
    for match in sorted(found, key=lambda match: match.end(), reverse=True):
        answer = _after(text, match)
        if answer is not None:
            phrase = match is line and match["phrase"] is not None
            return _extraction(answer, ReadFrom.PHRASE if phrase else ReadFrom.OTHER_MARK)
    return None


def _extraction(answer: str | None, place: ReadFrom) -> Extraction | None:
    """None for nothing, and for the prompt's own placeholder given back as an answer."""
    if answer is None:
        return None
    answer = _COLOUR.sub("", answer).strip()
    bare = "".join(_WRAPPED_TEXT.sub(r"\1", answer).split())
    return None if not bare or bare.strip("[]<>{}").lower() in _PLACEHOLDERS else Extraction(answer, place)


def last_match(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    """Return the last match of `pattern`, which is searched from the front; None where there is none."""
    last = None
    for last in pattern.finditer(text):  # noqa: B007 - the last match is what is wanted
        pass
    return last


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


def _last_hashes(text: str) -> str | None:
    """Return N of the last line that ends in `#### N`, as written; with what stands behind it where that changes its value."""
    for line in reversed(text.split("\n")):
        at = line.rfind("####")
        if at < 0:
            continue
        match = _HASHES.fullmatch(line[at:].strip())
        if match:
            number = match[1].replace("\\", "").replace("$", "").replace("{,}", ",")
            glued = match[2][:1].isalpha() and not match[2][1:2].isalpha()  # 3x is not 3
            return number + match[2].rstrip() if glued or changes_value(match[2]) else number
    return None


def _after_last_hashes(text: str) -> str | None:
    """Return what the last `####` marks where the prompt asked for it and no number follows: a formula, a word.

    A heading "#### Step 2" is none: after one, the response still comes to its answer.
    """
    at = text.rfind("####")
    line, _, rest = text[at:].lstrip("#").partition("\n")
    return None if at < 0 or has_box(rest) or _ANSWER_MARK.search(rest) else _clean_or_boxed(line)


def _last_tagged(text: str) -> str | None:
    """Return the content of the last `<answer>`, by its box or its own mark where it has one; None if empty or unclosed."""
    opened = closed = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opened, closed = tag.end(), None
        elif opened is not None and closed is None:
            closed = tag.start()
    if opened is None or closed is None:
        return None
    content = text[opened:closed].strip()
    found = _read(content, AnswerMark.BOX)  # tags hold no tags, so this goes one level deep
    return found.text if found else _clean(content)


def _after(text: str, mark: re.Match[str] | None) -> str | None:
    """Return what follows a mark on its line, or else in the next line or displayed formula."""
    if mark is None:
        return None
    line, _, rest = text[mark.end() :].partition("\n")
    if mark.re is _CHINESE_MARK:
        end = _CHINESE_END.search(line)
        line = (line[: end.start()] if end else line).strip("，,")
    if line.strip() not in ("$$", r"\["):
        answer = _clean_or_boxed(line)
        if answer is not None:
            return answer
    else:
        rest = line.strip() + "\n" + rest
    rest = rest[: 2 * _LONGEST_ANSWER].lstrip()
    for opener, closer in _DISPLAYS:
        if rest.startswith(opener) and closer in rest[len(opener) :]:
            return _clean_or_boxed(rest[len(opener) :].partition(closer)[0])
    line = rest.partition("\n")[0]
    if mark.re is _HEADING:
        within = last_match(_ANSWER_MARK, line)
        line = line[within.end() :] if within else line
    return _clean_or_boxed(line)


def _clean_or_boxed(tail: str) -> str | None:
    return last_boxed(tail) if has_box(tail) else _clean(tail)


def _clean(tail: str) -> str | None:
    """Return the answer of a marked line: one formula without its dollars, or the first sentence without its period."""
    tail = tail.strip()[:_LONGEST_ANSWER].strip("*").strip()
    spans = list(_MATH_SPAN.finditer(tail))
    if len(spans) == 1:
        span = spans[0]
        before, behind = tail[: span.start()], tail[span.end() :]
        # Prose around a single formula is dropped; digits outside it are part of the answer, as are words that change it.
        if not any(character.isdigit() for character in before + behind) and not change_formula(before, behind):
            tail = next(group for group in span.groups() if group is not None).strip()
    end = _SENTENCE_END.search(tail)
    if end:
        tail = tail[: end.start()]
    tail = tail.strip().strip("*").strip()
    if tail.endswith((".", ",", ";", "。")) and not tail.endswith(("..", r"\.", r"\,", r"\;")):
        tail = tail[:-1].strip()
    return tail.strip("*").strip() or None
