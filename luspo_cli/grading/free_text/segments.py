"""The parts of a response that are asked for its final answer: box, answer phrase, conclusion, last sentence, all.

What is not the model's own answer goes first: thinking text (benchmarks agree on none of this; their scripts read it
as any other text) and a prompt that a model repeats after or before its answer. Every step is one pass over the text
with bounded look-ahead, so a hostile response costs linear time.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from enum import StrEnum

from luspo_cli.grading.answers import final_text, has_box, last_boxed, last_match

_TAIL_LIMIT = 400
"""Characters after an answer phrase that may hold the answer."""
_TAILS = 6
"""Answer phrases asked, from the last backwards."""

_ANSWER_PHRASE = re.compile(
    r"\b(?:answers?|option|choice)\b\**(?: (?:letter|number|choice|option|value|here))?"
    r"(?: (?:for|to|of) (?:the|this) [^.:\n*]{1,60}?)?\**\s{0,3}"
    r"(?:[:=：]|\b(?:is|are|was|be|would be|will be|should be|must be)\b)\**[:：]?\**"
    r"|<answer>|答案(?:选项)?(?:应该|应)?(?:是|为|选|[:：])|(?:故|因此|应该?)选|选项(?:是|为|(?=\s?[A-Z]))",
    re.IGNORECASE,
)
_CONCLUSION = re.compile(
    r"(?<![^\s\W])(?:therefore|thus|hence|so|in conclusion|as a result|consequently|因此|所以)\b", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!etc\.)(?<!e\.g\.)(?<!i\.e\.)(?<!vs\.)(?<!Fig\.)[\"'*)]{0,3}\s+|[。！？]|\n+")
_LISTED_CHOICE = re.compile(r"\s{0,8}\(?([A-J])[).]\s?\S")
_ECHO = 12
"""Characters from which a copied question is recognised."""
_CONDITION = re.compile(r"(?:^|[,;:]\s?)\W{0,4}(?:if|unless|suppose|otherwise)\b", re.IGNORECASE)
_DECLINES_AT_START = re.compile(
    r"\W{0,4}(?:that |it |this )*(?:can ?not|can't|not\b|none\b|unknown"
    r"|un(?:able|determined|clear)|in(?:conclusive|sufficient|determinate)"
    r"|impossible|n/a|no answer)",
    re.IGNORECASE,
)
_UNLISTED_OPTION = re.compile(r"\W{0,4}(?:[(（]\s?[A-Z]\s?[)）]|[A-Z](?:[.)]|$))")
"""A letter after an answer phrase that no reader took: an option outside the list, such as "(E) none of these"."""
_DECLINES = re.compile(
    r"\b(?:can ?not|can't|could not|unable to|not possible to|impossible to"
    r"|do(?:es)? not (?:have|provide))\b[^.\n]{0,80}"
    r"\b(?:determined?|answer(?:ed)?|provide|tell|say|identify|help|calculate|information|solve|find)\b"
    r"|(?:\bnot|n't) (?:have|provide|contain|include|give|know)\b[^.\n]{0,60}"
    r"\b(?:enough|sufficient|information|context|details?)\b"
    r"|\brefrain from\b|\bnot (?:provided|given|enough|determinable)\b|\bno (?:\w{1,12} )?solution\b"
    r"|\bmistake in (?:the|this) (?:question|problem|figure|image)|\bnot an option\b|\b(?:none of|not among) the"
    r"\b[^.\n]{0,20}\b(?:options|choices)\b|\bcheck the (?:question|problem)\b|都不(?:正确|对)",
    re.IGNORECASE,
)
_ASKS_FOR_MORE = re.compile(r"\b(?:more|additional|further) (?:context|information|details?|data)\b", re.IGNORECASE)
_REPEATED_PROMPT = re.compile(r"(?:^|\n)\s{0,20}(Hint:|Question:|Choices:)")
_PROMPT_PARTS = 4
"""Parts of a copied prompt: question, hint, question, choices."""

_WORD = re.compile(r"[a-z]{4,}|\d+")
_QUESTION_WORD_LIST = (
    "what which many much does where when whose that this there with from have been being these those figure image"
)
_QUESTION_WORDS = frozenset(_QUESTION_WORD_LIST.split())

_READ, _HEAD = 40_000, 4_000
"""Characters of a response that are read, and those of its beginning among them: an answer stands at an end."""
_LONGEST_BOX = 2_000
"""Characters of a box that may be an answer; a longer one holds a text."""
_AFTER_LETTER = "because|since|as|is|and|or|for|from|which|in|with"


class Place(StrEnum):
    """Where in a response a segment was found, most trusted first."""

    BOX = "box"
    PHRASE = "phrase"
    OPENING = "opening"
    """The first line; only a letter in front of it counts."""
    CONCLUSION = "conclusion"
    RESTATING = "restating"
    """The sentence that repeats most of the question's words."""
    LAST_SENTENCE = "last sentence"
    FIRST_SENTENCE = "first sentence"
    WHOLE = "whole"


