"""A prompt's images as vLLM takes them: what training itself reads, so that the sampler sees nothing else.

vLLM can read image files itself, but would resize them by torchvision and expand the prompt's marks by its own count. Here the
prompt comes with its image tokens in place and each image with the pixels that our processor made, or with the features that a
frozen tower made of them (policy/images.py), which vLLM's own tower then does not compute: nothing is left to decide.

An image's name is a hash of these values and of the version of the weights. vLLM keeps what the vision tower made of an image,
and the prompts that it stands in, under that name; emptying its prefix cache does not empty the tower's.
"""

from __future__ import annotations

import base64
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luspo_cli.errors import RunError
from luspo_cli.records import Prompt

_RAW = 3
"""vLLM's code for the bytes of a tensor inside its messages (vllm.v1.serial_utils)."""


@dataclass(frozen=True, slots=True)
class PromptImage:
    """One image of a prompt."""

    name: str
    offset: int
    """Of its first token in the prompt."""
    length: int
    """Number of its tokens."""
    grid: Tensor  # [3], in patches
    values: Tensor
    """[patches, values of a patch], or features [tokens, layers * width]."""
    key: str
    """How vLLM calls these values."""


def prompt_images(prompt: Prompt, version: str) -> list[PromptImage]:
    """The images of a prompt in their order, with views of its values; RunError where its tokens do not fit them."""
    inputs = prompt.image_inputs
    if inputs is None:
        return []
    grids, kinds = inputs["image_grid_thw"], inputs["mm_token_type_ids"].tolist()
    patches = grids.prod(-1).tolist()
    per_token = max(1, sum(patches) // max(1, sum(kinds)))
    lengths = [number // per_token for number in patches]
    if features := "image_features" in inputs:
        key, values = "image_embeds", inputs["image_features"].flatten(1)
    else:
        key, values = "pixel_values", inputs["pixel_values"]
    if len(values) != sum(lengths if features else patches):
        raise _unfit(prompt)
    found, end = [], 0
    for grid, own, length in zip(grids, values.split(lengths if features else patches), lengths, strict=True):
        offset = kinds.index(1, end) if 1 in kinds[end:] else len(kinds)
        end = offset + length
        if kinds[offset:end] != [1] * length or not length:
            raise _unfit(prompt)
        digest = hashlib.sha256(_bytes(own) + str(grid.tolist()).encode()).hexdigest()
        found.append(PromptImage(f"{version}-{digest}", offset, length, grid, own, key))
    return found


def _unfit(prompt: Prompt) -> RunError:
    return RunError(
        f"the image tokens of problem '{prompt.problem_id}' do not fit its images: the model's processor and its chat template"
        " belong to different models"
    )


def engine_prompt(prompt: Prompt, images: Sequence[PromptImage]) -> dict[str, Any]:
    """What an engine in this process is asked with; without images plain tokens."""
    from vllm.inputs import mm_input, tokens_input
    from vllm.multimodal.inputs import (
        MultiModalFieldConfig,
        MultiModalFieldElem,
        MultiModalKwargsItem,
        MultiModalKwargsItems,
        PlaceholderRange,
    )

    tokens = list(prompt.tokens)
    if not images:
        return dict(tokens_input(tokens))
    grid = MultiModalFieldConfig.batched("image", keep_on_cpu=True).field
    items = [
        MultiModalKwargsItem(
            {
                image.key: MultiModalFieldElem(
                    image.values, MultiModalFieldConfig.flat("image", [slice(0, len(image.values))]).field
                ),
                "image_grid_thw": MultiModalFieldElem(image.grid, grid),
            }
        )
        for image in images
    ]
    places = [PlaceholderRange(offset=image.offset, length=image.length) for image in images]
    names = [image.name for image in images]
    return dict(mm_input(tokens, MultiModalKwargsItems({"image": items}), {"image": names}, {"image": places}))


def server_features(images: Sequence[PromptImage], values_in: torch.dtype | None) -> dict[str, Any]:
    """The `features` of a request to a server: with the values in this type, or without, where it has them under their names."""
    return {
        "mm_hashes": {"image": [image.name for image in images]},
        "mm_placeholders": {"image": [{"offset": image.offset, "length": image.length} for image in images]},
        "kwargs_data": {"image": [_message(image, values_in) if values_in else None for image in images]},
    }


def _message(image: PromptImage, dtype: torch.dtype) -> str:
    """An image in the form of vLLM's own messages: msgpack in base64."""
    fields = {
        image.key: {
            "data": image.values.to(dtype),
            "field": ["flat", {"slices": [[0, len(image.values), None]], "dim": 0, "keep_on_cpu": False}],
        },
        "image_grid_thw": {"data": image.grid, "field": ["batched", {"keep_on_cpu": True}]},
    }
    return base64.b64encode(_packed(fields)).decode("ascii")


def _packed(value: Any) -> bytes:
    """`value` in msgpack, in its longest forms; a tensor is its type, shape and bytes."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if isinstance(value, str):
        return struct.pack(">BI", 0xDB, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BIB", 0xC9, len(value), _RAW) + value
    if isinstance(value, Tensor):
        return _packed([str(value.dtype).removeprefix("torch."), list(value.shape), _bytes(value)])
    if isinstance(value, dict):
        parts = (_packed(key) + _packed(entry) for key, entry in value.items())
        return struct.pack(">BI", 0xDF, len(value)) + b"".join(parts)
    return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(_packed, value))


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
