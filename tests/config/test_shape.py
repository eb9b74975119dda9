"""The count of parameters against a real model and against published sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from doubles.models import random_qwen2
from luspo_cli.config.layers import resolve_train
from luspo_cli.config.model import ShapeConfig, VisionShapeConfig
from luspo_cli.policy.model_shape import read_shape, vision_config

PUBLISHED_TOWER = VisionShapeConfig(
    depth=32, width=1280, heads=16, feed_forward=3420, window=112, full_attention=(7, 15, 23, 31)
)
TOWERS = {
    "tiny": (
        VisionShapeConfig(depth=3, width=24, heads=3, feed_forward=36, patch=7, window=28, full_attention=(1,)),
        16,
    ),
    "one frame": (VisionShapeConfig(depth=1, width=16, heads=2, feed_forward=8, temporal_patch=1, merge=3), 20),
    "qwen2-vl": (VisionShapeConfig(family="qwen2_vl", depth=2, width=24, heads=2, feed_forward=72, patch=6), 16),
    "qwen2.5-vl-7b": (PUBLISHED_TOWER, 3584),
    "qwen2-vl-7b": (VisionShapeConfig(family="qwen2_vl", depth=32, width=1280, heads=16, feed_forward=5120), 3584),
}


@pytest.mark.parametrize("tied", [False, True])
def test_the_count_is_that_of_a_model_of_this_shape(tied: bool) -> None:
    shape = ShapeConfig(vocabulary=50, layers=3, width=24, heads=4, key_value_heads=2, feed_forward=40, tied_head=tied)
    model = random_qwen2(50, layers=3, width=24, heads=4, key_value_heads=2, feed_forward=40, tied=tied)
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(("preset", "published"), [("qwen2.5-0.5b", 494_032_768), ("qwen2.5-7b", 7_615_616_512)])
def test_presets_have_the_published_sizes(preset: str, published: int) -> None:
    assert resolve_train(preset=preset).model.shape.parameters() == published


def real_model(vision: VisionShapeConfig, shape: ShapeConfig) -> Any:
    """transformers' own model of this shape, without memory for its weights."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLConfig
    from transformers import Qwen2VLForConditionalGeneration as Qwen2VL

    older = vision.family == "qwen2_vl"
    kind: Any = Qwen2VLConfig if older else Qwen2_5_VLConfig
    config = kind(
        text_config={
            "vocab_size": shape.vocabulary,
            "hidden_size": shape.width,
            "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers,
            "num_attention_heads": shape.heads,
            "num_key_value_heads": shape.key_value_heads,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
        },
        vision_config=vision_config(vision, shape.width),
        tie_word_embeddings=shape.tied_head,
    )
    model: Any = Qwen2VL if older else Qwen2_5_VLForConditionalGeneration
    with torch.device("meta"):
        return model(config)


@pytest.mark.parametrize("name", TOWERS)
def test_a_towers_count_is_that_of_the_real_class_and_its_configuration_is_read_back(name: str, tmp_path: Path) -> None:
    vision, width = TOWERS[name]
    shape = ShapeConfig(
        width=width, heads=2, key_value_heads=1, feed_forward=24, tied_head="2.5" in name, vision=vision
    )
    model = real_model(vision, shape)
    assert vision.parameters(width) == sum(weight.numel() for weight in model.model.visual.parameters())
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())
    model.config.save_pretrained(tmp_path)
    read = read_shape(tmp_path / "config.json")
    keys = {"window", "full_attention"} if vision.family == "qwen2_vl" else set()  # this family has no such thing
    assert read.model_dump(exclude={"vision": keys}) == shape.model_dump(exclude={"vision": keys})


