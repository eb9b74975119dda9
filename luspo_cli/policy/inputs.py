"""Problems → model inputs, through the tokenizer's own chat template, or the processor's where there are images.

A tokenizer without a chat template belongs to a base model: its prompt is the plain text of the turns, parted by an empty line,
with the tokens that the tokenizer itself puts in front of a text (`<s>` in Llama's, none in Qwen's).

A prompt with images is never cut to fit: a cut would part image tokens from their features. Prompts over the limit are left
out and counted, by length alone: the length of an image prompt follows from the image's header, so no pixel is decoded for it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateSyntaxError

from luspo_cli.config.rollout import TemplateValue
from luspo_cli.data.images import image_messages
from luspo_cli.data.prompts import PLACEHOLDERS, spelt_placeholder
from luspo_cli.errors import UsageError, first_line
from luspo_cli.grading.answers import THOUGHT_TAG
from luspo_cli.records import Problem, Prompt

Turns = list[dict[str, Any]]
"""`role` and `content` of each turn; the content is a text, or a list of text and image parts."""
_END_OF_TURN = "\ue000end\ue001"
"""Private-use characters: no question and no template holds them."""


def prompt_tokens(
    problem: Problem, tokenizer: Any, template_arguments: Mapping[str, TemplateValue] | None = None
) -> tuple[int, ...]:
    """The prompt's token ids [P], generation prompt included."""
    turns = _text_turns(problem)
    if tokenizer.chat_template is None:
        return _plain_tokens("\n\n".join(turn["content"] for turn in turns), tokenizer)
    return tuple(_templated(tokenizer, problem, turns, template_arguments, return_dict=False))


def prompt_inputs(
    problem: Problem,
    tokenizer: Any,
    processor: Any | None = None,
    template_arguments: Mapping[str, TemplateValue] | None = None,
) -> Prompt:
    """The prompt's tokens and image inputs; `processor` is a vision model's, `template_arguments` go to the chat template.

    Raises UsageError where the model reads text only, or an image, a mark or a placeholder is not as it should be.
    """
    _refuse_placeholder(problem, processor)
    if processor is None or not problem.images:
        tokens = prompt_tokens(problem, tokenizer, template_arguments)
        is_open = leaves_thought_open(tokenizer, problem, _text_turns(problem), template_arguments)
        return Prompt(problem.id, tokens, thought_open=is_open)
    turns = _image_turns(problem)
    text = _rendered(problem, processor, template_arguments)
    try:
        images = [image.load() for image in problem.images]
        found = processor(text=[text], images=images, return_tensors="pt")
    except (UsageError, ValueError) as error:  # the processor refuses what it cannot resize (200:1 and thinner)
        raise UsageError(f"problem '{problem.id}': {error}") from error
    tokens = tuple(found["input_ids"][0].tolist())
    return Prompt(
        problem.id,
        tokens,
        {
            "pixel_values": found["pixel_values"],
            "image_grid_thw": found["image_grid_thw"],
            "mm_token_type_ids": found["mm_token_type_ids"][0],
        },
        leaves_thought_open(processor, problem, turns, template_arguments),
    )


