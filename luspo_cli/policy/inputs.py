"""Problems → token ids, through the tokenizer's own chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luspo_cli.errors import UsageError
from luspo_cli.records import Problem


def prompt_tokens(problem: Problem, tokenizer: Any) -> tuple[int, ...]:
    """The prompt's token ids [P], generation prompt included."""
    if problem.images:
        raise UsageError(f"problem '{problem.id}' has images; this model reads text only")
    messages = [{"role": message.role, "content": message.content} for message in problem.prompt]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return tuple(ids)


def fitting(problems: Sequence[Problem], tokenizer: Any, limit: int) -> tuple[list[Problem], int]:
    """The problems whose prompt has at most `limit` tokens, and how many were left out."""
    kept = [problem for problem in problems if len(prompt_tokens(problem, tokenizer)) <= limit]
    return kept, len(problems) - len(kept)