def test_the_published_configuration_in_its_older_form_has_the_published_size(tmp_path: Path) -> None:
    """Qwen2.5-VL-7B-Instruct's own config.json: the text part is not in a section of its own."""
    stored = {
        "model_type": "qwen2_5_vl", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "tie_word_embeddings": False,
        "vision_config": {
            "depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16, "in_chans": 3,
            "out_hidden_size": 3584, "patch_size": 14, "spatial_merge_size": 2, "spatial_patch_size": 14,
            "window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "temporal_patch_size": 2,
        },
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(stored))
    shape = read_shape(tmp_path / "config.json")
    assert shape.vision == PUBLISHED_TOWER
    assert shape.parameters() == 8_292_166_656  # as its weights' index says: 16,584,333,312 bytes in bfloat16


QWEN3_VL = {
    "tiny": {
        "depth": 3, "hidden_size": 24, "num_heads": 3, "intermediate_size": 36, "patch_size": 7, "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    },
    "no further features": {
        "depth": 2, "hidden_size": 16, "num_heads": 2, "intermediate_size": 8, "num_position_embeddings": 4,
        "deepstack_visual_indexes": [],
    },
    "defaults": {"depth": 27, "hidden_size": 1152, "num_heads": 16, "intermediate_size": 4304},
}  # fmt: skip


@pytest.mark.parametrize("name", QWEN3_VL)
def test_the_count_of_a_qwen3_vl_model_is_that_of_the_real_class(name: str, tmp_path: Path) -> None:
    """Its tower has position embeddings, and further mergers behind some blocks; its decoder is Qwen3's."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    text = {
        "model_type": "qwen3_vl_text", "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 2, 2]},
    }  # fmt: skip
    stored = {"model_type": "qwen3_vl", "text_config": text, "vision_config": {**QWEN3_VL[name], "out_hidden_size": 24}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    with torch.device("meta"):
        model: Any = Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_pretrained(tmp_path))

    def weights(part: Any) -> int:
        return sum(weight.numel() for weight in part.parameters())

    shape = read_shape(tmp_path / "config.json")
    assert shape.vision.parameters(24) == weights(model.model.visual)
    assert shape.decoder_parameters() == weights(model.model.language_model) + weights(model.lm_head)
    assert shape.parameters() == weights(model)
    assert shape.vision.feature_layers == 1 + len(model.config.vision_config.deepstack_visual_indexes)


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "Mistral"])
def test_the_count_of_another_decoder_is_that_of_the_real_class(kind: str, biases: bool, tmp_path: Path) -> None:
    """Qwen3's heads have a width of their own, and scales; of these, Llama and Qwen3 can have biases, on all four matrices."""
    import torch
    import transformers

    sizes = {
        "vocab_size": 50, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "tie_word_embeddings": True, "pad_token_id": 0,
    }  # fmt: skip
    more = {} if kind == "Mistral" else {"attention_bias": biases}
    with torch.device("meta"):
        model: Any = getattr(transformers, f"{kind}ForCausalLM")(
            getattr(transformers, f"{kind}Config")(**sizes, **more)
        )
    model.config.save_pretrained(tmp_path)
    shape = read_shape(tmp_path / "config.json")
    assert shape.parameters() == sum(weight.numel() for weight in model.parameters())
    q_and_o = 2 * sum(
        weight.numel() for name, weight in model.named_parameters() if name.endswith("0.self_attn.q_proj.weight")
    )
    assert shape.adapter_parameters(1, ("q_proj", "o_proj")) == 3 * 2 * (24 + q_and_o // 2 // 24)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"width": 32}, r"model\.shape\.vision\.width needs model\.shape\.vision\.depth"),
        ({"depth": 1, "width": 36, "heads": 2}, r"width = 36 is no multiple of 4 times .*heads = 2"),
        ({"depth": 1, "family": "qwen2_vl", "feed_forward": 100}, r"feed_forward = 100 is no multiple of .*width = 64"),
        ({"depth": 1, "window": 27}, r"window = 27 is smaller than one image token \(28 pixels"),
        ({"depth": 2, "full_attention": [2]}, r"names block 2; there are 0 to 1"),
    ],
)
def test_a_tower_that_cannot_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        VisionShapeConfig.model_validate(values)
