"""Read which of the listed choices a response names, without guessing: a letter by its position, or the choice's text.

Prompts list "(A) text", so a letter means a position even where the choices are themselves letters ("(A) (c)"); only
a lower-case label given verbatim means the text. Two different choices named in one place are no answer, and the
article "A" or the corner A of a triangle is not a letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice

from luspo_cli.grading.free_text.numbers import decimal, stated_number
from luspo_cli.grading.free_text.segments import (
    CLAIMS,
    Place,
    declines,
    first_sentence,
    letter_pattern,
    segments,
    visible_text,
)
from luspo_cli.grading.free_text.statements import (
    choice_by_a_part,
    choice_by_all_words,
    choice_by_own_words,
    choices_by_own_words,
    states_yes_or_no,
)

_MARKUP = re.compile(
    r"\\(?:text|mathrm|mathbf|textbf|boldsymbol)\s{0,3}\{|[*$`_{}\"“”]|\\[()\[\]!,;]|</?\w{1,10}>|<+|>+"
)
_SPACES = re.compile(r"\s+")
_LEADING_LETTER = re.compile(
    r"^(?:(?:option|choice|letter|answer)\s)?(?:\(\s?([A-Za-z])\s?\)|（\s?([A-Z])\s?）|([A-Z])(?=\s?[.:,;)\]：，。]|\s?$|\s[-–=(]|[\u4e00-\u9fff]))"
)
_PARENTHESISED = re.compile(r"[(（]\s?([A-Za-z])\s?[)）]")
_NAMED_LETTER = re.compile(
    rf"\b(?i:option|choice|letter|answer)s?(?: is| letter)?[ :]{{1,3}}\(?({letter_pattern('Z')})"
)
_STANDING_LETTER = re.compile(r"(?<![\w'’\\^=+*/-])([A-Z])(?![\w'’(^=+*/-])", re.ASCII)
_ARTICLE = re.compile(r"(?:^|[.!?]\s)A\s(?=[a-z])")
_LABEL = re.compile(r"\(\s?[A-Za-z]\s?\)")
_QUANTITY = re.compile(r"[£$€]?(-?\d{1,20}(?:\.\d{1,20})?) ?(?:[^\W\d]{0,12}|[°%$€£])")
_LONGEST = 2_000
"""Characters of a short answer; a longer one is none."""
_OCCURRENCES = 50
"""Places of one choice's text that are looked at: the work on a response that repeats it without end stays bounded."""
_WORD_OR_TWO = 12
"""Characters of a text in which "no" is an answer wherever it stands."""
_SHORT = 48
"""Characters up to which a whole response may be a bare letter with a few words around it."""
_UNIT = re.compile(r"(?<=\d) (?=(?:[mck]?m|k?g|lbs?|ft|in|s|min|h|mph|k?wh|twh|rpm|ohms?)\b)", re.IGNORECASE)
"""The space between a number and a short unit, which some write and some do not."""
_SYMBOLS = {"\\sqrt": "√", "\\pi": "π", "\\dfrac": "\\frac", "\\tfrac": "\\frac", "−": "-"}
_SYMBOL = re.compile(r"\\sqrt|\\pi\b|\\[dt]frac|−")
_ROOT = re.compile(r"\s*√\s*")
_THAN = re.compile(r"\b(?:than|compared (?:to|with))\b", re.IGNORECASE)
_UNKNOWABLE = re.compile(
    r"\b(?:impossible|not possible|can ?not|can't|unable) (?:to )?(?:be )?(?:tell|told|say|determined?|predict(?:ed)?|know)\b"
    r"|\b(?:insufficient|not enough) (?:information|data)\b|^\W*not possible\W*$|不能确定|无法确定",
    re.IGNORECASE,
)
_DEGREES = re.compile(r"\s?(?:degrees?\b|\^\s?\\?circ\b|\\circ\b|°)", re.IGNORECASE)


