"""Qwen2 models made by hand or at random, with a byte tokenizer and ChatML, as a real server loads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer(*further: str) -> Any:
    """Qwen2's own tokenizer class over single bytes; `further` are tokens of their own at the end of the vocabulary."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocabulary = {token: number for number, token in enumerate(("<|endoftext|>", *sorted(ByteLevel.alphabet())))}
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=[], eos_token="<|im_end|>", chat_template=CHATML)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(list(further))
    return tokenizer


def random_model(folder: Path, tokenizer: Any = None) -> Path:
    """An untrained model of one layer."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = tokenizer or byte_tokenizer()
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16_384,
        bos_token_id=None,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rubber_stamp(folder: Path, reply: str) -> Path:
    """A model that answers `reply` to everything: one token spells it, and the next token depends on the last one alone."""
    import torch
    from transformers import Qwen2ForCausalLM

    tokenizer = byte_tokenizer(reply)
    stamp = len(tokenizer) - 1
    model = Qwen2ForCausalLM.from_pretrained(random_model(folder, tokenizer))
    with torch.no_grad():
        for weight in model.model.layers.parameters():
            weight.zero_()  # a layer then adds nothing, and the embedding reaches the head as it is
        embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
        for matrix in (embedding, head):
            matrix.zero_()
        embedding[:, 0] = 1.0  # every token points to the reply,
        embedding[stamp, 0], embedding[stamp, 1] = 0.0, 1.0  # and the reply to the end
        head[stamp, 0] = head[tokenizer.eos_token_id, 1] = 10.0
    model.save_pretrained(folder)
    return folder
