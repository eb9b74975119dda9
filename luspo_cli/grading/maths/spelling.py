r"""Characters and LaTeX commands in one spelling: the first two scans of normalisation.

Unicode mathematics becomes LaTeX, marks of direction and private characters go, sizing and spacing commands go, fonts
are unwrapped. Words in `\\text{}` and its kin are fenced by two private characters, so that later steps can tell a unit
or an "and" from letters that are symbols.
"""

from __future__ import annotations

import re
import unicodedata

OR = "\ue002"
"""Stands for "or" (also written as \\lor) between two answers."""
TEXT_OPEN, TEXT_CLOSE = "\ue000", "\ue001"

_CHARACTERS = {
    **dict.fromkeys("−–—‒﹣－", "-"),
    **dict.fromkeys("×⨯", r"\times "), **dict.fromkeys("·⋅∙", r"\cdot "),
    "÷": "/", "∕": "/", "⁄": "/", "π": r"\pi ", "θ": r"\theta ", "√": "sqrt ", "∞": r"\infty ", "±": r"\pm ",
    "≤": r"\leq ", "⩽": r"\leq ", "≥": r"\geq ", "⩾": r"\geq ", "≠": r"\neq ", "≈": r"\approx ",
    "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∠": r"\angle ",
    "∈": r"\in ", "∅": r"\emptyset ", "°": r"\degree ", "º": r"\degree ", "ℝ": r"\mathbb{R}", "′": "'", "’": "'",
    "⟨": "(", "⟩": ")", "\u00a0": " ", "“": '"', "”": '"',
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉", "0123456789", strict=True))
_FRACTIONS = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5), "⅘": (4, 5),
    "⅙": (1, 6), "⅚": (5, 6), "⅐": (1, 7), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8), "⅑": (1, 9), "⅒": (1, 10),
}  # fmt: skip

_ROOTS = {"∛": "3", "∜": "4"}
_HIGHER_ROOT = re.compile(r"([∛∜])\s?([0-9]+(?:\.[0-9]+)?|[A-Za-z]|)")

_DROPPED = frozenset(
    (
        "left", "right", "big", "Big", "bigg", "Bigg", "bigl", "bigr", "Bigl", "Bigr", "biggl", "biggr", "Biggl",
        "Biggr", "displaystyle", "textstyle", "scriptstyle", "limits", "nolimits", "!", "(", ")",
        "[", "]", "degree", "rm", "bf", "it", "mathstrut", "strut", "hfill", "notag", "nonumber",
    )
)  # fmt: skip
_SPACES = frozenset({"quad", "qquad", " ", "\n", "\t", "enspace", "thinspace", "space"})
_THIN_SPACES = frozenset({",", ";", ":", ">"})
_RENAMED = {
    "dfrac": r"\frac", "tfrac": r"\frac", "cfrac": r"\frac", "dbinom": r"\binom", "tbinom": r"\binom", "le": r"\leq ",
    "leqslant": r"\leq ", "ge": r"\geq ", "geqslant": r"\geq ", "ne": r"\neq ", "lt": "<", "gt": ">",
    "infin": r"\infty ", "lvert": "|", "rvert": "|", "vert": "|", "mid": "|", "ast": "*", "cdot": "*", "times": "*",
    "div": "/", "lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lparen": "(", "rparen": ")",
    "langle": "(", "simeq": r"\approx ", "rangle": ")", "lor": OR, "vee": OR, "R": r"\mathbb{R}",
    "varnothing": r"\emptyset ", "_": "_", "#": "#", "&": "and", "land": ",", "wedge": ",", "colon": ":",
    "ldots": "...", "dots": "...", "cdots": "...", "dotsc": "...", "bar": r"\overline ", "leq": r"\leq ",
    "geq": r"\geq ", "backslash": r"\setminus ",
}  # fmt: skip
_PLAIN_WRAPPERS = frozenset(
    (
        "mathbf", "mathit", "boldsymbol", "bm", "mathsf", "operatorname", "vec", "boxed", "fbox", "displaylines",
    )
)  # fmt: skip
_TEXT_WRAPPERS = frozenset(
    (
        "text", "textbf", "textit", "textrm", "textsf", "texttt", "textnormal", "mbox", "hbox", "mathrm", "textup",
        "emph", "underline",
    )
)  # fmt: skip