def read_choice(response: str, choices: Sequence[str], question: str = "") -> int | None:
    """The 0-based position of the choice that `response` names as its answer; None where it names none or several."""
    boxed_other = False
    for segment in segments(response, question):
        if boxed_other and segment.place is not Place.PHRASE:
            return None
        index = _read_segment(segment.text, segment.place, choices)
        if index is None and segment.place in CLAIMS:
            index = _read_statement(segment.text, choices, question)
        elif index is None and segment.place is Place.PHRASE:
            index = _by_value(first_sentence(segment.text), choices, leading=True)
        if index is not None:
            return index
        # A number in the box that is no choice is an answer, and none of the listed ones; a stated option still counts.
        boxed_other = (
            segment.place is Place.BOX and None not in _quantities(choices) and stated_number(segment.text) is not None
        )
    open_choice = unknowable(choices)
    if open_choice is not None and declines(visible_text(response, question) or ""):
        return open_choice
    return None


def unknowable(choices: Sequence[str]) -> int | None:
    """The position of the only choice that says that the question cannot be answered, or None."""
    found = [position for position, choice in enumerate(choices) if _UNKNOWABLE.search(choice)]
    return found[0] if len(found) == 1 else None


def choice_position(text: str, choices: Sequence[str]) -> int | None:
    """The position that a short answer (a stored extraction, a box) names, or None."""
    if len(text) > _LONGEST:
        return None
    index = _read_segment(text, Place.BOX, choices)
    return _by_value(text, choices) if index is None else index


def _read_statement(text: str, choices: Sequence[str], question: str) -> int | None:
    """The choice that a sentence states without naming it: yes or no, a number in another unit, or its own words."""
    texts = [_comparable(choice) for choice in choices]
    if sorted(texts) == ["no", "yes"]:
        answer = states_yes_or_no(text, question)
        return None if answer is None else texts.index("yes" if answer else "no")
    return next((index for index in _statements(text, choices, question) if index is not None), None)


def _statements(text: str, choices: Sequence[str], question: str) -> Iterator[int | None]:
    several = len(named_texts(text, choices, short_words=False)) > 1
    # Two choices named, and neither as what something is: no number of theirs is stated.
    if not several or stated_number(text, anchored=True) is not None:
        yield _by_value(text, choices)
    yield choice_by_own_words(text, choices, question)
    head, comparison, _ = _THAN.sub("\0", text).partition("\0")
    if comparison:  # "the sun is larger than the moon" names the sun
        yield named_text(head, choices, short_words=False)
    else:
        yield choice_by_all_words(text, choices)
        yield choice_by_a_part(text, choices)


def _by_value(text: str, choices: Sequence[str], *, leading: bool = False) -> int | None:
    """The only choice with the number that `text` states, where all choices are numbers, with or without a unit."""
    values = _quantities(choices)
    if None in values:
        return None
    stated = stated_number(text, leading=leading)
    value = None if stated is None else decimal(stated)
    if value is None:
        return None
    found = [index for index, match in enumerate(values) if match is not None and decimal(match[1]) == value]
    return found[0] if len(found) == 1 else None


def _quantities(choices: Sequence[str]) -> list[re.Match[str] | None]:
    return [_QUANTITY.fullmatch(_comparable(choice).replace(",", "")) for choice in choices]


def _read_segment(text: str, place: Place, choices: Sequence[str]) -> int | None:
    plain = _plain(text)
    if not plain:
        return None
    verbatim = _verbatim(plain, choices)
    if verbatim is None and place is Place.BOX and len(plain) == 1 and plain.isalpha():
        verbatim = _position(plain, choices)
    if verbatim is not None:
        return verbatim
    head = plain if place is Place.BOX else first_sentence(plain)
    if place is not Place.CONCLUSION:
        letter = _LEADING_LETTER.match(plain)
        if letter is not None:
            index = _position(letter[1] or letter[2] or letter[3], choices)
            if index is not None:
                return index
    if place is Place.OPENING:
        return None
    if place is Place.WHOLE and all(_QUANTITY.fullmatch(_comparable(choice)) for choice in choices):
        plain = head = plain if len(plain) <= _SHORT else ""  # a number of a long working is not its answer
    if place in CLAIMS:
        head = head.rpartition("=")[2]  # what an equation comes to
        plain = head
    trusted = place in (Place.BOX, Place.PHRASE)
    for part in dict.fromkeys((head, plain)):
        index = _single(_PARENTHESISED.findall(part), choices)
        if index is None:
            index = _single(_NAMED_LETTER.findall(part), choices)
        if index is None:
            index = named_text(part, choices, short_words=trusted or len(part) <= _WORD_OR_TWO)
            if index is not None and not trusted and set(choices_by_own_words(part, choices)) - {index}:
                return None  # another choice is said in other words
        if index is None and (trusted or len(part) <= _SHORT):
            index = _single(_standing_letters(part), choices)
        if index is not None:
            return index
    return None


