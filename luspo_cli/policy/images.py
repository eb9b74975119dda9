"""The images of a batch of rows: which token each belongs to, its rotary positions, and what the vision tower makes of it.

Rows of one group share their prompt, so each prompt's images go through the tower once a batch, and every row takes what belongs
to its tokens. Where the tower does not change (`tower_is_frozen`) they go through it once a step: `with_features` puts the
tower's features in the place of the pixels, and sampler, old, new and reference log-probs all read those. A batch with features
and one with pixels take the same way behind the tower, so both give the same numbers.

The language model is called with embeddings and not with pixels: what stands in the places of image tokens is then decided here
for every family, Qwen3-VL's further features of deeper layers (DeepStack, arXiv 2406.04334) included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from luspo_cli.records import Prompt


@dataclass(frozen=True, slots=True)
class BatchImages:
    """The images of a batch of rows; each distinct prompt's once, in the order of its first row."""

    kinds: Tensor
    """[B, W]: 1 on image tokens, 0 on text and padding."""
    row_grids: Tensor
    """[images of all rows, 3] in patches, row by row."""
    places: Tensor
    """[image tokens of all rows]: which of the distinct prompts' image tokens each is, row by row."""
    grids: Tensor
    """[distinct images, 3] in patches."""
    pixels: Tensor | None
    """[patches of the distinct images, values]; None where `features` are there."""
    features: Tensor | None
    """[image tokens of the distinct prompts, layers, width], as `image_features` returns them."""
    tokens: int
    """Image tokens of the distinct prompts."""


def batch_images(
    inputs: Sequence[Mapping[str, Any] | None], width: int, device: torch.device | str
) -> BatchImages | None:
    """The images of rows of `width` columns from their prompts' inputs, None for a row without; None where no row has any."""
    there = [own for own in inputs if own is not None]
    if not there:
        return None
    distinct = list({id(own): own for own in there}.values())
    kinds = torch.zeros(len(inputs), width, dtype=torch.long)  # responses and padding are text: 0
    for row, own in enumerate(inputs):
        if own is not None:
            kinds[row, : len(own["mm_token_type_ids"])] = own["mm_token_type_ids"]
    places, begin = {}, 0
    for own in distinct:
        number = int(own["mm_token_type_ids"].sum())
        places[id(own)] = torch.arange(begin, begin + number)
        begin += number

    def joined(key: str) -> Tensor | None:
        return torch.cat([own[key] for own in distinct]).to(device) if key in distinct[0] else None

    return BatchImages(
        kinds=kinds.to(device),
        row_grids=torch.cat([own["image_grid_thw"] for own in there]).to(device),
        places=torch.cat([places[id(own)] for own in there]).to(device),
        grids=torch.cat([own["image_grid_thw"] for own in distinct]).to(device),
        pixels=joined("pixel_values"),
        features=joined("image_features"),
        tokens=begin,
    )


def image_features(model: Any, pixels: Tensor, grids: Tensor) -> Tensor:
    """What the vision tower makes of images: [image tokens, layers, width].

    The first layer stands in the places of the image tokens; further ones, of Qwen3-VL alone, are added behind its first layers.
    """
    found = model.model.get_image_features(pixels, grids)
    layers = [found.pooler_output, *(getattr(found, "deepstack_features", None) or ())]
    return torch.stack([torch.cat(tuple(images)) for images in layers], dim=1)


def rotary_positions(model: Any, tokens: Tensor, images: BatchImages | None) -> Tensor:
    """Rotary positions, [1, W] or with images [3, B, W] (time, height, width), of rows padded on the right.

    Padding counts as text after the row, so positions of real tokens do not depend on it.
    """
    if images is None:
        return torch.arange(tokens.shape[1], device=tokens.device)[None]
    positions: Tensor = model.model.get_rope_index(
        tokens, mm_token_type_ids=images.kinds, image_grid_thw=images.row_grids
    )[0]
    return positions


def hidden_states(model: Any, tokens: Tensor, positions: Tensor, images: BatchImages | None, **options: Any) -> Tensor:
    """The last hidden states [B, W, width] of rows padded on the right; `options` go to the language model."""
    inside = model.model
    if images is None:
        read = {"input_ids": tokens}
    else:
        inside, read = model.model.language_model, _embedded(model, tokens, images)
    states: Tensor = inside(position_ids=positions, **read, **options).last_hidden_state
    return states


def _embedded(model: Any, tokens: Tensor, images: BatchImages) -> dict[str, Any]:
    """What the language model is called with in the place of tokens."""
    features = images.features
    if features is None:
        features = image_features(model, images.pixels, images.grids)  # type: ignore[arg-type]  # one of the two is there
    if len(features) != images.tokens:
        raise ValueError(f"the images have {len(features)} features and their prompts {images.tokens} image tokens")
    features = features[images.places]  # [image tokens of all rows, layers, width]
    there = images.kinds.bool()
    embedded = model.model.get_input_embeddings()(tokens)
    read = {"inputs_embeds": embedded.masked_scatter(there[..., None], features[:, 0].to(embedded.dtype))}
    if features.shape[1] > 1:
        read |= {"visual_pos_masks": there, "deepstack_visual_embeds": list(features[:, 1:].unbind(1))}
    return read


def tower_is_frozen(model: Any) -> bool:
    """Whether a model has a vision tower and none of its weights is trained."""
    tower = getattr(model.model, "visual", None)
    return tower is not None and not any(weight.requires_grad for weight in tower.parameters())


@torch.no_grad()
def with_features(prompt: Prompt, model: Any) -> Prompt:
    """The prompt with its images as the tower of `model` reads them, held on the CPU, instead of their pixels."""
    if prompt.image_inputs is None:
        return prompt
    inputs = dict(prompt.image_inputs)
    device = next(model.model.visual.parameters()).device
    pixels, grids = inputs.pop("pixel_values").to(device), inputs["image_grid_thw"].to(device)
    inputs["image_features"] = image_features(model, pixels, grids).cpu()
    return replace(prompt, image_inputs=inputs)
