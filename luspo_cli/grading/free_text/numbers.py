"""Read the number or list that a response gives as its answer: the box, else the answer phrase, else the conclusion.

In a sentence the answer is what follows the last "=" or "is", else the last number; units, currency signs, thousands
commas and percent signs are dropped, a fraction is a number, and a number word up to twenty counts ("three objects").
Comparison is exact decimal arithmetic: binary rounding never decides a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Context, Decimal, InvalidOperation

from luspo_cli.grading.free_text.segments import CLAIMS, Place, ends, first_sentence, segments, sentences, visible_text

_WORD_LIST = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
_WORDS = _WORD_LIST.split()
_WORD_VALUES = {word: str(value) for value, word in enumerate(_WORDS)} | {"no": "0", "none": "0"}
_DIGITS = 40
"""Digits before the point of a number that is read; longer ones are no answer to any of these questions. As many are
kept after the point, where a model may repeat a period without end."""

_NUMBER = re.compile(
    r"(?<![\w.^])(?<!\^\{)(?<!\^-)(?<!\^\{-)(?P<sign>[-−–]\s?)?[$€£¥]?\s?"
    r"(?:\\[dt]?frac\s?\{(?P<top>-?\d{1,15}(?:\.\d{1,15})?)\}\s?\{(?P<bottom>\d{1,15}(?:\.\d{1,15})?)\}"
    r"|(?P<number>\d{1,3}(?:(?:,|\\,|\{,\})\d{3})++(?!\d)(?:\.\d++)?|\d++(?:\.\d++)?|\.\d++)"
    r"(?:\s?/\s?(?P<over>\d{1,15})(?![\d/]))?(?:[eE](?P<exponent>[+-]?\d{1,3})(?!\w))?)"
    r"(?!\d|st\b|nd\b|rd\b|th\b)"
)
_SCIENTIFIC = re.compile(r"(\d)\s{0,2}(?:\\times|\\cdot|[×*])\s{0,2}10\s?\^\s?\{?\s?([-−]?\d{1,3})\b\}?")
_POWER_OF_TEN = re.compile(r"(?<![\w.])10\s?\^\s?\{?\s?([-−]?\d{1,2})\b\}?")
_MIXED = re.compile(r"(?<![\w.])(\d{1,9})\s?\\[dt]?frac\s?\{(\d{1,9})\}\s?\{(\d{1,9})\}")
_IRRATIONAL = re.compile(r"\\(?:sqrt|pi|log|ln|sin|cos|tan)\b|[√π]")
_NUMBER_WORD = re.compile(r"\b(?:" + "|".join(_WORDS) + r")\b", re.IGNORECASE)
_COPULA = re.compile(r"\b(?:is|are|was|were|be|equals?)\b", re.IGNORECASE)
_BOLD = re.compile(r"\*\*([^*\n]{1,80})\*\*")
_THERE_ARE = re.compile(r"\bthere (?:are|is|were|was|would be|will be)\b", re.IGNORECASE)
_RANGE = re.compile(r"\b(?:between|from)\s\$?\d[\d,.]{0,20}%?\s(?:and|to)\s\$?\d", re.IGNORECASE)
"""A range is no answer to a question for one number."""
_YEAR = re.compile(r"(?<!\d)[12]\d{3}(?!\d)")
_ASKS_WHEN = re.compile(r"\s*when\b", re.IGNORECASE)
_ASKS_A_YEAR = re.compile(r"\b(?:which|what|in which|in what) year\b", re.IGNORECASE)
_WHAT_IS = re.compile(
    r"\bwhat(?: is| was|'s) (?:the )?([a-z][a-z -]{2,60}?)(?: (?:of|in|for|from|on|at|that)\b|[?,.(])", re.IGNORECASE
)
"""What a question asks for: "what is the total sum?"."""
_VALUE_FOLLOWS = (
    rf"(?: (?:of|in|for|from|on) [^.,]{{1,60}}?)? (?:is|was|equals) [$€£]?(?=[-−]?\d|(?:{'|'.join(_WORDS)})\b)"
)
_OUT_OF = re.compile(
    rf"\b({'|'.join(_WORDS)}|\d{{1,6}}) (?:out of|in every) (?:every )?({'|'.join(_WORDS)}|\d{{1,6}})\b", re.IGNORECASE
)
_ASKS_A_SHARE = re.compile(r"\b(?:fraction|proportion|probability)\b", re.IGNORECASE)
_LIST = re.compile(r"\[[^\[\]]{0,2000}\]")
_BARE_ITEM = re.compile(r"-?\d{1,20}(?:\.\d{1,20})?")
_BARE_LIST = re.compile(
    rf"\(?{_BARE_ITEM.pattern}(?:(?:\s?,\s|,(?!\d{{3}}(?!\d))|(?:,)?\sand\s){_BARE_ITEM.pattern}){{1,63}}\)?\.?"
)
"""Numbers that are listed without brackets: "2014 and 2016"; 1,234 is one number."""
_MARKUP = re.compile(r"[*$]|\\text\{\s?(?=and)|(?<=and)\s?\}|\\[{}()]")
_CONTEXT = Context(prec=100, rounding=ROUND_HALF_EVEN)


def read_number(response: str, question: str = "") -> str | None:
    """The number that `response` gives as its answer as a plain decimal text, or None where it gives none.

    Without a box or an answer phrase, in order: the only number in bold, the conclusion ("Therefore ..."), the
    sentence that restates the question, the last sentence, the first one, the last number at all.
    """
    return next(filter(None, _readings(response, question)), None)


def _readings(response: str, question: str) -> Iterator[str | None]:
    """What each part of the response says, the most trusted first; a box is the last one."""
    year = bool(_ASKS_A_YEAR.search(question)) or (
        _ASKS_WHEN.match(question) is not None and _YEAR.search(response) is not None
    )
    share = _ASKS_A_SHARE.search(question) is not None
    bold_asked = False
    for segment in segments(response, question):
        if segment.place is Place.BOX:
            # A box holds an answer, not a sentence: a root in it is no plain number, and none of its parts is meant.
            yield None if _IRRATIONAL.search(segment.text) else stated_number(segment.text, year=year)
            return
        if segment.place is Place.PHRASE:
            yield stated_number(first_sentence(segment.text), year=year, leading=True)
            yield stated_number(segment.text, year=year, leading=True)
            continue
        if not bold_asked:
            bold_asked, text = True, visible_text(response, question) or ""
            yield _only_bold(text)
            yield None if share else _as_asked(text, question)
        if share and (parts := _OUT_OF.search(segment.text)):
            yield _quotient(_digits(parts[1]), _digits(parts[2]))
        if segment.place is not Place.OPENING:
            yield stated_number(segment.text, year=year, anchored=segment.place is Place.RESTATING and not year)


def _as_asked(text: str, question: str) -> str | None:
    """The number in the last sentence that says "the total sum is ..." where the question asks "what is the total sum"."""
    asked = _WHAT_IS.search(question)
    if asked is None:
        return None
    said = re.compile(rf"\b{re.escape(asked[1].lower())}{_VALUE_FOLLOWS}")
    for sentence in reversed(sentences(ends(text))):
        if found := said.search(sentence.lower()):
            return stated_number(sentence[found.start() :], anchored=True)
    return None


def _digits(word: str) -> str:
    return _WORD_VALUES.get(word.lower(), word)


def _only_bold(text: str) -> str | None:
    values = {value for span in _BOLD.findall(text) if (value := stated_number(span)) is not None}
    return values.pop() if len(values) == 1 else None


def stated_number(text: str, *, year: bool = False, leading: bool = False, anchored: bool = False) -> str | None:
    """The number that a sentence states: the first one after its last "=", "is" or "there are", else its last one.

    `leading`: the sentence begins with its answer, so without "=" the first number counts. `year`: only years count.
    `anchored`: without one of those words it states nothing.
    """
    text = _plain_notation(text)
    start, fixed = text.rfind("=") + 1, False
    for there in _THERE_ARE.finditer(text, start):
        start, fixed = there.end(), True
    if not leading and not fixed:
        for copula in _COPULA.finditer(text, start):
            start = copula.end()
    if _RANGE.search(text, start):
        return None
    if start:
        value = _numbers(text[start:], year)[:1]
        if value:
            return value[0]
    found = [] if anchored else _numbers(text, year, words=False) or _numbers(text, year)
    if not found:
        return None
    return found[0] if leading or year else found[-1]


def _plain_notation(text: str) -> str:
    """`text` with 3 \\times 10^{-5} as 3e-5, 10^3 as 1e3 and the mixed number 2\\frac{1}{2} as 5/2."""
    if "^" in text:
        text = _SCIENTIFIC.sub(lambda match: f"{match[1]}e{match[2].replace('−', '-')}", text)
        text = _POWER_OF_TEN.sub(lambda match: f"1e{match[1].replace('−', '-')}", text)
    if "frac" in text:
        text = _MIXED.sub(lambda match: f"{int(match[1]) * int(match[3]) + int(match[2])}/{match[3]}", text)
    return text


def _numbers(text: str, year: bool, *, words: bool = True) -> list[str]:
    """All numbers of `text` in order, number words among them."""
    found = [(match.start(), value) for match in _NUMBER.finditer(text) if (value := _value(match)) is not None]
    if year:
        return [value for _, value in found if _YEAR.fullmatch(value)]
    if words:
        found += [(match.start(), _WORD_VALUES[match[0].lower()]) for match in _NUMBER_WORD.finditer(text)]
    return [value for _, value in sorted(found)]


def read_list(response: str) -> str | None:
    """The list of `response` with its brackets: its box, what its answer phrase or last "are" says, its last brackets."""
    for segment in segments(response):
        found = _LIST.findall(segment.text) if segment.place in (Place.BOX, Place.PHRASE, Place.WHOLE) else []
        if found:
            return found[-1]
        said = first_sentence(segment.text)
        if segment.place in CLAIMS and (copulas := list(_COPULA.finditer(said))):
            said = said[copulas[-1].end() :]
        bare = _BARE_LIST.fullmatch(_MARKUP.sub("", said).strip())
        if bare is not None:
            return "[" + ", ".join(_BARE_ITEM.findall(bare[0])) + "]"
        if segment.place is Place.BOX:
            return None
    return None


def list_items(text: str) -> tuple[Decimal | str, ...] | None:
    """The elements of a bracketed list, numbers by value and words without quotes, or None where it is no list."""
    inside = text.strip()
    if not (inside.startswith("[") and inside.endswith("]")):
        return None
    parts = [part.strip().strip("'\"") for part in inside[1:-1].split(",")]
    return tuple(part if (value := decimal(part)) is None else value for part in parts)


def decimal(text: str) -> Decimal | None:
    """The exact value of a plain decimal text, or None."""
    try:
        value = Decimal(text.strip())
    except (InvalidOperation, ValueError):
        return None
    return value if value.is_finite() and abs(value.adjusted()) <= 2 * _DIGITS else None


def rounded(value: Decimal, places: int) -> Decimal:
    """`value` to `places` decimals, halves to even, in exact decimal arithmetic."""
    return value.quantize(Decimal(1).scaleb(-places), context=_CONTEXT)


def _value(match: re.Match[str]) -> str | None:
    sign = "-" if match["sign"] else ""
    if match["top"] is not None:
        return _quotient(sign + match["top"], match["bottom"])
    whole, point, fraction = re.sub(r"\\,|\{,\}|,", "", match["number"]).partition(".")
    if len(whole) > _DIGITS:
        return None
    digits = whole + point + fraction[:_DIGITS]
    if match["over"] is not None:
        return _quotient(sign + digits, match["over"])
    if match["exponent"] is not None:
        return _text(_CONTEXT.create_decimal(f"{sign}{digits}e{match['exponent']}"))
    return sign + digits


def _quotient(top: str, bottom: str) -> str | None:
    divisor = Decimal(bottom)
    return None if divisor == 0 else _text(_CONTEXT.divide(Decimal(top.replace("--", "")), divisor))


def _text(value: Decimal) -> str:
    return format(value, "f")
