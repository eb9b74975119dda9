r"""Prompt templates by name, word for word as the models and frameworks that made them popular use them.

A template belongs to a way of reading the answer: a model asked for `\boxed{}` and read for `Answer:` scores zero, so
each template says which mark it asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from luspo_cli.errors import UsageError, nearest
from luspo_cli.grading.answers import AnswerMark
from luspo_cli.records import Message

IMAGE_MARK = "<image>"
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>", "<|vision_pad|>", "<|vision_start|>", "<|vision_end|>")
"""Tokens by which the Qwen models mark pixels: text that spells one asks for pixels that are not there."""

TURN_TOKENS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
"""Tokens by which the Qwen models part turns: text that spells one becomes that token, and the turn ends there."""


def spelt_placeholder(texts: Iterable[str], placeholders: Iterable[str] = PLACEHOLDERS) -> str | None:
    """The first of the placeholders that one of the texts spells; None where none does."""
    whole = "\n".join(texts)
    return next((token for token in placeholders if token in whole), None)


@dataclass(frozen=True, slots=True)
class PromptTemplate:
    """A system turn (none where empty), then `before` + question + `after` as the user turn."""

    name: str
    asks_for: AnswerMark | None
    """The mark of the answer, as `grading.prompts.mark_of_prompt` reads it in the text; None where it asks for none of ours."""
    system: str = ""
    before: str = ""
    after: str = ""

    def render(self, question: str, system: str = "") -> tuple[Message, ...]:
        """Return the turns for one question; `system`, of the data's own, stands where the template has none."""
        user = Message("user", self.before + question + self.after)
        system = self.system or system
        return (Message("system", system), user) if system else (user,)


QWEN_BOXED = PromptTemplate(
    "qwen-boxed", AnswerMark.BOX, system=r"Please reason step by step, and put your final answer within \boxed{}."
)
"""Qwen2.5-Math."""

BOXED_SUFFIX = PromptTemplate(
    "boxed-suffix", AnswerMark.BOX, after=r" Let's think step by step and output the final answer within \boxed{}."
)
"""verl's MATH data and POLARIS."""

GSM8K_VERL = PromptTemplate(
    "gsm8k-verl", AnswerMark.HASHES, after=' Let\'s think step by step and output the final answer after "####".'
)
"""verl's GSM8K data."""

DAPO = PromptTemplate(
    "dapo",
    AnswerMark.ANSWER_LINE,
    before=(
        "Solve the following math problem step by step. The last line of your response should be of the form "
        "Answer: $Answer (without quotes) where $Answer is the answer to the problem.\n\n"
    ),
    after='\n\nRemember to put your answer on its own line after "Answer:".',
)
"""DAPO-Math-17k and its AIME 2024 file."""

PLAIN = PromptTemplate("plain", None)
"""The bare question."""

PROMPTS: Mapping[str, PromptTemplate] = MappingProxyType(
    {template.name: template for template in (QWEN_BOXED, BOXED_SUFFIX, GSM8K_VERL, DAPO, PLAIN)}
)


def prompt_template(name: str) -> PromptTemplate:
    """Return the template of that name.

    Raises:
        UsageError: there is none; the message lists the names.
    """
    try:
        return PROMPTS[name]
    except KeyError:
        raise UsageError(
            f"There is no prompt template '{name}'{nearest(name, PROMPTS)}; there are {', '.join(PROMPTS)}."
        ) from None


def build_prompt(name: str, question: str, *, images: int = 0, system: str = "") -> tuple[Message, ...]:
    """Return the turns for one question; missing `<image>` marks are put in front of the question, one an image.

    `system`, a system turn of the data's own, stands where the template has none.
    """
    missing = images - question.count(IMAGE_MARK)
    return prompt_template(name).render(IMAGE_MARK * max(missing, 0) + question, system)


def strip_prompt(text: str) -> str:
    """Return the question inside a user turn that one of the templates built; other text comes back as it is."""
    for template in PROMPTS.values():
        if (template.before or template.after) and text.startswith(template.before) and text.endswith(template.after):
            return text[len(template.before) : len(text) - len(template.after)]
    return text
