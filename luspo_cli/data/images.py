"""Image files → what a vision model's processor reads; the files are data of others and are treated as such.

An image lies inside the data folder and is one of a few raster formats, recognised by its content and not by its name.
Transparent parts become white, as the Qwen authors' own loading does: dropping the alpha channel instead would turn a figure
with black lines on a transparent ground into a black square. Sizes are left to the model's processor, which resizes by its own
smallest and largest number of pixels; nothing here shrinks or cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy
from PIL import Image, ImageOps

from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.errors import UsageError, first_line
from luspo_cli.records import Message

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Raster formats that Pillow decodes itself; formats that start another program (EPS) are not among them."""


def image_file(path: str, folder: Path) -> Path:
    """The absolute path of the image that data in `folder` calls `path`; UsageError where it leaves the folder or is missing."""
    root = folder.resolve()
    try:
        file = (root / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL character, a loop of links
        raise UsageError(f"the image path {path!r} cannot be followed ({error}); correct it") from error
    if PurePosixPath(path).is_absolute() or not file.is_relative_to(root):
        raise UsageError(f"the image path {path} leaves the data folder {folder}; copy the image into it")
    if not file.is_file():
        raise UsageError(f"the image {path} is missing in {folder}; put it there, or leave its problem out")
    return file


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def load(self) -> Image.Image:
        """The image, upright, RGB, transparent parts white; UsageError where the file is missing or is no whole image."""
        with _open(self.path) as image:
            try:
                return _rgb(ImageOps.exif_transpose(image))
            except Exception as error:  # decoders raise whatever a broken file makes them raise
                raise UsageError(_unreadable(self.path, error)) from error

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, from the file's header alone; raises UsageError as `load` does."""
        with _open(self.path) as image:
            return image.height, image.width


def image_messages(messages: Sequence[Message], images: int) -> list[dict[str, Any]]:
    """The turns as a processor's chat template reads them, each `<image>` mark an image part of its own.

    Raises UsageError unless there are as many marks as images.
    """
    marks = sum(message.content.count(IMAGE_MARK) for message in messages)
    if marks != images:
        raise UsageError(
            f"the prompt has {marks} '{IMAGE_MARK}' marks and {images} images; write one mark where each image belongs"
        )
    turns = []
    for message in messages:
        texts = message.content.split(IMAGE_MARK)
        parts: list[dict[str, str]] = []
        for number, text in enumerate(texts):
            if number:
                parts.append({"type": "image"})
            if text:
                parts.append({"type": "text", "text": text})
        turns.append({"role": message.role, "content": message.content if len(texts) == 1 else parts})
    return turns


def _open(file: Path) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except FileNotFoundError:
        raise UsageError(
            f"the image {file.name} is missing in {file.parent}; put it there, or leave its problem out"
        ) from None
    except Exception as error:
        raise UsageError(_unreadable(file, error)) from error


def _unreadable(file: Path, error: BaseException) -> str:
    return (
        f"the image {file.name!r} in {file.parent} cannot be read ({first_line(error)});"
        f" replace it with a whole {', '.join(FORMATS)} file"
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a known range")
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion cuts everything above 255 to white
        image = Image.fromarray((numpy.asarray(image).clip(0, 2**16 - 1) // 256).astype(numpy.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert("RGB")
