"""What the workers of own reward functions run: import the user's file, look at a function, call it, look at what came back.

Everything that the user's code can do wrong happens here, in a process that can be killed. What goes back to the training is
plain: numbers, texts and one sentence for a failure.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luspo_cli.config.reward import LARGEST_REWARD
from luspo_cli.errors import KnownError
from luspo_cli.files import file_sha256
from luspo_cli.function_path import FunctionPath, load_function, parse_function_path, said
from luspo_cli.records import FunctionScore
from luspo_cli.rewards.signature import read_signature

SCORE = "score"
"""The key of a dict that is the score; all others are parts."""
_LONGEST_TEXT = 2_000
_LARGEST_PART = 1e100
"""Parts are not paid; means and squares of them are taken."""
_loaded: dict[str, tuple[Callable[..., Any], Path]] = {}


def describe(path: str) -> dict[str, Any]:
    """Import a function and say how it is called: its `Signature`, `file` and `sha256`; or `error`, the end of a sentence."""
    try:
        function, file = _load(parse_function_path(path))
    except KnownError as error:
        return {"error": str(error)}
    try:
        return {**asdict(read_signature(function)), "file": str(file), "sha256": file_sha256(file)}
    except KnownError as error:
        return {"error": f"{path} {error}"}


def load_all(expected: Mapping[str, str]) -> None:
    """Import functions, path → sha256 of its file, before the first call; ValueError where a file is another one by now."""
    for path, sha256 in expected.items():
        parsed = parse_function_path(path)
        _loaded[path] = _load(parsed)
        if file_sha256(_loaded[path][1]) != sha256:
            raise ValueError(f"{parsed.place} was changed while the run was going; put it back, or start again")


def call(path: str, arguments: Mapping[str, Any], responses: int | None) -> list[FunctionScore]:
    """One score a response; `responses` is the size of a group, None for a call of one response."""
    function, file = _loaded[path]
    try:
        found = function(**arguments)
        if inspect.isawaitable(found):
            found = asyncio.run(_result_of(found))
    except MemoryError:
        raise
    except BaseException as error:
        return [FunctionScore(None, error=said(error, file))] * (responses or 1)
    if responses is None:
        return [_score(found, may_abstain=False)]
    if not isinstance(found, Sequence) or isinstance(found, str):
        found = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(found, Sequence) or isinstance(found, str) or len(found) != responses:
        got = f"a list of {len(found)}" if isinstance(found, Sequence) and not isinstance(found, str) else _shown(found)
        return [FunctionScore(None, error=f"returned {got} and not a list of {responses} numbers")] * responses
    return [_score(one, may_abstain=True) for one in found]


async def _result_of(found: Awaitable[Any]) -> Any:
    return await found


def _load(path: FunctionPath) -> tuple[Callable[..., Any], Path]:
    function, file = load_function(path)
    if not callable(function):
        raise KnownError(f"{path} is {_shown(function)} and no function")
    return function, file


def _score(found: Any, *, may_abstain: bool) -> FunctionScore:
    if found is None and may_abstain:  # TRL's word for "this reward does not apply here"
        return FunctionScore(None)
    if not isinstance(found, Mapping):
        number = _number(found, LARGEST_REWARD)
        return FunctionScore(None, error=f"returned {_no_score(found)}") if number is None else FunctionScore(number)
    if SCORE not in found:
        return FunctionScore(None, error=f"returned a dict without '{SCORE}': {', '.join(map(str, found)) or 'empty'}")
    score = _number(found[SCORE], LARGEST_REWARD)
    if score is None:
        what = _no_score(found[SCORE], f" as its '{SCORE}'")
        return FunctionScore(None, error=f"returned {what}")
    parts: dict[str, float] = {}
    texts: dict[str, str] = {}
    for name, value in found.items():
        if name == SCORE or value is None:
            continue
        number = None if isinstance(value, str) else _number(value, _LARGEST_PART)
        if number is not None:
            parts[str(name)] = number
        else:
            texts[str(name)] = _text(value)[:_LONGEST_TEXT]
    return FunctionScore(score, parts, texts)


def _no_score(value: Any, as_what: str = "") -> str:
    """What came back in the place of a score, with the bound where that is what it breaks."""
    bound = "" if _number(value, math.inf) is None else f": a score is at most {LARGEST_REWARD:g} in size"
    return f"{_shown(value)}{as_what}{bound}"


def _number(value: Any, largest: float) -> float | None:
    """A finite number of at most this size, also as numpy or torch have it; None for anything else."""
    if isinstance(value, str | bytes) or not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return number if math.isfinite(number) and abs(number) <= largest else None


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {_text(value)[:60]!r}" if not isinstance(value, float) else f"{value}"


def _text(value: Any) -> str:
    """As `str`, which refuses whole numbers of thousands of digits and may run the user's own code."""
    try:
        return str(value)
    except Exception as error:
        return f"({type(error).__name__} as text)"
