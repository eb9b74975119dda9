"""A model's sizes, between `[model.shape]` and the configuration that transformers reads and writes; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from luspo_cli.config.model import ExpertsShapeConfig, ShapeConfig, VisionShapeConfig
from luspo_cli.errors import UsageError, first_line
from luspo_cli.policy.supported import EXPERT_MODELS, VISION_MODELS

LEFT_OUT = {
    "depth": 32,
    "num_heads": 16,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
    "mlp_ratio": 4,
    "window_size": 112,
    "fullatt_block_indexes": (7, 15, 23, 31),
}
"""What transformers takes for entries of a vision_config that are not there."""
LEFT_OUT_OF_QWEN3 = {"patch_size": 16, "num_position_embeddings": 2304, "deepstack_visual_indexes": (8, 16, 24)}
QWEN3_HEAD = 128
"""Numbers of one head of a Qwen3 decoder whose config.json does not say."""

ENTRIES = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}
"""Names in ShapeConfig → in a config.json."""


class OtherDecoder(ShapeConfig):
    """The size of a decoder of another kind than Qwen2: a model of it is read, never made."""

    head_width: int
    biases: bool
    """Of the four matrices of the attention."""
    head_norms: bool
    """Whether queries and keys of a head are scaled, as in Qwen3."""

    @property
    def head_size(self) -> int:
        return self.head_width

    def attention_vectors(self) -> int:
        biases = (self.heads + 2 * self.key_value_heads) * self.head_width + self.width
        return self.biases * biases + self.head_norms * 2 * self.head_width


class Qwen3Tower(VisionShapeConfig):
    """The size of a Qwen3-VL vision tower: position embeddings, and further mergers behind some of its blocks (DeepStack)."""

    family: Literal["qwen3_vl"] = "qwen3_vl"  # type: ignore[assignment]  # none that a configuration can name
    positions: int
    deepstack: tuple[int, ...]
    """Blocks, counted from 0, whose output has a merger of its own."""

    @property
    def feature_layers(self) -> int:
        return 1 + len(self.deepstack)

    def parameters(self, text_width: int) -> int:
        merged = self.width * self.merge**2
        further = (
            2 * merged + merged * merged + merged + merged * text_width + text_width
        )  # its norm is of merged patches
        beside = self.width * (1 + self.positions)  # with the bias of the patch embedding
        return super().parameters(text_width) + beside + len(self.deepstack) * further


def read_shape(file: Path) -> ShapeConfig:
    """The shape that a config.json describes; UsageError where it describes no language model."""
    try:
        return shape_of(json.loads(file.read_bytes()))
    except ValidationError as error:
        fault = error.errors()[0]
        entry = ENTRIES.get(str(fault["loc"][0]), ".".join(map(str, fault["loc"])))
        raise UsageError(
            f"{file} does not describe a language model: {entry} = {fault['input']!r} ({fault['msg']})"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"no entry {error}" if isinstance(error, KeyError) else first_line(error)
        raise UsageError(f"{file} does not describe a language model: {said}; take a complete copy") from None


def shape_of(stored: Mapping[str, Any]) -> ShapeConfig:
    """The shape that a transformers configuration describes; KeyError, TypeError or ValueError where it describes none."""
    text = stored.get("text_config") or stored
    kind, more = _decoder(stored, text)
    return kind(
        **{ours: text[entry] for ours, entry in ENTRIES.items()},
        key_value_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
        experts=_experts(text),
        tied_head=bool(stored.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
        vision=_read_vision(stored),
        **more,
    )


def vision_config(vision: VisionShapeConfig, text_width: int) -> dict[str, Any]:
    """The `vision_config` of a transformers model of this shape."""
    shared = {
        "depth": vision.depth,
        "num_heads": vision.heads,
        "patch_size": vision.patch,
        "temporal_patch_size": vision.temporal_patch,
        "spatial_merge_size": vision.merge,
    }
    if vision.family == "qwen2_vl":
        return shared | {
            "embed_dim": vision.width,
            "hidden_size": text_width,
            "mlp_ratio": vision.feed_forward // vision.width,
        }
    return shared | {
        "hidden_size": vision.width,
        "out_hidden_size": text_width,
        "intermediate_size": vision.feed_forward,
        "window_size": vision.window,
        "fullatt_block_indexes": list(vision.full_attention),
    }


def _decoder(stored: Mapping[str, Any], text: Mapping[str, Any]) -> tuple[type[ShapeConfig], dict[str, Any]]:
    """The class of a decoder's shape and what it has beside the sizes."""
    kind = text.get("model_type") or stored.get("model_type") or "qwen2"
    if kind.startswith("qwen2"):
        return ShapeConfig, {}
    newer = kind.startswith("qwen3")
    head = text.get("head_dim") or (QWEN3_HEAD if newer else text["hidden_size"] // text["num_attention_heads"])
    return OtherDecoder, {"head_width": head, "biases": bool(text.get("attention_bias")), "head_norms": newer}


def _experts(text: Mapping[str, Any]) -> ExpertsShapeConfig:
    """None of a type whose experts are not known here."""
    number = text.get("num_local_experts", text.get("num_experts", 0))
    if text.get("model_type") not in EXPERT_MODELS or not number:
        return ExpertsShapeConfig()
    only, step = text.get("mlp_only_layers") or (), text.get("decoder_sparse_step", 1)
    layers = range(text["num_hidden_layers"])
    return ExpertsShapeConfig(
        number=number,
        per_token=text["num_experts_per_tok"],
        feed_forward=text["moe_intermediate_size"],
        shared_feed_forward=text.get("shared_expert_intermediate_size", 0),
        dense_layers=sum(layer in only or (layer + 1) % step != 0 for layer in layers),
    )


def _read_vision(stored: Mapping[str, Any]) -> VisionShapeConfig:
    """Without depth for a model without a tower, or with one of a family that is not trained here."""
    tower, family = stored.get("vision_config"), stored.get("model_type")
    if not tower or family not in VISION_MODELS:
        return VisionShapeConfig()
    newer, older = family == "qwen3_vl", family == "qwen2_vl"
    tower = {**LEFT_OUT, **(LEFT_OUT_OF_QWEN3 if newer else {}), **tower}
    width = tower["embed_dim" if older else "hidden_size"]
    sizes = {
        "depth": tower["depth"],
        "width": width,
        "heads": tower["num_heads"],
        "feed_forward": int(width * tower["mlp_ratio"]) if older else tower["intermediate_size"],
        "patch": tower["patch_size"],
        "temporal_patch": tower["temporal_patch_size"],
        "merge": tower["spatial_merge_size"],
    }
    if newer:
        further = tuple(tower["deepstack_visual_indexes"])
        return Qwen3Tower(**sizes, positions=tower["num_position_embeddings"], deepstack=further)
    if older:
        return VisionShapeConfig(family="qwen2_vl", **sizes)
    windows = {"window": tower["window_size"], "full_attention": tuple(tower["fullatt_block_indexes"])}
    return VisionShapeConfig(**sizes, **windows)
