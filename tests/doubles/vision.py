"""A small random model of each vision family and its real processor over a tokenizer of single characters."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

MAX_PIXELS = 28 * 28 * 16
"""Of the processor: an image has 4 to 16 tokens."""
SPECIAL = (
    "<pad>", "<end>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"
)  # fmt: skip
END = 1
IMAGE, VIDEO = SPECIAL.index("<|image_pad|>"), SPECIAL.index("<|video_pad|>")
IMAGE_TOKENS = (4, 5, 6, 7)
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
VOCABULARY = 128
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def character_tokenizer() -> Any:
    from tokenizers import Regex, Tokenizer
    from tokenizers.decoders import Fuse
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *CHARACTERS))}
    inner = Tokenizer(WordLevel(vocabulary, unk_token="?"))
    inner.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    inner.decoder = Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<end>",
        additional_special_tokens=list(SPECIAL[2:]),
        chat_template=TEMPLATE,
    )


def vision_processor(tokenizer: Any = None, max_pixels: int = MAX_PIXELS, family: str = "qwen2_5_vl") -> Any:
    """The family's processor, which reads images only; patches of 14 pixels."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from luspo_cli.policy import reading

    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=max_pixels)
    processor = reading.vision_processor(family, images, tokenizer or character_tokenizer())
    processor.chat_template = TEMPLATE
    return processor


def vision_model(
    seed: int = 0,
    *,
    dtype: str = "float32",
    ours: bool = True,
    vocabulary: int = VOCABULARY,
    image_tokens: tuple[int, int, int, int] = IMAGE_TOKENS,
    end: int | list[int] = END,
    family: str = "qwen2_5_vl",
    scale: int = 1,
    tied: bool = False,
    spread: tuple[float, float] = (0.5, 0.2),
) -> Any:
    """A random model of two layers; `ours` False: transformers' plain attention. `image_tokens`: start, end, image, video.

    `scale` multiplies the widths, and so those of the heads: 16 at 1. `spread`: of embedding and head, and of the rest.
    """
    import torch
    import transformers

    from luspo_cli.policy import attention
    from luspo_cli.policy.reading import VISION_ATTENTION

    torch.set_num_threads(1)
    attention.register()
    torch.manual_seed(seed)
    start, stop, image, video = image_tokens
    rope: dict[str, Any] = {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [2 * scale, 3 * scale, 3 * scale],
    }
    text: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 64 * scale, "intermediate_size": 96 * scale, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "rope_parameters": rope, "bos_token_id": None, "eos_token_id": end, "pad_token_id": 0,
    }  # fmt: skip
    vision: dict[str, Any] = {"depth": 2, "num_heads": 2}
    if family == "qwen2_vl":
        vision |= {"embed_dim": 32 * scale, "hidden_size": 64 * scale, "mlp_ratio": 2}
    else:
        vision |= {"hidden_size": 32 * scale, "intermediate_size": 48 * scale, "out_hidden_size": 64 * scale}
    if family == "qwen2_5_vl":
        # Windows of 2 x 2 image tokens in the first block, the whole image in the second.
        vision |= {"window_size": 56, "fullatt_block_indexes": [1]}
    if family == "qwen3_vl":
        # Features of the first block go behind the language model's first layer. Patches of 14, as of the processor here.
        vision |= {"patch_size": 14, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
        text["head_dim"] = 16 * scale
        rope["mrope_interleaved"] = True
    name = {"qwen2_vl": "Qwen2VL", "qwen2_5_vl": "Qwen2_5_VL", "qwen3_vl": "Qwen3VL"}[family]
    config = getattr(transformers, f"{name}Config")(
        text_config=text,
        vision_config=vision,
        vision_start_token_id=start,
        vision_end_token_id=stop,
        image_token_id=image,
        video_token_id=video,
        tie_word_embeddings=tied,
    )
    config._attn_implementation = VISION_ATTENTION if ours else "eager"
    model: Any = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = end
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # The stock initialisation is so small that all next tokens are about equally likely.
            tables, others = spread
            own = tables if "embed_tokens" in name or "lm_head" in name else others
            weight.normal_(1.0 if "norm" in name or "ln_q" in name else 0.0, own)
    return model.to(getattr(torch, dtype)).eval()


def noise_image(path: Path, width: int, height: int, seed: int = 0) -> Path:
    """Write an RGB image of random blocks, in the format that the name says."""
    from PIL import Image

    generator = random.Random(seed)
    small = Image.frombytes("RGB", (5, 4), generator.randbytes(60))
    small.resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


def counted_tower(model: Any) -> list[int]:
    """The number of patches of every call of the model's vision tower from now on."""
    calls: list[int] = []
    compute = model.model.visual.forward

    def counted(pixels: Any, *rest: Any, **options: Any) -> Any:
        calls.append(len(pixels))
        return compute(pixels, *rest, **options)

    model.model.visual.forward = counted
    return calls


def colour_image(path: Path, colour: tuple[int, int, int], width: int = 56, height: int = 56) -> Path:
    """Write an RGB image of one colour."""
    from PIL import Image

    Image.new("RGB", (width, height), colour).save(path)
    return path


def looking_model(processor: Any, prompts: Any, answers: Any, steps: int = 40) -> Any:
    """The random model, trained on the spot to write `answers` [texts] after `prompts` [Prompt]; each kind has one length."""
    import torch

    model = vision_model(3)
    replies = [[*processor.tokenizer(text)["input_ids"], END] for text in answers]
    tokens = torch.tensor([[*prompt.tokens, *reply] for prompt, reply in zip(prompts, replies, strict=True)])
    start = len(prompts[0].tokens)
    types = torch.zeros_like(tokens)
    types[:, :start] = torch.stack([prompt.image_inputs["mm_token_type_ids"] for prompt in prompts])
    images = {key: torch.cat([p.image_inputs[key] for p in prompts]) for key in ("pixel_values", "image_grid_thw")}
    positions, _ = model.model.get_rope_index(tokens, mm_token_type_ids=types, image_grid_thw=images["image_grid_thw"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.0)
    for _ in range(steps):
        hidden = model.model(input_ids=tokens, position_ids=positions, use_cache=False, **images).last_hidden_state
        logits = model.lm_head(hidden[:, start - 1 : -1])
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, start:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05, "the model did not learn to look"
    return model
