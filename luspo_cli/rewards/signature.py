"""How a reward function wants to be called, read from its signature: verl's keywords, or TRL's columns.

    solution_str  → one call a response: data_source, solution_str, ground_truth, extra_info; a number or a dict comes back
    completions   → one call a group: prompts, completions and columns of the data as lists; a list comes back

Decided here: the one name that only one convention has decides. A function that has both or neither is refused, for a guess
would call it with arguments that mean something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from luspo_cli.errors import UsageError

RESPONSE_KEYWORDS = ("data_source", "solution_str", "ground_truth", "extra_info")
GROUP_KEYWORDS = (
    "prompts", "completions", "completion_ids", "ground_truth", "data_source",
    "id", "answer", "response_length", "truncated",
)  # fmt: skip
"""What every group has; further columns are the keys of the data's `extra_info`."""

Called = Literal["response", "group"]


@dataclass(frozen=True, slots=True)
class Signature:
    """What a function takes by keyword."""

    called: Called
    """Once a response, or once a group."""
    accepted: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool
    """Whether it has `**kwargs`."""
    text: str
    """As it is written, for the dry run."""

    def chosen(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Those of the values that the function takes."""
        return dict(values) if self.takes_any else {name: values[name] for name in self.accepted if name in values}

    def columns(self) -> list[str]:
        """Required names that only the data can give."""
        known = RESPONSE_KEYWORDS if self.called == "response" else GROUP_KEYWORDS
        return [name for name in self.required if name not in known]


def read_signature(function: Callable[..., Any]) -> Signature:
    """How `function` is called; UsageError, the end of a sentence, where its signature does not say."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        raise UsageError("is no function with a signature that can be read") from None
    parameters = signature.parameters.values()
    text = f"{getattr(function, '__name__', type(function).__name__)}{signature}"
    by_place = [one.name for one in parameters if one.kind is one.POSITIONAL_ONLY]
    if by_place:
        raise UsageError(f"is {text}: '{by_place[0]}' can be given by place alone, and a reward is called by keyword")
    named = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
    accepted = tuple(one.name for one in named)
    of_response, of_group = "solution_str" in accepted, "completions" in accepted
    if of_response == of_group:
        has = "has both" if of_response else "has neither"
        raise UsageError(
            f"is {text}, and {has} 'solution_str' (called once a response, with {', '.join(RESPONSE_KEYWORDS)}) "
            f"{'and' if of_response else 'nor'} 'completions' (called once a group, with lists): take one of the two"
        )
    found = Signature(
        called="response" if of_response else "group",
        accepted=accepted,
        required=tuple(one.name for one in named if one.default is one.empty),
        takes_any=any(one.kind is one.VAR_KEYWORD for one in parameters),
        text=text,
    )
    if of_response and (unknown := found.columns()):
        raise UsageError(
            f"is {text}: nothing is known as '{unknown[0]}' in a call for one response, which has"
            f" {', '.join(RESPONSE_KEYWORDS)}; give it a default, or read it from extra_info"
        )
    return found
