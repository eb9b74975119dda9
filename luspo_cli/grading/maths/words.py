"""Words beside a value: whether they name what it counts, or change it.

Decided here, once for a box, a marked line, `#### N` and 答案: nouns and verbs are without number and harmless, so the closed
classes of words decide: numbers and parts, operations, comparisons, negations, and in front of a value prepositions.
"5 apples" is 5; "5 squared", "5 or six", "minus 5", "half of 5" and 5以上 are not.
"""

from __future__ import annotations

import re

_DIGIT_NAMES = "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
_TEENS = "(?:thir|four|fif|six|seven|eigh|nine)teen"
_TENS = "(?:twen|thir|for|fif|six|seven|eigh|nine)t"
_LARGE = r"hundred|thousand|[a-z]{1,12}illion|lakh|crore|myriad|googol|dozen|score|gross|pair|couple"
_NUMBER_WORD = re.compile(
    rf"(?:zero|{_DIGIT_NAMES}|{_TEENS}|{_TENS}y|{_LARGE})s?"
    rf"|(?:half|halve|third|quarter|(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand|{_TEENS}|{_TENS}ie|[a-z]{{1,12}}illion)th)s?"
)
_OPERATIONS = frozenset(
    (
        "and", "or", "plus", "minus", "negative", "over", "divided", "multiplied", "added", "subtracted", "increased",
        "decreased", "reduced", "raised", "mod", "modulo", "remainder", "squared", "cubed", "factorial",
        "power", "root", "base", "percent", "twice", "double", "doubled", "triple", "tripled", "thrice", "halved",
    )
)  # fmt: skip
_COMPARISONS = frozenset(
    (
        "less", "fewer", "more", "greater", "larger", "bigger", "smaller", "higher", "lower", "than", "least", "most",
        "above", "below", "beyond", "under", "exceeding", "except", "unless", "if",
    )
)  # fmt: skip
_NEGATIONS = frozenset(("not", "no", "never", "nor", "neither", "none", "cannot", "without"))
_STATEMENTS = frozenset(("is", "are", "was", "were", "wrong", "incorrect", "false", "impossible"))
_NAMES_OF_MATHS = frozenset(
    ("pi", "infinity", "theta", "alpha", "beta", "gamma", "delta", "lambda", "sqrt", "sin", "cos", "tan", "log", "ln")
)
_CHANGING = _OPERATIONS | _COMPARISONS | _NEGATIONS | _STATEMENTS | _NAMES_OF_MATHS
# Behind a value outside of \\text{} these begin the rest of a sentence.
_SENTENCE_WORDS = frozenset(
    (
        "to", "of", "when", "for", "where", "with", "about", "approximately", "positive", "but", "only", "between",
        "through", "times", "inclusive", "exclusive", "ago", "from", "would", "choose",
    )
)  # fmt: skip
_CHINESE = re.compile("[一二三四五六七八九十百千万亿半分之倍零两点第负以的不非没未错打成折多余于或]|次方")
_WORDS = re.compile(r"[a-z]+(?:'[a-z]+)?")
_UNKNOWN = re.compile(r"(?<![A-Za-z'-])[i-knp-rt-z](?![A-Za-z'.-])")
"""A letter that stands alone and is neither an article nor a unit."""
_UNITS_SQUARED = re.compile(r"(?<=units )(?:squared|cubed)$")

_COPULA = re.compile(r"\b(?:is|are|was|were|be|equals|has|have)\b|[是为]|等于|[:：,，;；.]")
_DENIED_VERB = re.compile(
    r"(?:n't|not|\bnever) (?:[a-z]+ )?(?:be|been|equals?|have)\b[^.,:;]*$|[不非没未](?:可能|会|能)?(?:[是为]|等于)$"
)
_DETERMINERS = re.compile(r"(?: ?\b(?:the|an?|its|this|exactly|precisely|simply|just|only))+$")
_NEUTRAL = re.compile(
    r"(?:^|\bequal |[a-z]s )to$|\b(?:given|denoted|represented|expressed|described) by$"
    r"|\b(?:values?|total|answer|result|maximum|minimum) of$"
)
"""Ends of a lead before which only the words further in front can change the value."""
_BOUNDS = frozenset(("than", "least", "most", "above", "below", "beyond", "under", "exceeding", "except", "unless"))
_GROUPS = frozenset(("pair", "pairs", "triple", "couple"))
_PREPOSITIONS = frozenset(
    (
        "of", "to", "by", "from", "near", "after", "before", "until", "outside", "between", "per", "times", "opposite",
        "inverse", "reciprocal", "square", "cube", "either",
    )
)  # fmt: skip
_SIGN_BEFORE = re.compile(r"(?:[-−–+±<>≤≥≠^/√|]|\\[a-z]+)$")
_SIGN_BEHIND = re.compile(r"\s*(?:[+<>≤≥≠^/|×·÷]|[-−][^\s\w]|\\[a-z]+)")
_CHINESE_DENIAL = re.compile("不(?!等式)|非|没|大于|小于|[超多少]于|超过|至[少多]|最[多少]|[负除减加乘]$")
_CLAUSE = re.compile(r"[.,;:(!?。，；：（]|\b(?:because|since|as|which|where|so|when|for|by|with|after|in)\b|因为")


def changes_value(words: str) -> bool:
    """Whether words behind a value are a part of it: those in "5 squared" are, those in "5 red apples" are not."""
    if _UNKNOWN.search(words):
        return True
    words = words.replace("’", "'").lower()
    found = _WORDS.findall(_UNITS_SQUARED.sub("", words.strip()))
    return any(map(_changes, found)) or _CHINESE.search(words) is not None


def goes_on(words: str) -> bool:
    """Whether plain words behind a value change it or go on as a sentence: "5 of them", "5 to go"."""
    return changes_value(words) or not _SENTENCE_WORDS.isdisjoint(_WORDS.findall(words.lower()))


def change_formula(before: str, behind: str) -> bool:
    """Whether prose around the only formula of a line makes another value of it: "at least $5$", "not $5$", "$5$ squared"."""
    lead = before.replace("’", "'").lower().rstrip(" \t*")
    if _SIGN_BEFORE.search(lead) or _SIGN_BEHIND.match(behind):
        return True
    clause = _COPULA.split(lead)[-1].strip()
    denied = any(word in _NEGATIONS or word.endswith("n't") for word in _WORDS.findall(clause))
    if denied or _DENIED_VERB.search(lead) or _CHINESE_DENIAL.search(clause):
        return True
    lead = _DETERMINERS.sub("", clause)
    neutral = _NEUTRAL.search(lead)
    words = _WORDS.findall(lead[: neutral.start()] if neutral else lead)
    if not _BOUNDS.isdisjoint(words) or any(map(_changes, words if neutral else words[-1:])):
        return words[-1] not in _GROUPS
    if not neutral and words and words[-1] in _PREPOSITIONS:
        return True
    return changes_value(_CLAUSE.split(behind, maxsplit=1)[0])


def _changes(word: str) -> bool:
    return word in _CHANGING or word.endswith("n't") or _NUMBER_WORD.fullmatch(word) is not None
