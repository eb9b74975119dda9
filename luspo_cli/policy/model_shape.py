"""A model's sizes, between `[model.shape]` and the configuration that transformers reads and writes; without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from luspo_cli.config.model import ShapeConfig, VisionShapeConfig
from luspo_cli.errors import UsageError, first_line

COUNTED_TOWERS = get_args(VisionShapeConfig.model_fields["family"].annotation)
"""Model types whose vision tower has a shape here; that of other ones which are trained (Qwen3-VL) is left out of estimates."""
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


ENTRIES = {
    "vocabulary": "vocab_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
}
"""Names in ShapeConfig → in a config.json."""


def read_shape(file: Path) -> ShapeConfig:
    """The shape that a config.json describes; UsageError where it describes no language model."""
    try:
        stored = json.loads(file.read_bytes())
        text = stored.get("text_config") or stored
        return ShapeConfig(
            **{ours: text[entry] for ours, entry in ENTRIES.items()},
            key_value_heads=text.get("num_key_value_heads") or text["num_attention_heads"],
            tied_head=bool(stored.get("tie_word_embeddings") or text.get("tie_word_embeddings")),
            vision=_read_vision(stored),
        )
    except ValidationError as error:
        fault = error.errors()[0]
        entry = ENTRIES.get(str(fault["loc"][0]), ".".join(map(str, fault["loc"])))
        raise UsageError(
            f"{file} does not describe a language model: {entry} = {fault['input']!r} ({fault['msg']})"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        said = f"no entry {error}" if isinstance(error, KeyError) else first_line(error)
        raise UsageError(f"{file} does not describe a language model: {said}; take a complete copy") from None


def uncounted_tower(file: Path) -> str | None:
    """The model type of a config.json whose vision tower `read_shape` leaves out; None where it leaves out none."""
    stored = json.loads(file.read_bytes())
    family = stored.get("model_type")
    return str(family) if stored.get("vision_config") and family not in COUNTED_TOWERS else None


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


def _read_vision(stored: Mapping[str, Any]) -> VisionShapeConfig:
    """None for a tower that is not counted: `uncounted_tower` names it."""
    tower, family = stored.get("vision_config"), stored.get("model_type")
    if not tower or family not in COUNTED_TOWERS:
        return VisionShapeConfig()
    tower = {**LEFT_OUT, **tower}
    older = family == "qwen2_vl"
    width = tower["embed_dim" if older else "hidden_size"]
    more = {} if older else {"window": tower["window_size"], "full_attention": tuple(tower["fullatt_block_indexes"])}
    return VisionShapeConfig(
        family=family,  # type: ignore[arg-type]  # one of COUNTED_TOWERS
        depth=tower["depth"],
        width=width,
        heads=tower["num_heads"],
        feed_forward=int(width * tower["mlp_ratio"]) if older else tower["intermediate_size"],
        patch=tower["patch_size"],
        temporal_patch=tower["temporal_patch_size"],
        merge=tower["spatial_merge_size"],
        **more,
    )
