r"""One spelling for answers that differ only in how they are written; gold and prediction go through the same function.

Decided here: presentation goes (sizing, spacing, dollars, fonts), meaning stays (brackets, subscripts, order). A unit
is taken off and remembered, so that 5.4 and 5.4 cents are equal and 5.4 cents and 5.4 dollars are not. A comma is a
thousands separator only in the exact pattern of one to three digits followed by groups of three. Rules follow the
MATH normalisation of Hendrycks et al. (arXiv 2103.03874) and Minerva (arXiv 2206.14858), appendix D; unlike those, no
rule changes a value. Every pass is one scan over the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

from luspo_cli.grading.maths.spelling import OR, TEXT_CLOSE, TEXT_OPEN, plain_characters, rewrite_commands
from luspo_cli.grading.maths.units import canonical_unit, clash, conversion, multiplied, short_unit, split_unit
from luspo_cli.grading.maths.words import changes_value

MAX_ANSWER_CHARACTERS = 2_000
"""A longer text is no short answer: it is compared as it stands and never parsed."""

_THOUSANDS_MARK = re.compile(r"(?<=[0-9])(?:,\s{0,4}\\!|\{,\}|\\,)\s{0,4}(?=[0-9]{3}(?![0-9]))")
_CURRENCIES = {"€": "euro", "£": "pound sterling", r"\euro": "euro", r"\pounds": "pound sterling", "¥": "yuan"}
_CURRENCY_CODES = {"USD": "dollar", "EUR": "euro", "GBP": "pound sterling", "CNY": "yuan", "RMB": "yuan"}
_CODE_FIRST = re.compile(rf"[ \ue000]*({'|'.join(_CURRENCY_CODES)})[ \ue001]*(?=[-+]?\.?[0-9])")
_DELIMITER = re.compile(r"(?<!\\)\$")
_US_DOLLAR = re.compile(r"\s{0,4}U\.?S\.?\s?(?=\\?\$\s?\.?[0-9])")
_OUT_OF_PLACE = re.compile(
    r"(?:^|[-+*/=])\s{0,4}\\?%|%\s{0,4}(?:\\?%|\.?[0-9])"
    r"|[0-9]\s{0,4}(?:\\\$|[€£¥])\s{0,4}\.?[0-9]|(?:\\\$|[€£¥])\s{0,4}(?:\\\$|[€£¥])"
)
"""A percent sign without a value before it or with one behind it, money between two digits, a sign twice: no one value."""
_DEGREES = re.compile(
    r"(?:\*\s{0,4})?(?:\^\s{0,4}(?:\\circ|\{\s{0,4}\\circ\s{0,4}\}|\\degree|\{\s{0,4}\\degree\s{0,4}\})|\\degree)"
)
_TRIGONOMETRY = re.compile(r"(?<!arc)(?<!a)(?:sin|cos|tan|cot|sec|csc)[ ({]{0,3}(?=[0-9]|\\left)")
_PLAIN_THOUSANDS = re.compile(r"(?<![0-9.,])([0-9]{1,3}(?:,[0-9]{3})+)(?![0-9,])")
_SPACED_THOUSANDS = re.compile(r"[-+]?[0-9]{1,3}(?:, ?[0-9]{3})+")
_MIXED = re.compile(r"(?<![0-9A-Za-z.)}/^_])([0-9]+) +([0-9]+) ?/ ?([0-9]+)(?![0-9.])")
_SPACED_GROUPS = re.compile(r"(?<![0-9.,] )(?<![0-9.,])([1-9][0-9]{0,2}(?: [0-9]{3})+)(?! ?[0-9/])")
_ORDINAL = re.compile(r"([0-9]+) ?[\^{ \ue000]{0,4}(?:st|nd|rd|th)[} \ue001]{0,4}")
_TEMPERATURE = re.compile(r"[ {\ue000]{0,4}([CF])[ }\ue001]{0,4}")
_TIME_OF_DAY = re.compile(r"([0-9]{1,2}(?::[0-9]{2})?)[ \ue000]*([AaPp])\.? ?[Mm][. \ue001]*")
_TIMES_TEN = re.compile(r"(?<=[0-9]) ?[xX] ?(?=10 ?\^)")
_DOTTED = re.compile(r"(?<=[.0-9])\\dot ?\{? ?([0-9])\}?(?:([0-9]{0,20})\\dot ?\{? ?([0-9])\}?)?$")
_BARRED = re.compile("((?:[0-9]\u0305){1,20})")
_IN_BRACKETS = re.compile(r"(?<=[0-9])(\.[0-9]{0,20})\(([0-9]{1,20})\)$")
_AND_SO_ON = re.compile(r"(-?[0-9]{0,20}\.[0-9]{0,20}?)([0-9]{1,12}?)\2{1,20}\.\.\.")
_REALS = re.compile(r"(?:the )?(?:set of )?(?:all )?real numbers|all reals", re.IGNORECASE)
_EMPTY = re.compile(r"(?:the )?(?:empty|null) set|no (?:real )?solutions?", re.IGNORECASE)
_SEPARATOR_WORD = re.compile(r"[ \ue000]+(and|or)[ \ue001]+|,[ \ue000]*(?:and|or)[ \ue001]+")
_WORD = re.compile(r"[A-Za-z]{3,}")
_OPTION = re.compile(r"(?:[Oo]ption|[Cc]hoice) (?=\(?[A-Z]\b)")
_CHOICE = re.compile(r"[ \ue000]*\(([A-Z])\)[ \ue001.:]*(?P<rest>[^ \ue001].*)?", re.DOTALL)
_LISTED_CHOICE = re.compile(r"([A-J])[.:)](?: +(?P<rest>[-+]?[0-9.(\\].*))?", re.DOTALL)
_OTHER_CHOICE = r"[ \ue000]*[A-J](?![A-Za-z0-9'(^_]| ?[=+*/<>-]|(?<=A) [a-z])"
_SECOND_CHOICE = re.compile(
    r"(?:and|or|nor|&)(?![A-Za-z])|(?:is|are) (?:wrong|incorrect|false)\b|(?:is|are)(?: not|n't)\b"
    r"|(?:[a-z]+n't|[a-z]* ?not) (?:be )?(?:it|so|right|correct)\b|[a-z]+(?:n't| ?not) (?:be )?(?:true|possible|valid|the)\b"
    rf"|{_OTHER_CHOICE}|.*(?:(?<![A-Za-z])\([A-J]\)|(?<![A-Za-z(])[A-J][.:)] |[;/]{_OTHER_CHOICE}"
    rf"|\b(?:or|but|also|maybe|perhaps|possibly)\b(?:[^;]{{0,20}}[ \ue000])?{_OTHER_CHOICE})",
    re.DOTALL,
)
"""Behind a choice: another one, or that it is wrong."""
_EMPTY_GROUP = re.compile(r"(?<![A-Za-z}^_ ])\{\}")
_ROUGHLY = re.compile(r"[ \ue000]*(?:about|approximately|approx\.?)[ \ue001]+(?=[-+]?[0-9.\\])")
_MINUS = re.compile(r"[ \ue000]*(?:minus|negative)[ \ue001]+(?=[0-9.\\(])", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-df-hj-z](?:_\{?[0-9A-Za-z]\}?)?")
_LABEL = re.compile(r"(?:[Tt]he )?(?:[Ff]inal )?[Aa]nswer(?: is ?:?|[ \ue001]?:)[ \ue001]*")
_TEXT_ONLY = re.compile(r"[A-Za-z][A-Za-z'\".\- ]*")
_VALUE_END = re.compile(r"[0-9)}\]]$|(?<![A-Za-z\ue001])[A-Za-z]$|\\pi$")
_LETTER_UNITS = frozenset("mshgLlCFKNJWVA")
_NAMES_OF_MATHS = frozenset(
    (
        "pi", "sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "inf", "infty", "infinity",
        "theta", "alpha", "beta", "gamma",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Normalised:
    """An answer in its normal spelling."""

    text: str
    unit: str | None = None
    """Canonical name of a unit that was taken off, where it is a known one."""
    choice: str | None = None
    """The letter of `(B) 27`; `text` is then what follows it."""
    spaced_list: bool = False
    """The text is a number only if its `, ` separate thousands; it could also be a list."""

    @property
    def is_text(self) -> bool:
        """Whether the answer is words, to be compared as words."""
        return is_words(self.text)


def is_words(text: str) -> bool:
    """Whether `text` is made of words alone, one of them of three letters or more and no name of mathematics."""
    if not _TEXT_ONLY.fullmatch(text):
        return False
    return any(word.lower() not in _NAMES_OF_MATHS for word in _WORD.findall(text))


def normalise(answer: str) -> Normalised:
    """Return `answer` in its normal spelling; idempotent, linear in its length, never raises."""
    # The cache holds short answers only: thousands of megabyte-long ones would fill the memory.
    return _normalise(answer) if len(answer) <= MAX_ANSWER_CHARACTERS else Normalised(answer.strip())


@lru_cache(maxsize=4096)
def _normalise(answer: str) -> Normalised:
    text = _without_stars(plain_characters(answer))
    text, unit = _without_currency(text.strip())
    text = _THOUSANDS_MARK.sub("", text)
    if _TRIGONOMETRY.search(text):  # the sine of 30 degrees is none of 30
        text = _DEGREES.sub(r"\\pi /180 ", text)
    text, degrees = _DEGREES.subn("\ue003", text)
    if "\ue003\ue003" in re.sub("[ {}]", "", text):  # degrees of degrees
        return Normalised(answer.strip())
    text = _EMPTY_GROUP.sub("", rewrite_commands(text)).strip()
    scale = _TEMPERATURE.fullmatch(text.rpartition("\ue003")[2]) if degrees else None
    if scale is not None:
        text, unit = text.rpartition("\ue003")[0], "celsius" if scale[1] == "C" else "fahrenheit"
    text = text.replace("\ue003", "")
    unit = unit or ("degree" if degrees else None)
    text = _OPTION.sub("", _LABEL.sub("", _trim(text)))
    text = _without_lead(_ROUGHLY, text.removeprefix("=").lstrip())
    exact, sign, rounded = (side.strip() for side in text.partition(r"\approx "))
    if sign and rounded:  # 1/3 \approx 0.33: the exact side is the answer, where there is one
        text = f"{exact}={rounded}" if _VARIABLE.fullmatch(exact) else exact or rounded
    code = _CODE_FIRST.match(text)
    if code is not None:
        text, unit = _without_lead(_CODE_FIRST, text), unit or _CURRENCY_CODES[code[1]]
    if _MINUS.match(text):
        text = "-" + _without_lead(_MINUS, text)
    choice, text = _split_choice(text)
    time = _TIME_OF_DAY.fullmatch(text)
    if time is not None:
        text, unit = time[1], time[2].lower() + "m"
    ordinal = _ORDINAL.fullmatch(text)
    if ordinal is not None:
        text = ordinal[1]
    text, found = _take_off_unit(text)
    if clash(unit, found):  # dollars of cents
        return Normalised(answer.strip())
    unit = unit or found
    bare = " ".join(text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").split())
    text = multiplied(bare) or text
    text = _SEPARATOR_WORD.sub(lambda match: OR if match.group(1) == "or" else ",", text)
    text = _trim(text.replace(TEXT_OPEN, "").replace(TEXT_CLOSE, ""))
    text = _unwrap_braces(text)
    spaced = ", " in text and _SPACED_THOUSANDS.fullmatch(text) is not None
    if is_words(text):
        text = " ".join(text.split()).rstrip(".")
        text = r"\mathbb{R}" if _REALS.fullmatch(text) else r"\emptyset" if _EMPTY.fullmatch(text) else text
    else:
        text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
        text = _SPACED_GROUPS.sub(lambda match: match[1].replace(" ", ""), text)
        text = text if spaced else _join_thousands(_squeeze(_TIMES_TEN.sub("*", text)))
        text = _repeating(text.replace(r"\mathbb R", r"\mathbb{R}"))
    return Normalised(text, unit, choice, spaced)


def normalised_pair(gold: str, answer: str) -> tuple[Normalised, Normalised]:
    """Both in normal spelling; beside a known unit what may be letters (`10 in`, `5 m`) is a unit of its kind."""
    left, right = normalise(gold), normalise(answer)
    return _with_unit_like(left, right), _with_unit_like(right, left)


def _with_unit_like(one: Normalised, other: Normalised) -> Normalised:
    found = short_unit(one.text) if one.unit is None and other.unit is not None else None
    if found is None or other.unit is None or conversion(found[1], other.unit) is None:
        return one
    return replace(one, text=found[0], unit=found[1])


def _repeating(text: str) -> str:
    r"""Write 0.\dot{3}, 0.(3), 0.333... and a combining bar as 0.\overline{3}."""
    text = _BARRED.sub(lambda match: rf"\overline{{{match[1].replace(chr(0x305), '')}}}", text)
    text = _DOTTED.sub(lambda match: rf"\overline{{{match[1]}{match[2] or ''}{match[3] or ''}}}", text)
    text = _IN_BRACKETS.sub(r"\1\\overline{\2}", text)
    endless = _AND_SO_ON.fullmatch(text)
    return text if endless is None else rf"{endless[1]}\overline{{{endless[2]}}}"


def joined_thousands(normal: Normalised) -> str:
    """Return the text, in its one-number reading where its `, ` may separate thousands."""
    return normal.text.replace(", ", "").replace(",", "") if normal.spaced_list else normal.text


def _without_stars(text: str) -> str:
    """Drop Markdown's stars around the answer, or those of a pair that it cut; a single one is a sign of multiplication."""
    text = text.strip().strip('`"').strip()
    inner = text.rstrip(".,;:! ")
    first, last = len(text) - len(text.lstrip("*")), len(inner) - len(inner.rstrip("*"))
    if last == len(inner):
        return text.strip("*")
    if last and (last == first or last > 1):
        text = inner[:-last] + text[len(inner) :]
    starts = first and (last == first or first > 1 or text[first] == " ")
    return text[first:] if starts else text