def named_text(text: str, choices: Sequence[str], *, short_words: bool) -> int | None:
    """The position of the only choice whose text occurs in `text`, or None where none or several do."""
    named = named_texts(text, choices, short_words=short_words)
    return named[0] if len(named) == 1 else None


def named_texts(text: str, choices: Sequence[str], *, short_words: bool) -> list[int]:
    """The positions of the choices whose text occurs in `text` as whole words; a choice inside a longer one yields.

    Of choices with equal texts the first counts. `short_words` False asks that "yes" and "no" begin the text, since
    "no" occurs in any sentence.
    """
    lowered = _comparable(text)
    named: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    comparable = [_comparable(choice) for choice in choices]
    for position, choice in sorted(enumerate(comparable), key=lambda item: -len(item[1])):
        if not choice or (len(choice) == 1 and choice.isalpha()):
            continue
        free = [
            match.span()
            for match in islice(_whole_words(choice).finditer(lowered), _OCCURRENCES)
            if (short_words or choice not in ("yes", "no") or match.start() == 0)
            and not any(left <= match.start() and match.end() <= right for left, right in spans if choice not in named)
        ]
        if free:
            named.setdefault(choice, position)
            spans += free
    return sorted(named.values())


@lru_cache(maxsize=4096)
def _whole_words(choice: str) -> re.Pattern[str]:
    # A term of an equation is not an answer: no operator may stand beside the text.
    before = r"(?<![\w.])(?<![*/+^] )(?<![*/+^])" if choice[0].isalnum() else ""
    after = r"(?!\w|\.\d|,\d{3}| ?[*/+^=])" if choice[-1].isalnum() else ""
    return re.compile(before + re.escape(choice) + after)


def _plain(text: str) -> str:
    return _SPACES.sub(" ", _MARKUP.sub(" ", text)).strip(" \t\n:：")


def _comparable(text: str) -> str:
    plain = _plain(_SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text))
    spaced = _ROOT.sub("√", _UNIT.sub("", _DEGREES.sub("°", plain)))
    return _SPACES.sub(" ", spaced).strip(" .").lower()


def _verbatim(plain: str, choices: Sequence[str]) -> int | None:
    """The choice that `plain` is, character for character and then up to case; a bare capital letter is a position."""
    if len(plain) == 1 and plain.isupper():
        index = _position(plain, choices)
        if index is not None:
            return index
    stripped = [choice.strip() for choice in choices]
    for text in (plain, plain.rstrip(".")):
        if text in stripped:
            return stripped.index(text)
    if _LABEL.fullmatch(plain.rstrip(".")):  # "(C)" is the third choice, whatever the choices are called
        return None
    comparable = _comparable(plain)
    texts = [_comparable(choice) for choice in choices]
    if comparable and len(comparable) > 1 and comparable in texts:
        return texts.index(comparable)
    return None


def _position(letter: str, choices: Sequence[str]) -> int | None:
    index = ord(letter.upper()) - ord("A")
    return index if 0 <= index < len(choices) else None


def _single(letters: Sequence[str], choices: Sequence[str]) -> int | None:
    positions = {index for letter in letters if (index := _position(letter, choices)) is not None}
    return positions.pop() if len(positions) == 1 else None


def _standing_letters(text: str) -> list[str]:
    return _STANDING_LETTER.findall(_ARTICLE.sub(lambda match: " " * len(match[0]), text))
