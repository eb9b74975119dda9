"""Models with random weights for benchmarks that need no real one, saved as an ordinary folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, int]] = {
    "smoke": {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 512},
    "60m": {
        "hidden_size": 640, "intermediate_size": 2560, "num_hidden_layers": 6, "num_attention_heads": 10, "vocab_size": 32000,
    },
    "0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14, "vocab_size": 151936,
    },
    "1.5b": {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12, "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": 0,
    },
}  # fmt: skip
"""Of the class Qwen2; the last three are those of Qwen2.5. Heads are of 64 or 128 numbers: vLLM on a CPU has no other ones."""
CHARACTERS = 32, 127
"""Code points that the tokenizer knows, a token each."""


def qwen2_config(size: str, **changes: int) -> Any:
    """The configuration of `SIZES[size]`; `changes` take the place of its entries."""
    from transformers import Qwen2Config

    entries: dict[str, Any] = {
        "num_key_value_heads": 2,
        "tie_word_embeddings": 1,
        "max_position_embeddings": 32768,
        **SIZES[size],
        **changes,
    }
    entries["tie_word_embeddings"] = bool(entries["tie_word_embeddings"])
    return Qwen2Config(**entries, pad_token_id=0, eos_token_id=1, bos_token_id=None)


def random_model(folder: Path, size: str = "60m", **changes: int) -> Path:
    """Save a Qwen2 model of random weights in bfloat16 with a tokenizer of single characters and a template of bare text."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    from luspo_cli.policy.loading import no_progress_bars

    no_progress_bars()
    words = {"<pad>": 0, "<end>": 1} | {chr(i): i for i in range(*CHARACTERS)} | {"\n": 2}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    torch.manual_seed(0)
    before, device = torch.get_default_dtype(), "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_default_dtype(torch.bfloat16)  # a float32 copy of the largest would not fit everywhere
    try:
        with torch.device(device):  # random numbers of the largest take minutes on a CPU
            model = Qwen2ForCausalLM(qwen2_config(size, **changes))
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def parameters_of(config: Any) -> dict[str, int]:
    """Weights of a dense decoder's matrices by part: `layers` and `head`, which a token passes, and an `embedding` of its own."""
    from luspo_cli.policy.model_shape import shape_of

    shape = shape_of(config.to_dict())
    table = shape.vocabulary * shape.width
    return {"layers": shape.layer_matrices(), "head": table, "embedding": 0 if shape.tied_head else table}


def forward_flops(config: Any, lengths: list[int], head_tokens: int) -> float:
    """Floating-point operations of one forward pass over rows of these lengths under a causal mask, the head over `head_tokens`.

    Two for each weight and token, and 2 x 2 x width for each pair of a query and a key that it may see; three times this with the
    backward pass.
    """
    from luspo_cli.policy.model_shape import shape_of

    parts, shape = parameters_of(config), shape_of(config.to_dict())
    pairs = sum(length * (length + 1) / 2 for length in lengths)
    attention = 4 * shape.layers * shape.heads * shape.head_size * pairs
    return 2 * parts["layers"] * sum(lengths) + attention + 2 * parts["head"] * head_tokens
