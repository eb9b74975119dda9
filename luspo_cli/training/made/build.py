"""A fresh model of `[model.shape]` with a tokenizer of single characters, and with a processor where it has a vision tower.

All three are ordinary Hugging Face ones, of the classes Qwen2, Qwen3-MoE, Qwen2-MoE and Qwen2.5-VL, so that what is saved is read
as any other model.
"""

from __future__ import annotations

from typing import Any

import torch

from luspo_cli.config.model import ShapeConfig, VisionShapeConfig
from luspo_cli.errors import RunError
from luspo_cli.policy import attention, experts
from luspo_cli.policy.loading import LoadedModel
from luspo_cli.policy.model_shape import ENTRIES, vision_config
from luspo_cli.policy.reading import VISION_ATTENTION, vision_processor
from luspo_cli.training.made.terms import TERMS

CONTEXT = 4096
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
FEWEST_IMAGE_TOKENS, MOST_IMAGE_TOKENS = 4, 32
"""An image of another size is resized to within these."""
SPREAD, VISION_SPREAD = 0.02, 0.1
"""Standard deviation of the first weights. With the usual one a small model with images stays blind for hundreds of steps: what
its tower says of a picture is drowned in the tokens' own embeddings."""
TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
VISION_TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}{% endfor %}"
)


def new_model(shape: ShapeConfig, characters: str, seed: int) -> LoadedModel:
    """A model with random weights (float32); RunError where the vocabulary has no room for the characters."""
    tokenizer = made_tokenizer(shape.vocabulary, characters, bool(shape.vision.depth))
    attention.register()
    torch.manual_seed(seed)
    if not shape.vision.depth:
        return LoadedModel(_text_model(shape), tokenizer, (tokenizer.eos_token_id,))
    return LoadedModel(
        _vision_model(shape, tokenizer), tokenizer, (tokenizer.eos_token_id,), made_processor(shape.vision, tokenizer)
    )


def made_tokenizer(vocabulary: int, characters: str = TERMS.characters, images: bool = False) -> Any:
    """A character tokenizer as an ordinary Hugging Face one; its chat template is the bare text, with images where they stand."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<end>", *(VISION_TOKENS if images else ())]
    words = {word: number for number, word in enumerate([*special, *characters])}
    if len(words) > vocabulary:
        raise RunError(f"model.shape.vocabulary ({vocabulary}) must be at least {len(words)} for the made task")
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = VISION_TEMPLATE if images else TEMPLATE
    return tokenizer


def made_processor(vision: VisionShapeConfig, tokenizer: Any) -> Any:
    """The processor of a made vision model: images alone, in patches of the tower's size."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    pixels = (vision.patch * vision.merge) ** 2
    images = Qwen2VLImageProcessorPil(
        patch_size=vision.patch,
        temporal_patch_size=vision.temporal_patch,
        merge_size=vision.merge,
        min_pixels=FEWEST_IMAGE_TOKENS * pixels,
        max_pixels=MOST_IMAGE_TOKENS * pixels,
    )
    return vision_processor("qwen2_5_vl", images, tokenizer)


def _decoder_config(shape: ShapeConfig) -> dict[str, Any]:
    return {
        **{entry: getattr(shape, ours) for ours, entry in ENTRIES.items()},
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "bos_token_id": None,
    }


def _text_model(shape: ShapeConfig) -> Any:
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ends: dict[str, Any] = {"tie_word_embeddings": shape.tied_head, "initializer_range": SPREAD}
    if shape.experts.number:
        return _experts_model(shape, ends)
    config = Qwen2Config(**_decoder_config(shape), **ends)
    config._attn_implementation = attention.NAME
    return Qwen2ForCausalLM(config)


def _experts_model(shape: ShapeConfig, ends: dict[str, Any]) -> Any:
    import transformers

    experts.register()
    decoder = {
        **_decoder_config(shape),
        **ends,
        "num_experts": shape.experts.number,
        "num_experts_per_tok": shape.experts.per_token,
        "moe_intermediate_size": shape.experts.feed_forward,
        "mlp_only_layers": list(range(shape.experts.dense_layers)),
        "norm_topk_prob": True,  # as in the published Qwen3-MoE models
    }
    shared = shape.experts.shared_feed_forward
    family = "Qwen2Moe" if shared else "Qwen3Moe"
    decoder |= {"shared_expert_intermediate_size": shared} if shared else {"head_dim": shape.head_size}
    config = getattr(transformers, f"{family}Config")(**decoder)
    config._attn_implementation, config._experts_implementation = attention.NAME, experts.NAME
    return getattr(transformers, f"{family}ForCausalLM")(config)


def _vision_model(shape: ShapeConfig, tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    pairs = shape.width // shape.heads // 2  # rotary pairs of a head, shared out to time, height and width as 2 : 3 : 3
    across = 3 * pairs // 8
    start, end, image, video = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    rotary = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [pairs - 2 * across, across, across]}
    config = Qwen2_5_VLConfig(
        text_config={**_decoder_config(shape), "rope_parameters": rotary, "initializer_range": VISION_SPREAD},
        vision_config={**vision_config(shape.vision, shape.width), "initializer_range": VISION_SPREAD},
        tie_word_embeddings=shape.tied_head,
        vision_start_token_id=start,
        vision_end_token_id=end,
        image_token_id=image,
        video_token_id=video,
    )
    config.initializer_range = VISION_SPREAD  # of the head
    config._attn_implementation = VISION_ATTENTION
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model
