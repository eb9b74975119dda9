"""Read the set of option labels (A to I, or a digit) that a LogicVista response gives, without choosing among several.

A question may have more than one right label, so the answer is a set and every label that is given counts. Ranges
and lists that the question itself prints ("A-E", "(A, B, C, or D)") and an echo of the question are no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from luspo_cli.grading.answers import final_text, has_box, last_boxed, last_match
from luspo_cli.grading.free_text.choices import named_texts, read_choice, unknowable
from luspo_cli.grading.free_text.options import options_in_question
from luspo_cli.grading.free_text.segments import Place, declines, ends, last_sentence, letter_pattern, segments

_LABEL = r"[A-I]"
_JOIN = r"\s{0,2}(?:,|;|/|&|\+|\band\b|\bor\b|,\s?and\b)\s{0,2}"
_ONE = rf"\(?\b{letter_pattern('I')}\)?"
_ASSISTANT = re.compile(r"ASSISTANT:")
_ECHO_END = re.compile(r"\banswer\s?:", re.IGNORECASE)
_WHOLE_LABELS = re.compile(rf"\W{{0,6}}{_ONE}(?:{_JOIN}{_ONE}){{0,8}}\W{{0,6}}")
_WHOLE_LOWER = re.compile(r"\W{0,6}([a-i])\W{0,6}")
_ONLY_LOWER = re.compile(r"[^\w]*(?:\d[^\w]+)?[a-i](?:[^\w]+[a-i])*[^\w]*")
"""What is left after an echo where it is nothing but labels: "1, d", "c ) c ) c"."""
_NUMBERED = re.compile(rf"\W{{0,6}}\d({_LABEL})\W{{0,6}}")
"""A label that a caption of the picture numbers: "3B"."""
_SUPERLATIVE = re.compile(
    rf"\b({_LABEL}) (?:is|would be|will be|has) the ((?:most|least) [a-z]{{3,20}}|[a-z]{{2,20}}est)\b"
)
_SENTENCE_BEFORE = re.compile(r"(?:^|[.!?\n])\s*$")
_WHOLE_DIGIT = re.compile(r"\W{0,6}([1-9])\W{0,6}")
_PHRASE = re.compile(
    r"\b(?i:answers?|options?|choices?|label|letter)\b(?: (?:letter|choice|option|from [A-I][-–][A-I]))?"
    r"(?: (?:for|to|of) (?:the|this) [^.:\n]{1,60}?)?\s{0,2}"
    rf"(?:is|are|would be|should be|must be|:)?[\s*:]{{1,4}}"
    rf"(?:(?:set|option|choice|letter|figure|box) )?({_ONE}(?:{_JOIN}{_ONE}){{0,8}})(?![\w'’])"
)
_TOGETHER = re.compile(r"\W{0,6}([A-I]{2,9})\W{0,6}")
"""Labels without a separator where nothing else is said: "BD"."""
_TOGETHER_PHRASE = re.compile(r"\b(?i:answers?)(?: (?:is|are))?[\s*:]{1,4}([A-I]{2,9})(?![\w'’])")
_LEADING = re.compile(rf"\W{{0,4}}(?:\d\.\s)?\(?({_LABEL})(?:[).:]|\s[-–]\s|$)")
_MARKED = re.compile(rf"(?:^|\n)\W{{0,4}}{_LABEL}[).:](?=\s|$)|\({_LABEL}\)")
"""Labels that head a line or stand in parentheses, as in a list of all options."""
_RANGE = re.compile(rf"\(?\b{_LABEL}\)?\s?(?:[-–—]|\bto\b|\bthrough\b)\s?\(?{_LABEL}\b\)?")
_LISTED = re.compile(rf"\(?\b{_LABEL}\b(?:\s?,\s?{_LABEL}\b){{1,8}}\s?,?\s?(?:or|and)\s?{_LABEL}\b\)?")
_STANDING = re.compile(rf"(?<![\w'’&])({_LABEL})(?![\w'’])", re.ASCII)
_ARTICLE = re.compile(r"(?:(?:^|[.!?:]\s)A|\bI)\s(?!is\b|are\b|and\b|or\b|would\b)(?=[a-z])")
_NEGATED = re.compile(
    rf"(?:\b(?i:options?|answers?|choices?)\s)?{_ONE}(?:{_JOIN}{_ONE}){{0,8}}(?: [^\s.]{{1,20}})? (?:is|are) (?:also )?"
    r"(?:not|incorrect|wrong|false|impossible|insufficient)\b"
)
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf|boldsymbol|mathsf)\s{0,3}(?=\{)|[{}$*`]")
_TAG = re.compile(r"<answer>([^<]{0,400})</answer>", re.IGNORECASE)
_SELECTS_DIGITS = re.compile(r"\bselect from 1\s?[-–]\s?\d", re.IGNORECASE)
_DIGIT_PHRASE = re.compile(r"\b(?i:answer|option|choice)s?(?: is| number)?[\s:*]{1,4}([1-9])(?![\d.,]\d|\d)")
_LONGEST = 200
"""Characters of an answer that is nothing but labels."""
_LETTERS = re.compile(_LABEL)


def assistant_part(response: str) -> str:
    """What stands after the first `ASSISTANT:`, up to a second one, as the official script cuts it."""
    parts = _ASSISTANT.split(response)
    return parts[1] if len(parts) > 1 else response


def read_labels(response: str, question: str = "") -> frozenset[str]:
    """The labels that `response` gives, upper case; empty where it gives none."""
    text = final_text(response)
    if text is None:
        return frozenset()
    shown = assistant_part(text).replace("\u200b", "").strip()
    if has_box(shown):
        return labels_in(last_boxed(shown) or "")
    tags = _TAG.findall(shown)
    if tags and (tagged := labels_in(tags[-1])):
        return tagged
    text = _without_echo(ends(shown), question)
    if not text:
        return frozenset()
    if text != ends(shown) and _ONLY_LOWER.fullmatch(text[:_LONGEST]):
        return frozenset(re.sub(r"[^a-i]", "", text[:_LONGEST]).upper())
    return next(filter(None, _readings(text, question)), frozenset())


def _readings(text: str, question: str) -> Iterator[frozenset[str]]:
    """What each way to read the labels finds, the most trusted first; empty where it finds none."""
    options = options_in_question(question)
    texts, names = list(options.values()), list(options)
    last = last_sentence(text)
    text = _NEGATED.sub(" ", text)
    yield _stated(text, options)
    phrases = list(_PHRASE.finditer(text))
    chosen = [
        phrase for phrase in phrases if not _SENTENCE_BEFORE.search(text[max(0, phrase.start() - 4) : phrase.start()])
    ]
    # "Option C is ..." at the head of a sentence discusses an option, "the best plan is option B" takes one.
    for phrase in reversed([*phrases, *chosen]):
        yield frozenset(_LETTERS.findall(phrase[1]))
    for letters in reversed(_TOGETHER_PHRASE.findall(text)):
        found = _distinct(letters)
        yield found if not options or found <= options.keys() else frozenset()
    if _SELECTS_DIGITS.search(question):
        yield frozenset(_DIGIT_PHRASE.findall(text)[-1:])
    praised = {label for label, quality in _SUPERLATIVE.findall(text) if quality.lower() in question.lower()}
    yield frozenset(praised if len(praised) == 1 else ())
    marked = frozenset(_LETTERS.findall("".join(_MARKED.findall(text))))
    leading = _LEADING.match(text)
    if leading is not None and marked <= {leading[1]}:
        yield frozenset(leading[1])
    open_label = unknowable(texts)
    if open_label is not None and not _standing(last) and declines(text):
        yield frozenset(names[open_label])
    for segment in segments(text, question):
        if segment.place is Place.CONCLUSION:
            yield _standing(segment.text)
    for label, option in options.items():  # an option such as "A, B, D, F", whose text is made of labels
        if len(_standing(option)) > 1 and _WHOLE_LABELS.fullmatch(option) and option in text:
            yield frozenset(label)
    standing = _standing(text)
    named = frozenset(names[position] for position in named_texts(text, texts, short_words=True))
    if texts and len(marked) <= 1 and (len(named) == 1 or not standing):
        if len(named) > 1:
            yield named
        position = read_choice(text, texts, question[: question.find("(A)")])
        if position is not None and (not named or names[position] in named):
            yield frozenset(names[position])
        yield standing or named
    yield standing


def _stated(text: str, options: dict[str, str]) -> frozenset[str]:
    """The labels of a response that is nothing but labels, or nothing but one option's text."""
    plain = text.strip().rstrip(".").lower()
    numbered = _NUMBERED.fullmatch(text)
    if numbered is not None:
        return frozenset(numbered[1])
    head = text.partition("\n")[0].strip(" .")
    for label, option in options.items():
        if len(option) > 2 and head == f"{label}{option.rstrip('.')}":
            return frozenset(label)
        if (len(option) > 1 or option.isdigit()) and plain == option.rstrip(".").lower():
            return frozenset(label)
    found = labels_in(text)
    # A digit that is no label of the question is a value, and letters that are none are a word: "FACE".
    bare = any(map(str.isdigit, found)) or _TOGETHER.fullmatch(text)
    return found if not options or found <= options.keys() or not bare else frozenset()


