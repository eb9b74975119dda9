"""A prompt's tokens: the chat template's or a base model's text; the thought that a template opens; its arguments."""

from __future__ import annotations

from typing import Any

import pytest

from doubles.models import byte_tokenizer, word_tokenizer
from luspo_cli.errors import UsageError
from luspo_cli.policy.inputs import check_template_arguments, lost_fraction, prompt_inputs, prompt_length, prompt_tokens
from luspo_cli.records import Message, Problem


def base_tokenizer(before: str = "", after: str = "") -> Any:
    """Single bytes without a chat template; `<s>` and `</s>` stand around a text as the arguments say."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE({symbol: number for number, symbol in enumerate(symbols)}, []))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(
        single=f"{before} $A {after}".strip(), special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def asked(*turns: str) -> Problem:
    roles = ("system", "user") if len(turns) == 2 else ("user",)
    return Problem("p", tuple(Message(role, text) for role, text in zip(roles, turns, strict=True)), "1", "t")


@pytest.mark.parametrize(
    ("before", "after", "first"), [("", "", ()), ("<s>", "", (0,)), ("<s>", "</s>", (0,)), ("", "</s>", ())]
)
def test_a_base_models_prompt_is_its_text_behind_the_tokenizers_own_first_token(
    before: str, after: str, first: tuple[int, ...]
) -> None:
    """`</s>` behind the text would say that it is over: the response is what comes next."""
    tokenizer = base_tokenizer(before, after)
    tokens = prompt_tokens(asked("Be brief.", "1+1?"), tokenizer)
    assert tokens[: len(first)] == first
    assert tokenizer.decode(tokens[len(first) :]) == "Be brief.\n\n1+1?"
    assert len(tokens) == len(first) + len("Be brief.\n\n1+1?") == prompt_length(asked("Be brief.", "1+1?"), tokenizer)


def test_a_chat_template_writes_the_first_token_itself() -> None:
    tokenizer = base_tokenizer("<s>")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    assert prompt_tokens(asked("ab"), tokenizer) == (0, *tokenizer("ab", add_special_tokens=False).input_ids)


OPENS = "{% for m in messages %}<u>{{ m['content'] | trim }}{% endfor %}<a><think>\n"


@pytest.mark.parametrize(
    ("template", "question", "is_open"),
    [
        (OPENS, "n", True),
        (OPENS, "an end: </think>", True),
        (OPENS + "\n</think>\n\n", "n", False),
        (OPENS.replace("<think>", "<THINKING>"), "n", True),
        ("{{ messages[-1]['content'] }}<a>", "explain <think>", False),
        ("{{ messages[-1]['content'] }}", "<think>", False),
        ("Think in <think>.{{ messages[-1]['content'] }}<a>", "n", False),
        ("{{ messages[-1]['content'] }}{% if add_generation_prompt %}<a><think>{% endif %}", "n", True),
        (OPENS + "{% if '/no_think' in messages[-1]['content'] %}</think>{% endif %}", "1+1 /no_think", False),
        (OPENS + "{% if enable_thinking is defined and not enable_thinking %}</think>{% endif %}", "n", True),
    ],
)
def test_whether_the_template_leaves_a_thought_open(template: str, question: str, is_open: bool) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert prompt_inputs(asked(question), tokenizer).thought_open is is_open


def test_without_a_template_no_thought_is_open() -> None:
    assert not prompt_inputs(asked("<think>"), base_tokenizer()).thought_open


SWITCHED = "{{ messages[-1]['content'] }}<a>{% if not enable_thinking | default(true) %}<think></think>{% endif %}"


def test_arguments_go_to_the_chat_template() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = SWITCHED
    found = [prompt_tokens(asked("q"), tokenizer, given) for given in (None, {}, {"enable_thinking": False})]
    assert [tokenizer.decode(tokens) for tokens in found] == ["q<a>", "q<a>", "q<a><think></think>"]
    assert prompt_length(asked("q"), tokenizer, None, {"enable_thinking": False}) == len(found[2])


def test_an_argument_that_the_template_does_not_read_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = SWITCHED
    check_template_arguments(tokenizer, {"enable_thinking": False}, "m")
    with pytest.raises(UsageError, match="sets thinking for model 'm', whose chat template does not read it"):
        check_template_arguments(tokenizer, {"thinking": False}, "m")
    with pytest.raises(UsageError, match="which has no chat template"):
        check_template_arguments(base_tokenizer(), {"enable_thinking": False}, "m")


def test_the_share_of_a_prompt_that_its_tokenizer_drops() -> None:
    few = word_tokenizer(("<pad>", "<end>", "a", "1"))  # what is in none of them becomes padding, which is not decoded
    assert lost_fraction([asked("a1 bc"), asked("1111")], few) == pytest.approx(2 / 8)
    assert lost_fraction([asked("Ünïcode, 数"), asked("x")], byte_tokenizer()) == 0.0
    assert lost_fraction([], few) == 0.0