def _without_lead(lead: re.Pattern[str], text: str) -> str:
    """The text without words in front of it; the fence of words that go on behind them stays."""
    match = lead.match(text)
    if match is None:
        return text
    fence = match[0].count(TEXT_OPEN) > match[0].count(TEXT_CLOSE)
    return (TEXT_OPEN if fence else "") + text[match.end() :]


def _without_currency(text: str) -> tuple[str, str | None]:
    unit = None
    text = _US_DOLLAR.sub("", text, count=1) if _US_DOLLAR.match(text) else text
    if _OUT_OF_PLACE.search(text):
        return _DELIMITER.sub("", text), None
    if r"\$" in text:
        unit, text = "dollar", text.replace(r"\$", "")
    for sign, name in _CURRENCIES.items():
        if sign in text:
            unit, text = name, text.replace(sign, "")
    # One lone dollar before a number is currency, not a delimiter.
    if unit is None and re.match(r"-?\$[0-9.,]+$", text):
        unit = "dollar"
    if "%" in text:
        unit, text = "percent", text.replace(r"\%", "").replace("%", "")
    return _DELIMITER.sub("", text), unit


def _trim(text: str) -> str:
    """Drop quotes, Markdown stars and sentence punctuation around the answer."""
    text = text.strip().strip('`"').strip().removesuffix("\\\\").rstrip()  # a line end of TeX behind the answer
    while text.endswith((".", ",", ";", ":", "!")) and not text.endswith("..") and len(text) > 1:
        before = text.rstrip("!")[-1:]
        if text.endswith("!") and (before.isalnum() or before in (")", "}")):  # a factorial, or the double one 5!!
            break
        text = text[:-1].rstrip()
    return text