def _standing(text: str) -> frozenset[str]:
    listed = _RANGE.sub(" ", _LISTED.sub(" ", text))
    return frozenset(_STANDING.findall(_ARTICLE.sub(" ", listed)))


def labels_in(text: str) -> frozenset[str]:
    """The labels of a short answer that is nothing but labels ("B", "A, C", "BD", "(d)", "3"), or the empty set."""
    if len(text) > _LONGEST:
        return frozenset()
    short = _MARKUP.sub("", text).strip()
    if _WHOLE_LABELS.fullmatch(short):
        return frozenset(_LETTERS.findall(re.sub(r"\b(?:and|or)\b", " ", short)))
    together = _TOGETHER.fullmatch(short)
    if together is not None:
        return _distinct(together[1])
    lower = _WHOLE_LOWER.fullmatch(short)
    if lower is not None:
        return frozenset(lower[1].upper())
    digit = _WHOLE_DIGIT.fullmatch(short)
    return frozenset(digit[1]) if digit is not None else frozenset()


def _distinct(letters: str) -> frozenset[str]:
    """The letters as labels; none where one is written twice, as in a word."""
    return frozenset(letters) if len(set(letters)) == len(letters) else frozenset()


def _without_echo(text: str, question: str) -> str:
    """What follows the last "answer:" where the question's own words stand in front of it."""
    last = last_match(_ECHO_END, text)
    if last is None:
        return text
    asked = _letters_only(question)[:60]
    return text[last.end() :].strip() if asked in _letters_only(text[: last.start()]) else text


def _letters_only(text: str) -> str:
    return re.sub(r"[^a-z]", "", text.lower())