CLAIMS = (Place.CONCLUSION, Place.RESTATING, Place.LAST_SENTENCE, Place.FIRST_SENTENCE)
"""The places whose sentence is read as a statement about the question."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a response and where it stood."""

    place: Place
    text: str


def letter_pattern(last: str) -> str:
    """Regular expression of one option letter A..`last`, no part of a word; A is none where it is the article."""
    return rf"(?:A(?![\w'’]| (?!(?:{_AFTER_LETTER})\b)[a-z])|[B-{last}](?![\w'’]))"


def visible_text(response: str, question: str = "") -> str | None:
    """The response without thinking text, repeated prompt and copied choices, stripped; None if it ended in thought.

    Of a very long response only the two ends are kept.
    """
    shown = next(_exchanges(response, question), None)
    return None if shown is None else ends(shown)


def ends(text: str) -> str:
    """`text`, or its first 4,000 and last 36,000 characters with a line end between: an answer stands at an end."""
    return text if len(text) <= _READ else text[:_HEAD] + "\n" + text[_HEAD - _READ :]


def _exchanges(response: str, question: str) -> Iterator[str]:
    """The response to the prompt, then, where it asks the same question word for word again, what answers that."""
    after_thinking = final_text(response)
    if after_thinking is None:
        return
    asked = question.strip()
    text = _without_copied_prompt(after_thinking.replace("\u200b", "").strip(), asked)
    yield _without_listed_choices(_without_repeated_prompt(text))
    heading = _REPEATED_PROMPT.search(text)
    again = text.find(asked, heading.end()) if heading is not None and len(asked) > _ECHO else -1
    if again >= 0:
        yield _without_listed_choices(_without_repeated_prompt(_without_copied_prompt(text[again:], asked)))


def segments(response: str, question: str = "") -> Iterator[Segment]:
    """Yield the parts of `response` to ask, most trusted first, until it says that it has no answer.

    A question asked again counts only for a reader that found nothing before it ("Let me restate it. Question: ...").
    """
    for shown in _exchanges(response, question):
        if shown and (yield from _segments(shown, question)):
            return


def _segments(shown: str, question: str) -> Generator[Segment, None, bool]:
    """Yield the parts of one exchange; return whether it says that it has no answer."""
    if has_box(shown):
        boxed = last_boxed(shown)
        if boxed is None or len(boxed) > _LONGEST_BOX:  # empty, unclosed or no answer: an earlier one does not count
            return True
        yield Segment(Place.BOX, boxed)
    text = ends(shown)
    for tail in answer_tails(text):
        yield Segment(Place.PHRASE, tail)
        if _DECLINES_AT_START.match(tail) or _UNLISTED_OPTION.match(tail):
            return True
    last = last_sentence(text)
    if _DECLINES.search(last):
        return True
    yield Segment(Place.OPENING, text[:_TAIL_LIMIT].split("\n", 1)[0])
    declined = False
    claims = [segment for _, segment in sorted(_claims(text, question), key=lambda claim: -claim[0])]
    for segment in [*claims, Segment(Place.LAST_SENTENCE, last), Segment(Place.FIRST_SENTENCE, first_sentence(text))]:
        if _DECLINES.search(segment.text) or _ASKS_FOR_MORE.search(segment.text):
            declined = True
        elif not segment.text.endswith(("?", "？")):
            yield segment
    if not declined:
        yield Segment(Place.WHOLE, text)
    return declined


def declines(text: str) -> bool:
    """Whether `text` says that the question cannot be answered in its first or last sentence, or after an answer phrase."""
    if any(_DECLINES_AT_START.match(tail) for tail in answer_tails(text)[:1]):
        return True
    return any(_DECLINES.search(sentence) is not None for sentence in (first_sentence(text), last_sentence(text)))


def answer_tails(text: str) -> list[str]:
    """What follows each of the last answer phrases ("the answer is", "Answer:"), the last one first.

    A condition ("if x > 0, the answer is ...") is no answer and is left out.
    """
    tails = []
    for match in list(_ANSWER_PHRASE.finditer(text))[-_TAILS:]:
        before = _SENTENCE_END.split(text[max(0, match.start() - _TAIL_LIMIT) : match.start()])[-1]
        tail = text[match.end() : match.end() + _TAIL_LIMIT].partition("</answer>")[0].strip(" \t\n:*")
        if tail and not _CONDITION.search(before):
            tails.append(tail)
    return tails[::-1]


