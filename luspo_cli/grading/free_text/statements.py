"""Read answers that name no choice: a yes/no question turned into a statement, a choice's own words.

"Is Gray the maximum?" answered by "Gray is not the maximum." says no, and "the deer population would decrease" names
"it would decrease" among {increase, fluctuate, it would decrease}. Both are readings, not guesses: the statement has
to repeat the question's words in the question's order with the question's comparison, and every word that sets a
choice apart has to occur, and no other choice's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_WORD = re.compile(r"[a-z0-9]+")
_NEGATION = re.compile(
    r"\b(?:not|no|never|neither|nor|without|cannot|isn't|aren't|doesn't|don't|wasn't|can't|false|incorrect|untrue)\b|n't\b"
)
_UNCERTAIN = re.compile(
    r"\b(?:if|whether|may|might|could|cannot|can't|possible|determine|unclear|uncertain|unknown|however|but|information)\b"
)
_COMPARISONS = {
    word: sign
    for sign, words in (
        (">", "greater larger more higher bigger above longer taller wider heavier"),
        ("<", "less fewer smaller lower below under shorter narrower lighter"),
        ("=", "equal same equals"),
    )
    for word in words.split()
}
_SUPERLATIVES = {
    word: sign
    for sign, words in (
        ("max", "maximum highest largest most biggest greatest high"),
        ("min", "minimum lowest smallest least fewest low"),
    )
    for word in words.split()
}
_FUNCTION_WORD_LIST = (
    "a an the is are was were be been do does did has have had of in on at to that this these those there it its by "
    "for based image graph figure picture given than then also will would may might likely"
)
_FUNCTION_WORDS = frozenset(_FUNCTION_WORD_LIST.split())
_CONDITION = re.compile(r"\b(?<!such )(?:if|when|as|since|because)\b[^,?]{0,300}(?:,|\?|$)", re.IGNORECASE)
_SIGNS = frozenset(_COMPARISONS) | frozenset(_SUPERLATIVES)
_REASON = re.compile(r"\b(?:because|since)\b|[,;] (?:as|which|but|with|indicating|suggesting|meaning)\b")
_RELATIVE = re.compile(r", (?:which|who) [^,]{1,120}, (?=is\b|are\b|was\b|were\b|has\b|have\b)")
_THAN = re.compile(r"\b(?:than|compared (?:to|with))\b")
_COVERED, _APART = 1.2, 0.5
"""When a statement counts as the question's comparison. For each side, take the share of the words that only this side of
the question has and that the statement repeats on that side. The two shares together must reach `_COVERED` of 2, so that
each side is named by more than a stray word; and they must exceed the same sum for the exchanged sides by `_APART`, so that
it is clear which way round the statement compares."""
_COPULA = re.compile(r"\b(?:is|are|was|were)\b")
_PART_WORDS = 4
"""Words after the last "is" up to which they may name a choice by a part of it; a longer rest is a description."""
_ANY_ORDER = 3
"""A yes/no question of at most this many words may be answered by its words in any order: with so few, each must occur."""
_WORDS_READ = 120
"""Words of a sentence that are compared with the question; a longer one is no restatement."""


def states_yes_or_no(sentence: str, question: str) -> bool | None:
    """Whether `sentence` affirms (True) or denies (False) a yes/no `question`; None where it does neither plainly."""
    lowered = _main_clause(sentence.lower())
    if _UNCERTAIN.search(lowered):
        return None
    said = _WORD.findall(lowered)[:_WORDS_READ]
    asked = [word for word in _WORD.findall(question.lower()) if word not in _FUNCTION_WORDS][:_WORDS_READ]
    comparisons, wanted = _signs(said), _signs(asked)
    opposite = len(comparisons) == len(wanted) == 1 and comparisons != wanted
    if not asked or (comparisons != wanted and not opposite):
        return None
    if comparisons and len(comparisons) == len(wanted) == 1:
        compared = _compares_sides(lowered, question.lower(), opposite=opposite)
        if compared is not None:
            return compared
    stems = [_stem(word) for word in asked if not (opposite and word in _SIGNS)]
    content = [_stem(word) for word in said if word not in _FUNCTION_WORDS]
    # Three quarters of the question's words in its order: a statement may leave out one word in four, as "chart" or "shown".
    short = not wanted and len(stems) <= _ANY_ORDER and set(stems) <= set(content)
    if not short and 4 * _common_in_order(stems, content) < 3 * len(stems):
        return None
    denied = (_NEGATION.search(lowered) is not None) != (_NEGATION.search(question.lower()) is not None)
    if opposite:
        return None if denied else False
    return not denied


def _compares_sides(said: str, asked: str, *, opposite: bool) -> bool | None:
    """Whether "P is more than Q" answers a question that compares P and Q with yes; None where it is about other things.

    Only words that one side of the question has and the other has not tell which side is meant. `opposite`: the statement
    says "less" where the question says "more".
    """
    left, than, right = _THAN.sub("\0", asked).partition("\0")
    if not than or _NEGATION.search(asked):
        return None
    asked_left, asked_right = _content(left), _content(right)
    only_left, only_right = asked_left - asked_right, asked_right - asked_left
    if not only_left or not only_right:
        return None
    before, than, after = _THAN.sub("\0", said).partition("\0")
    said_left, said_right = _content(before), _content(after)
    denied = _NEGATION.search(said) is not None
    # "There are more motorbikes" leaves the other side out, as a short answer does; then this side must be whole.
    if not than:
        alone = 4 * len(said_left & only_left) > 3 * len(only_left) and not said_left & only_right
        return not denied if alone and not opposite else None
    straight = len(said_left & only_left) / len(only_left) + len(said_right & only_right) / len(only_right)
    crossed = len(said_left & only_right) / len(only_right) + len(said_right & only_left) / len(only_left)
    if max(straight, crossed) < _COVERED or abs(straight - crossed) < _APART:
        return None
    exchanged = crossed > straight
    if denied:
        return None if exchanged or opposite else False
    return exchanged == opposite


def _content(text: str) -> set[str]:
    words = _WORD.findall(text)[:_WORDS_READ]
    return {_stem(word) for word in words if word not in _FUNCTION_WORDS and word not in _SIGNS}


def choice_by_own_words(sentence: str, choices: Sequence[str], question: str) -> int | None:
    """The position of the only choice whose own words (in no other choice, not in the question) all occur, or None."""
    clause = _main_clause(_CONDITION.sub(" ", sentence.lower()))
    named = choices_by_own_words(clause, choices, question)
    return named[0] if len(named) == 1 and _NEGATION.search(clause) is None else None


def choices_by_own_words(clause: str, choices: Sequence[str], question: str = "") -> list[int]:
    """The positions of the choices all of whose own words occur in `clause`."""
    said = {_stem(word) for word in _WORD.findall(clause.lower())}
    asked = {_stem(word) for word in _WORD.findall(_CONDITION.sub(" ", question.lower()))}
    words = [
        {_stem(word) for word in _WORD.findall(choice.lower()) if word not in _FUNCTION_WORDS} for choice in choices
    ]
    named = []
    for position, mine in enumerate(words):
        others = set().union(*(other for index, other in enumerate(words) if index != position))
        own = mine - others - asked
        if own and any(map(_is_word, own)) and mine - asked <= said:
            named.append(position)
    return named


def choice_by_all_words(sentence: str, choices: Sequence[str]) -> int | None:
    """The position of the only choice of two words or more all of whose words occur in `sentence`, or None."""
    said = _content(sentence.lower())
    words = [_content(choice.lower()) for choice in choices]
    named = [position for position, mine in enumerate(words) if mine <= said and sum(map(_is_word, mine)) > 1]
    return named[0] if len(named) == 1 and _NEGATION.search(sentence.lower()) is None else None


def choice_by_a_part(sentence: str, choices: Sequence[str]) -> int | None:
    """The position of the only choice that has all words of what `sentence` ends with after "is" or "are", or None."""
    lowered = sentence.lower()
    copulas = list(_COPULA.finditer(lowered))
    if not copulas or _NEGATION.search(lowered) or _UNCERTAIN.search(lowered):
        return None
    part = _content(lowered[copulas[-1].end() :])
    if not part or len(part) > _PART_WORDS or not any(map(_is_word, part)):
        return None
    named = [position for position, choice in enumerate(choices) if part <= _content(choice.lower())]
    return named[0] if len(named) == 1 else None


def _is_word(text: str) -> bool:
    return text.isalpha() and len(text) > 2


def _main_clause(sentence: str) -> str:
    return _REASON.split(_RELATIVE.sub(" ", sentence), maxsplit=1)[0]


def _signs(words: Sequence[str]) -> set[str]:
    return {sign for word in words if (sign := _COMPARISONS.get(word) or _SUPERLATIVES.get(word))}


def _stem(word: str) -> str:
    for ending in ("ing", "ed", "es", "s", "d", "e"):
        if len(word) > len(ending) + 3 and word.endswith(ending):
            return word[: -len(ending)]
    return word


def _common_in_order(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence of two word lists of at most `_WORDS_READ` words."""
    row = [0] * (len(right) + 1)
    for word in left:
        previous = 0
        for index, other in enumerate(right, start=1):
            diagonal, previous = previous, row[index]
            row[index] = diagonal + 1 if word == other else max(row[index], row[index - 1])
    return row[-1]