def _split_choice(text: str) -> tuple[str | None, str]:
    listed = _LISTED_CHOICE.fullmatch(text)
    if listed is not None and listed["rest"] is None:
        return None, listed[1]
    if listed is not None and not _SECOND_CHOICE.match(listed["rest"]):
        return listed[1], listed["rest"]
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None, text
    rest = match.group("rest")
    again = rest is not None and rest.strip(f"{TEXT_OPEN}{TEXT_CLOSE} .()") == match.group(
        1
    )  # the option "A" of letters
    if rest is not None and not again and _SECOND_CHOICE.match(rest.lstrip(TEXT_OPEN + " ")):
        return None, text
    if rest is None:
        return None, match.group(1)
    # `(A)+(B)`, `(A)x` and `(A)-1` are expressions; an option's text follows a space or the end of its bold label.
    between = text[match.start(1) + 2 : match.start("rest")]
    if rest.startswith(("-", "\\pm", "\\mp")) and " " not in between:
        return None, text
    if rest[0] in "+-*/^=<>(_'!|" and not re.match(r"[-+]?[0-9.(\\]", rest):
        return None, text
    return (match.group(1), rest) if between and not rest.startswith(("+", "/")) else (None, text)


def _take_off_unit(text: str) -> tuple[str, str | None]:
    bare = text.replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip()
    for start in (text.find(TEXT_OPEN), text.rfind(TEXT_OPEN)):
        stem, tail = text[:start].rstrip(), text[start:].replace(TEXT_OPEN, " ").replace(TEXT_CLOSE, " ").strip()
        if start > 0 and _VALUE_END.search(stem):
            unit = canonical_unit(" ".join(tail.split()))
            letter = len(tail) == 1 and tail not in _LETTER_UNITS  # 3\mathrm{i} is a product
            words = text.rstrip().endswith(TEXT_CLOSE) and re.search("[A-Za-z]", tail) is not None
            noun = words and not letter and not changes_value(tail)
            if unit is not None and not letter:
                return stem, unit
            if noun and start == text.rfind(TEXT_OPEN):
                return stem, None
    return split_unit(bare) or (text, None)


