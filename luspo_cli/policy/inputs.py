"""Problems → model inputs, through the tokenizer's own chat template, or the processor's where there are images.

A prompt with images is never cut to fit: a cut would part image tokens from their features. Prompts over the limit are left
out and counted, by length alone: the length of an image prompt follows from the image's header, so no pixel is decoded for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from luspo_cli.data.images import image_messages, image_size, load_image
from luspo_cli.errors import UsageError
from luspo_cli.records import Problem, Prompt


def prompt_tokens(problem: Problem, tokenizer: Any) -> tuple[int, ...]:
    """The prompt's token ids [P], generation prompt included."""
    if problem.images:
        raise UsageError(f"problem '{problem.id}' has images; this model reads text only")
    messages = [{"role": message.role, "content": message.content} for message in problem.prompt]
    return tuple(_templated(tokenizer, problem, messages, return_dict=False))


def prompt_inputs(problem: Problem, tokenizer: Any, processor: Any | None = None) -> Prompt:
    """The prompt's tokens and image inputs; `processor` is a vision model's.

    Raises UsageError where the model reads text only, or an image, a mark or a placeholder is not as it should be.
    """
    if processor is None or not problem.images:
        tokens = prompt_tokens(problem, tokenizer)
        if processor is not None:
            _refuse_placeholders(problem, tokens, processor)
        return Prompt(problem.id, tokens)
    text = _rendered(problem, processor)
    try:
        images = [load_image(file) for file in problem.images]
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
    )


def prompt_length(problem: Problem, tokenizer: Any, processor: Any | None = None) -> int:
    """The number of tokens that `prompt_inputs` would return, without decoding an image; raises UsageError alike."""
    if processor is None or not problem.images:
        return len(prompt_inputs(problem, tokenizer, processor).tokens)
    ids = tokenizer(_rendered(problem, processor))["input_ids"]
    reader = processor.image_processor
    try:
        sizes = [image_size(file) for file in problem.images]
        patches = [reader.get_number_of_image_patches(height, width, {}) for height, width in sizes]
    except (UsageError, ValueError) as error:
        raise UsageError(f"problem '{problem.id}': {error}") from error
    return len(ids) - len(patches) + sum(number // reader.merge_size**2 for number in patches)


def fitting(
    problems: Sequence[Problem],
    tokenizer: Any,
    limit: int,
    processor: Any | None = None,
) -> tuple[list[Problem], list[int]]:
    """The problems whose prompt has at most `limit` tokens, and the lengths of their prompts."""
    measured = [(problem, prompt_length(problem, tokenizer, processor)) for problem in problems]
    kept = [(problem, length) for problem, length in measured if length <= limit]
    return [problem for problem, _ in kept], [length for _, length in kept]


def _rendered(problem: Problem, processor: Any) -> str:
    """The prompt as text, with one image placeholder an image."""
    try:
        turns = image_messages(problem.prompt, len(problem.images))
    except UsageError as error:
        raise UsageError(f"problem '{problem.id}': {error}") from error
    text: str = _templated(processor, problem, turns, tokenize=False)
    placed = text.count(processor.image_token)
    if placed != len(problem.images) or processor.video_token in text:
        written = [token for token in _placeholders(processor) if any(token in m.content for m in problem.prompt)]
        reason = (
            f"its text contains {written[0]}, which stands for pixels; remove it"
            if written
            else f"the model's chat template wrote {placed} places for {len(problem.images)} images;"
            " take the template of a vision model"
        )
        raise UsageError(f"problem '{problem.id}': {reason}")
    return text


def _templated(writer: Any, problem: Problem, turns: list[dict[str, Any]], **options: Any) -> Any:
    """What the chat template of `writer`, a tokenizer or a processor, makes of the turns; UsageError where it refuses them."""
    try:
        return writer.apply_chat_template(turns, add_generation_prompt=True, **options)
    except TemplateError as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise UsageError(
            f"problem '{problem.id}': the model's chat template refuses its prompt ({reason}); take another --prompt in luspo"
            " prepare-data or luspo eval, for example boxed-suffix, which has no system turn"
        ) from error


def _placeholders(processor: Any) -> tuple[str, str]:
    return processor.image_token, processor.video_token


def _refuse_placeholders(problem: Problem, tokens: Sequence[int], processor: Any) -> None:
    """Text that spells a placeholder would be read as pixels that are not there."""
    for token, number in zip(
        _placeholders(processor), (processor.image_token_id, processor.video_token_id), strict=True
    ):
        if number in tokens:
            raise UsageError(f"problem '{problem.id}': its text contains {token}, which stands for pixels; remove it")
