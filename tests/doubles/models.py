"""Models of some thousand weights, made in milliseconds: random ones, and one that writes exactly what it is told to."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PAD, END, UNKNOWN = "<pad>", "<end>", "<unknown>"
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
BARE_TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_IMPORTING = threading.Lock()


def random_qwen2(
    vocabulary: int,
    *,
    seed: int = 0,
    width: int = 32,
    feed_forward: int = 48,
    layers: int = 1,
    heads: int = 2,
    key_value_heads: int = 1,
    context: int = 256,
    tied: bool = False,
    pad: int | None = 0,
    end: int | None = 1,
    attention: str | None = None,
    spread: tuple[float, float] | None = None,
) -> Any:
    """A Qwen2 in float32 with the same weights every time.

    `spread`: standard deviation of the weights of embedding and head, and of all others. Without it they are transformers'
    own, which are so small that all next tokens are about equally likely.
    """
    with _IMPORTING:  # transformers' lazy imports are not made for two threads at once
        from transformers import Qwen2Config, Qwen2ForCausalLM

    import torch

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
    )
    if attention is not None:
        config._attn_implementation = attention
    model = Qwen2ForCausalLM(config)
    if spread is not None:
        respread(model, *spread)
    return model


def random_experts(
    vocabulary: int,
    family: str = "Qwen3Moe",
    *,
    seed: int = 0,
    width: int = 32,
    heads: int = 4,
    key_value_heads: int = 2,
    experts: int = 4,
    chosen: int = 2,
    spread: tuple[float, float] | None = (0.5, 0.2),
    **changes: Any,
) -> Any:
    """A Qwen3-MoE or Qwen2-MoE in float32 with two layers and transformers' own functions; see `random_qwen2`."""
    with _IMPORTING:
        import transformers

    import torch

    torch.manual_seed(seed)
    own = {"shared_expert_intermediate_size": 40} if family == "Qwen2Moe" else {"head_dim": width // heads}
    entries: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 48,
        "moe_intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "num_experts": experts,
        "num_experts_per_tok": chosen,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }
    config = getattr(transformers, f"{family}Config")(**entries | own | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    if spread is not None:
        respread(model, *spread)
    return model


def own_experts(vocabulary: int, family: str = "Qwen3Moe", **options: Any) -> Any:
    """The same with the engine's attention and experts, in evaluation mode."""
    from luspo_cli.policy import attention, experts

    attention.register()
    experts.register()
    model = random_experts(vocabulary, family, **options)
    model.config._attn_implementation = attention.NAME
    model.config._experts_implementation = experts.NAME
    return model.eval()


def respread(model: Any, ends: float, inside: float) -> None:
    """Draw all weights anew in place: norms around 1, the others around 0; `ends` is the spread of embedding and head."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, ends if "embed" in name or "lm_head" in name else inside)


def word_tokenizer(words: Sequence[str], template: str = BARE_TEMPLATE, *, split: str = "") -> Any:
    """A tokenizer of `words`, numbered in their order; the first two are padding and end, and what is in none is UNKNOWN.

    A text is split into characters, or at each match of the regular expression `split`, which is left out. Without UNKNOWN among
    the words the first one takes its place.
    """
    with _IMPORTING:
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

    unknown = UNKNOWN if UNKNOWN in words else words[0]
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=unknown))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(split or r"[\s\S]"), "removed" if split else "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=words[0], eos_token=words[1], unk_token=unknown if unknown == UNKNOWN else None
    )
    tokenizer.chat_template = template
    return tokenizer


def character_tokenizer(template: str = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}") -> Any:
    """One token a printable ASCII character or line feed."""
    return word_tokenizer((PAD, END, UNKNOWN, *CHARACTERS), template)


def byte_tokenizer(*further: str) -> Any:
    """Qwen2's own tokenizer class over single bytes, with ChatML; `further` are tokens at the end of the vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {token: number for number, token in enumerate(("<|endoftext|>", *sorted(ByteLevel.alphabet())))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|im_end|>", chat_template=CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(list(further))
    return tokenizer


def save(folder: Path, model: Any, tokenizer: Any) -> Path:
    """Write both into `folder`, as a model of the hub lies there; returns the folder."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def character_model(folder: Path, *, seed: int = 0, context: int = 1024) -> Path:
    """The folder of a random model that reads and writes ASCII characters."""
    tokenizer = character_tokenizer()
    return save(folder, random_qwen2(len(tokenizer), seed=seed, feed_forward=64, context=context), tokenizer)


def byte_model(folder: Path, tokenizer: Any = None) -> Path:
    """The folder of a random model over bytes, as a server of any kind loads it."""
    tokenizer = tokenizer or byte_tokenizer()
    ends = {"pad": tokenizer.pad_token_id, "end": tokenizer.eos_token_id}
    return save(folder, random_qwen2(len(tokenizer), feed_forward=64, context=16_384, **ends), tokenizer)


def writing_model(
    folder: Path, responses: Mapping[str, str | Sequence[str]], template: str = BARE_TEMPLATE, *, context: int = 1024
) -> Path:
    """The folder of a model that writes one of `responses[prompt end]`, each as likely as the others, and then ends.

    Each prompt end and each response is a single token, whatever its length, so a rollout has 2 tokens, the end among them.
    The last token of a prompt decides: what the template puts behind the question belongs to the key, as in
    `{"<1> Let me think.": ["So 5.", "So 6."]}`. All other text is unknown; after it the model ends at once.
    """
    wanted = {key: (value,) if isinstance(value, str) else tuple(value) for key, value in responses.items()}
    texts = [*wanted, *(text for several in wanted.values() for text in several)]
    tokenizer = word_tokenizer((PAD, END, UNKNOWN), template)
    tokenizer.add_tokens(list(dict.fromkeys(texts)))
    number = {text: tokenizer.convert_tokens_to_ids(text) for text in (*texts, END)}
    after = {number[key]: [number[text] for text in several] for key, several in wanted.items()}
    return save(folder, _next_token_model(len(tokenizer), after, number[END], context), tokenizer)


def stamping_model(folder: Path, response: str) -> Path:
    """The folder of a Qwen2 over bytes that writes `response` after whatever it is asked, and then ends."""
    tokenizer = byte_tokenizer(response)
    stamp, end = len(tokenizer) - 1, tokenizer.eos_token_id
    model = random_qwen2(len(tokenizer), feed_forward=64, context=16_384, pad=tokenizer.pad_token_id, end=end)
    point(model, {token: (stamp,) for token in range(len(tokenizer)) if token != stamp}, end)
    return save(folder, model, tokenizer)


def _next_token_model(vocabulary: int, after: Mapping[int, Sequence[int]], end: int, context: int) -> Any:
    """A Mistral (a type that leaves the folder's tokenizer as it is) whose next token depends on the last one alone."""
    with _IMPORTING:
        from transformers import MistralConfig, MistralForCausalLM

    width = -(-(len(after) + 1) // 8) * 8
    config = MistralConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        max_position_embeddings=context,
        sliding_window=None,
        tie_word_embeddings=False,
        pad_token_id=0,
        eos_token_id=end,
        bos_token_id=None,
    )
    model = MistralForCausalLM(config)
    point(model, after, end)
    return model


def point(model: Any, after: Mapping[int, Sequence[int]], end: int) -> None:
    """Give a decoder weights that write evenly one of `after[last token]`, or `end` after a token that is no key."""
    import torch

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    followers = sorted({(end,), *map(tuple, after.values())})  # one direction for each set of tokens that may follow
    assert len(followers) <= embedding.shape[1], "too many different continuations for this width"
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.zero_()  # a layer then adds nothing, and the embedding reaches the head as it is
        embedding.zero_()
        head.zero_()
        for token in range(len(embedding)):
            embedding[token, followers.index(tuple(after.get(token, (end,))))] = 1.0
        for direction, tokens in enumerate(followers):
            # The final norm makes the embedding's 1 the root of the width: a logit of 40, where all others are 0.
            head[list(tokens), direction] = 40 / embedding.shape[1] ** 0.5