def _unwrap_braces(text: str) -> str:
    """Take off braces around the whole text, all layers in one scan."""
    if not (text.startswith("{") and text.endswith("}")):
        return text
    opened: list[int] = []
    closed_by: dict[int, int] = {}
    for at, character in enumerate(text):
        if character == "{":
            opened.append(at)
        elif character == "}" and opened:
            closed_by[opened.pop()] = at
    layers = 0
    while closed_by.get(layers) == len(text) - 1 - layers:
        layers += 1
    return text[layers : len(text) - layers].strip()


def _squeeze(text: str) -> str:
    """Remove spaces, keeping one where it ends a command before a letter or parts two numbers or two words."""
    out: list[str] = []
    pieces = text.split()
    for at, piece in enumerate(pieces):
        if at:
            before, after = pieces[at - 1], piece
            after_command = re.search(r"\\[A-Za-z]+$", before) is not None and after[0].isalpha()
            numbers = before[-1].isdigit() and after[0].isdigit()
            words = before[-1].isalpha() and after[0].isalpha()
            if after_command or numbers or words:
                out.append(" ")
        out.append(piece)
    return "".join(out)


def _join_thousands(text: str) -> str:
    """Join 58,500 outside brackets, where a comma could only part a list."""
    if "," not in text or any(bracket in text for bracket in "([|"):
        return text
    return _PLAIN_THOUSANDS.sub(lambda match: match.group(1).replace(",", ""), text)