def prompt_length(
    problem: Problem,
    tokenizer: Any,
    processor: Any | None = None,
    template_arguments: Mapping[str, TemplateValue] | None = None,
) -> int:
    """The number of tokens that `prompt_inputs` would return, without decoding an image; raises UsageError alike."""
    if processor is None or not problem.images:
        return len(prompt_inputs(problem, tokenizer, processor, template_arguments).tokens)
    _refuse_placeholder(problem, processor)
    ids = tokenizer(_rendered(problem, processor, template_arguments))["input_ids"]
    reader = processor.image_processor
    try:
        sizes = [image.size() for image in problem.images]
        patches = [reader.get_number_of_image_patches(height, width, {}) for height, width in sizes]
    except (UsageError, ValueError) as error:
        raise UsageError(f"problem '{problem.id}': {error}") from error
    return len(ids) - len(patches) + sum(number // reader.merge_size**2 for number in patches)


def placeholder_in(problem: Problem, processor: Any | None) -> str | None:
    """A token by which the model marks pixels and which the problem's text spells; None where the model reads text only."""
    if processor is None:
        return None
    tokens = dict.fromkeys((processor.image_token, processor.video_token, *PLACEHOLDERS))
    return spelt_placeholder((message.content for message in problem.prompt), tokens)


def fitting(
    problems: Sequence[Problem], length_of: Callable[[Problem], int], limit: int
) -> tuple[list[Problem], list[int]]:
    """The problems whose prompt has at most `limit` tokens, and the lengths of their prompts."""
    measured = [(problem, length_of(problem)) for problem in problems]
    kept = [(problem, length) for problem, length in measured if length <= limit]
    return [problem for problem, _ in kept], [length for _, length in kept]


def lost_fraction(problems: Sequence[Problem], tokenizer: Any) -> float:
    """The share of the prompts' characters (0 to 1, spaces and case aside) that the tokenizer does not give back."""
    lost = total = 0
    for problem in problems:
        text = "".join(message.content for message in problem.prompt)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        there = _characters(text)
        lost += (there - _characters(tokenizer.decode(ids, skip_special_tokens=True))).total()
        total += there.total()
    return lost / total if total else 0.0


def check_template(writer: Any, path: str) -> None:
    """UsageError where the chat template of `writer` is no template at all; one that refuses a prompt is met with the prompt."""
    try:
        if writer.chat_template is not None:
            writer.apply_chat_template([{"role": "user", "content": "0"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"the chat template of model '{path}' is broken at its line {error.lineno}: {first_line(error)}; mend"
            " chat_template.jinja or the chat_template of tokenizer_config.json, or take a complete copy"
        ) from error
    except Exception:  # it may refuse this prompt
        return


def check_template_arguments(writer: Any, arguments: Mapping[str, TemplateValue], path: str) -> None:
    """UsageError for an argument that the chat template of `writer` does not read: it would change nothing."""
    template = writer.chat_template
    text = "" if template is None else str(template)
    for name in arguments:
        if not re.search(rf"\b{re.escape(name)}\b", text):
            reason = "whose chat template does not read it" if text else "which has no chat template"
            raise UsageError(
                f"rollout.chat_template sets {name} for model '{path}', {reason}; leave it out, or take the name that the"
                " template uses"
            )


def _refuse_placeholder(problem: Problem, processor: Any | None) -> None:
    """Text that spells a placeholder would be read as pixels that are not there, or shift those of another row."""
    if (token := placeholder_in(problem, processor)) is not None:
        raise UsageError(f"problem '{problem.id}': its text contains {token}, which stands for pixels; remove it")


def _characters(text: str) -> Counter[str]:
    return Counter("".join(unicodedata.normalize("NFKC", text).casefold().split()))


def _text_turns(problem: Problem) -> Turns:
    if problem.images:
        raise UsageError(f"problem '{problem.id}' has images; this model reads text only")
    return [{"role": message.role, "content": message.content} for message in problem.prompt]


def _image_turns(problem: Problem) -> Turns:
    try:
        return image_messages(problem.prompt, len(problem.images))
    except UsageError as error:
        raise UsageError(f"problem '{problem.id}': {error}") from error


def _plain_tokens(text: str, tokenizer: Any) -> tuple[int, ...]:
    """The text with what the tokenizer puts before it, and without what some put after it: an end that the model is to write."""
    bare = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = tuple(tokenizer(text)["input_ids"])
    before = next((i for i in range(len(whole) - len(bare) + 1) if whole[i : i + len(bare)] == bare), None)
    return whole if before is None else whole[: before + len(bare)]


def leaves_thought_open(
    writer: Any, problem: Problem, turns: Turns, template_arguments: Mapping[str, TemplateValue] | None
) -> bool:
    """Whether what the chat template writes behind the last turn opens a thought and does not close it.

    The end of the last turn is marked before it is rendered, so that `<think>` in a question is only text.
    """
    if writer.chat_template is None:
        return False
    *earlier, last = turns
    content = last["content"]
    marked = content + _END_OF_TURN if isinstance(content, str) else [*content, {"type": "text", "text": _END_OF_TURN}]
    turns = [*earlier, {**last, "content": marked}]
    text: str = _templated(writer, problem, turns, template_arguments, tokenize=False)
    tags = THOUGHT_TAG.findall(text.rpartition(_END_OF_TURN)[2])
    return bool(tags) and tags[-1] == ""


def _rendered(problem: Problem, processor: Any, template_arguments: Mapping[str, TemplateValue] | None) -> str:
    """The prompt as text, with one image placeholder an image."""
    text: str = _templated(processor, problem, _image_turns(problem), template_arguments, tokenize=False)
    placed = text.count(processor.image_token)
    if placed != len(problem.images):
        raise UsageError(
            f"problem '{problem.id}': the model's chat template wrote {placed} places for {len(problem.images)} images; take the"
            " template of a vision model"
        )
    return text


def _templated(
    writer: Any,
    problem: Problem,
    turns: Turns,
    template_arguments: Mapping[str, TemplateValue] | None,
    **options: Any,
) -> Any:
    """What the chat template of `writer`, a tokenizer or a processor, makes of the turns; UsageError where it refuses them."""
    try:
        return writer.apply_chat_template(turns, add_generation_prompt=True, **(template_arguments or {}), **options)
    except Exception as error:  # what the template raises, of jinja's kinds or of Python's
        raise UsageError(
            f"problem '{problem.id}': the model's chat template refuses its prompt ({first_line(error)}); take another --prompt"
            " in luspo prepare-data or luspo eval, for example boxed-suffix, which has no system turn"
        ) from error