def first_sentence(text: str) -> str:
    """Up to the first full stop, question mark, exclamation mark or line end that ends a sentence."""
    return _SENTENCE_END.split(text.strip(), maxsplit=1)[0]


def sentences(text: str) -> list[str]:
    """All sentences and lines of `text` that are not empty."""
    return [part for part in (part.strip() for part in _SENTENCE_END.split(text)) if part]


def last_sentence(text: str) -> str:
    """The last sentence or line that is not empty, within the last 2,000 characters."""
    parts = [part.strip() for part in _SENTENCE_END.split(text[-2000:])]
    return next((part for part in reversed(parts) if part), "")


def _without_listed_choices(text: str) -> str:
    """Leave out runs of lines "(A) ...", "(B) ...", in this order: a copy of the choices, not an answer."""
    kept: list[str] = []
    run: list[str] = []
    for line in text.split("\n"):
        match = _LISTED_CHOICE.match(line)
        if match and ord(match[1]) - ord("A") == len(run):
            run.append(line)
            continue
        kept += run if len(run) < 2 else []
        run = [line] if match and match[1] == "A" else []
        kept += [] if run else [line]
    return "\n".join(kept + (run if len(run) < 2 else [])).strip()


def _without_copied_prompt(text: str, question: str) -> str:
    """Leave out a copy of the prompt in front: an echo, and the answer comes after it; all of `text` if nothing does.

    A question that is no exact copy is left out where it repeats half of the question's words, answers nothing and is
    followed by "Choices:".
    """
    rest = text
    for _ in range(_PROMPT_PARTS):
        heading = _REPEATED_PROMPT.match(rest)
        if heading is not None:
            rest = rest[heading.end() :].lstrip()
        if len(question) > _ECHO and rest.startswith(question):
            rest = rest[len(question) :].lstrip()
        elif heading is None:
            break
        elif heading[1] != "Choices:":
            line, _, after = rest.partition("\n")
            if _ANSWER_PHRASE.search(line) is not None:
                break
            rest = after.lstrip()
    following = _REPEATED_PROMPT.search(rest)
    if rest == text and following is not None and following[1] == "Choices:":
        before = rest[: following.start()]
        asked = set(question_words(_what_is_asked(question)))
        shared = asked.intersection(question_words(before[:_TAIL_LIMIT]))
        if asked and 2 * len(shared) >= len(asked) and _ANSWER_PHRASE.search(before) is None:
            rest = rest[following.end() :].lstrip()
    return rest or text


def _without_repeated_prompt(text: str) -> str:
    """Cut from the first prompt heading after the answer on, unless nothing would be left.

    What follows is another exchange that the model made up, often about other pictures, and where it stops depends on
    the token limit: read to its end, the same response would change its answer with the limit.
    """
    match = _REPEATED_PROMPT.search(text)
    if match is None or not text[: match.start()].strip():
        return text
    return text[: match.start()].strip()


def question_words(text: str) -> list[str]:
    """The words of a question that a statement of its answer repeats, in order, lower case."""
    return [word for word in _WORD.findall(text.lower()) if word not in _QUESTION_WORDS]


def _claims(text: str, question: str) -> Iterator[tuple[int, Segment]]:
    """The last conclusion ("Therefore ...") and the sentence that repeats most of the question's words, with positions.

    Of several sentences that repeat equally many words the last counts; one that repeats less than half is left out.
    """
    conclusion = last_match(_CONCLUSION, text)
    if conclusion is not None:
        tail = text[conclusion.end() : conclusion.end() + _TAIL_LIMIT]
        yield conclusion.end(), Segment(Place.CONCLUSION, first_sentence(tail))
    asked = set(question_words(_what_is_asked(question)))
    most, restating, at, searched = len(asked) / 2, "", 0, 0
    for sentence in sentences(text):
        searched = text.index(sentence, searched)
        shared = len(asked.intersection(question_words(sentence)))
        if shared >= most and shared > 0:
            most, restating, at = shared, sentence, searched
        searched += len(sentence)
    if restating:
        yield at, Segment(Place.RESTATING, restating)


def _what_is_asked(question: str) -> str:
    """The last sentence of `question` with a question mark, or the whole where there is none."""
    before, mark, _ = question.replace("？", "?").rpartition("?")
    return (sentences(before) or [question])[-1] if mark else question