_COMMAND = re.compile(r"\\([a-zA-Z]+|.)", re.DOTALL)
_DIRECTED = re.compile(r"\s*\{\s*[A-Z]\s*[A-Z]\s*\}")
_VECTOR = re.compile(r"[\s({]*[-+]?[0-9a-z\s]{0,4}\\(?:vec|overrightarrow|mathbf|boldsymbol|bm)\s*\{?\s*\\?[A-Za-z]")
_NEGATED = {"=": r"\neq ", r"\in": r"\notin "}


def plain_characters(text: str) -> str:
    """Return `text` in ASCII mathematics: superscripts as powers, minus signs as hyphens, letters as they are."""
    out: list[str] = []
    raised = False
    if "∛" in text or "∜" in text:
        text = _HIGHER_ROOT.sub(lambda match: rf"\sqrt[{_ROOTS[match[1]]}]{match[2] and f'{{{match[2]}}}'}", text)
    for character in text:
        if character in _SUPERSCRIPTS:
            out.append(_SUPERSCRIPTS[character] if raised else "^{" + _SUPERSCRIPTS[character])
            raised = True
            continue
        if raised:
            out.append("}")
            raised = False
        if character.isascii():
            out.append(character)
        elif character in _CHARACTERS:
            out.append(_CHARACTERS[character])
        elif character in _SUBSCRIPTS:
            out.append("_" + _SUBSCRIPTS[character])
        elif character in _FRACTIONS:
            out.append(r"\frac{{{}}}{{{}}}".format(*_FRACTIONS[character]))
        elif character == OR:  # already in normal spelling
            out.append(OR)
        elif unicodedata.category(character) not in ("Cf", "Co", "Cs", "Cn"):  # marks of direction and the like go
            out.append(unicodedata.normalize("NFKC", character))
    if raised:
        out.append("}")
    return "".join(" " if character < " " else character for character in "".join(out) if character != "\x7f")


def rewrite_commands(text: str) -> str:
    """Drop, rename and unwrap commands in one scan; text in words is fenced by two private characters."""
    out: list[str] = []
    # For the whole text and each open brace: where its content starts in `out`, and what its end becomes.
    groups: list[tuple[int, str]] = [(0, "")]
    at = 0
    while at < len(text):
        character = text[at]
        if character == "\\":
            match = _COMMAND.match(text, at)
            if match is None:
                break
            at = match.end()
            name = match.group(1)
            if name == "vec" and _DIRECTED.match(text, at):  # from A to B is not from B to A
                out.append(r"\overrightarrow ")
            elif name == "times" and _VECTOR.match(text, at):  # a cross product, which has an order and is no number
                out.append(r"\cross ")
            elif name == "not" and (
                negated := next((one for one in _NEGATED if text[at:].lstrip().startswith(one)), None)
            ):
                out.append(_NEGATED[negated])
                at = text.index(negated, at) + len(negated)
            elif name in _PLAIN_WRAPPERS or name in _TEXT_WRAPPERS:
                start = _skip_spaces(text, at + text.startswith("*", at))  # \\operatorname*{lcm}
                if start < len(text) and text[start] == "{":
                    fence = name in _TEXT_WRAPPERS
                    out.append(TEXT_OPEN if fence else "")
                    groups.append((len(out), TEXT_CLOSE if fence else ""))
                    at = start + 1
            elif name in ("over", "choose"):  # {14 \over 3}: what stands before it in the group is the first argument
                start, closer = groups[-1]
                out.insert(start, r"\frac{" if name == "over" else r"\binom{")
                out.append("}{")
                groups[-1] = (len(out), "}" + closer)
            elif name in _RENAMED:
                out.append(_RENAMED[name])
            elif name in _SPACES:
                out.append(" ")
            elif name in _THIN_SPACES:
                # Behind a digit it parts two numbers, or thousands; between letters it means nothing.
                out.append(" " if out and out[-1][-1:].isdigit() else "")
            elif name not in _DROPPED:
                out.append("\\" + name + (" " if name.isalpha() else ""))
        else:
            if character == "}" and len(groups) > 1:
                character = groups.pop()[1]
            elif character == "~":
                character = " "
            out.append(character)
            if character == "{":
                groups.append((len(out), "}"))
            at += 1
    return "".join(out) + groups[0][1]


def _skip_spaces(text: str, at: int) -> int:
    while at < len(text) and text[at] == " ":
        at += 1
    return at
