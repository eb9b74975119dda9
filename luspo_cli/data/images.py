"""Images in files and in parquet → what a vision model's processor reads; they are data of others and are treated as such.

An image is one of a few raster formats, recognised by its content and not by its name. Transparent parts become white, as the
Qwen authors' own loading does: dropping the alpha channel instead would turn a figure with black lines on a transparent ground
into a black square. Of an animation the first frame is read. Sizes are left to the model's processor, which resizes by its own
smallest and largest number of pixels; nothing here shrinks or cuts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy
from PIL import Image, ImageOps, UnidentifiedImageError

from luspo_cli.data.image_columns import BEGINNINGS
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.data.png import has_all_pixels, may_lack_rows
from luspo_cli.data.prompts import IMAGE_MARK
from luspo_cli.errors import UsageError, first_line
from luspo_cli.records import Message

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
"""Raster formats that Pillow decodes itself; formats that start another program (EPS) are not among them."""
_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)
"""EXIF orientations that exchange width and height."""


def image_file(path: str, folder: Path, *, absolute: bool = False, linked: Path | None = None) -> Path:
    """The absolute path of the image that data in `folder` calls `path`; `absolute`: it may be one, wherever it leads.

    `linked`: another folder, to which a link may lead. UnusableImage where the path leaves the folder or the file is missing.
    """
    free = absolute and PurePosixPath(path).is_absolute()
    root = folder.resolve()
    try:
        file = (root / path).resolve()
        there = file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a NUL character, a loop of links, a name that is too long
        raise UnusableImage(
            LeftOut.IMAGE_MISSING, f"the image path {path!r} cannot be followed ({error}); correct it"
        ) from error
    inside = file.is_relative_to(root) or (linked is not None and file.is_relative_to(linked))
    if not free and (PurePosixPath(path).is_absolute() or not inside):
        raise UnusableImage(
            LeftOut.IMAGE_OUTSIDE, f"the image path {path} leaves the data folder {folder}; copy the image into it"
        )
    if not there:
        raise UnusableImage(
            LeftOut.IMAGE_MISSING,
            f"the image {path} is missing in {folder}; put it there, or leave its problem out",
        )
    return file


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file of its own."""

    path: Path

    @property
    def name(self) -> str:
        return str(self.path)

    def load(self) -> Image.Image:
        """The image, upright, RGB, transparent parts white; UnusableImage where the file is missing or is no whole image."""
        return decoded(self.path, self._called)

    def size(self) -> tuple[int, int]:
        """Height and width in pixels, from the file's header alone; raises UnusableImage as `load` does."""
        return size_of(self.path, self._called)

    def content(self) -> bytes:
        """The file's bytes."""
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise UnusableImage(LeftOut.IMAGE_MISSING, f"the image {self._called} cannot be read ({error})") from error

    @property
    def _called(self) -> str:
        return f"{self.path.name!r} in {self.path.parent}"


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An image inside a parquet file, as bytes in the column `images`; read anew each time, with the rows written beside it."""

    file: Path
    row_group: int
    row: int
    """Within the row group."""
    number: int
    """Within the row."""

    @property
    def name(self) -> str:
        return f"{self.file}, {self._place}"

    def load(self) -> Image.Image:
        """As `ImageFile.load`."""
        return decoded(BytesIO(self.content()), self._called)

    def size(self) -> tuple[int, int]:
        """As `ImageFile.size`."""
        return size_of(BytesIO(self.content()), self._called)

    def content(self) -> bytes:
        """The image's bytes; UnusableImage where the file was moved, changed, or has none in this place."""
        try:
            cell = _images_of_group(self.file, self.row_group)[self.row].as_py()
            image = cell[self.number] if isinstance(cell, list) else cell
        except (OSError, IndexError, ValueError) as error:  # pyarrow's own errors are ValueErrors and OSErrors
            raise UnusableImage(
                LeftOut.IMAGE_MISSING, f"the image {self._called} cannot be read ({first_line(error)})"
            ) from error
        found = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(found, bytes):
            raise UnusableImage(LeftOut.IMAGE_MISSING, f"the image {self._called} has no bytes")
        return found

    @property
    def _called(self) -> str:
        return f"{self._place} of {self.file}"

    @property
    def _place(self) -> str:
        return f"image {self.number} of row {self.row} of row group {self.row_group}"


@lru_cache(maxsize=1)
def _images_of_group(file: Path, row_group: int) -> Any:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file) as parquet:
        return parquet.read_row_group(row_group, columns=["images"]).column("images")


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


def decoded(source: Path | BinaryIO, called: str) -> Image.Image:
    """The image of a file, upright and RGB; UnusableImage, naming it as it is `called`, where there is no whole image to read."""
    with _open(source, called) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if image.format == "PNG" and may_lack_rows(image) and not _has_all_pixels(source):
                raise ValueError("image file is truncated: rows of pixels are missing")
            return _rgb(upright)
        except Exception as error:  # decoders raise whatever a broken file makes them raise
            raise _unreadable(called, error, LeftOut.IMAGE_UNREADABLE) from error


def size_of(source: Path | BinaryIO, called: str) -> tuple[int, int]:
    """Height and width of the upright image, from its header; raises UnusableImage as `decoded` does."""
    with _open(source, called) as image:
        # A PNG without EXIF in front of its pixels would be decoded in search of some behind them.
        exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
        lying = exif.get(_ORIENTATION) in _LYING
        return (image.width, image.height) if lying else (image.height, image.width)


def _open(source: Path | BinaryIO, called: str) -> Image.Image:
    fail = partial(_unreadable, called)
    try:
        image = Image.open(source, formats=FORMATS)
    except FileNotFoundError as error:
        where = f"{source.name} is missing in {source.parent}" if isinstance(source, Path) else f"{called} is missing"
        raise UnusableImage(
            LeftOut.IMAGE_MISSING, f"the image {where}; put it there, or leave its problem out"
        ) from error
    except UnidentifiedImageError as error:
        if _begins_like_an_image(source):
            raise fail(ValueError("it is cut off or damaged"), LeftOut.IMAGE_UNREADABLE) from error
        raise fail(ValueError("its content is of another kind"), LeftOut.IMAGE_NOT_SUPPORTED) from error
    except Image.DecompressionBombError as error:
        raise _too_large(called) from error
    except Exception as error:
        raise fail(error, LeftOut.IMAGE_UNREADABLE) from error
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        image.close()
        raise _too_large(called)
    return image


def _has_all_pixels(source: Path | BinaryIO) -> bool:
    if not isinstance(source, Path):
        return has_all_pixels(source)
    with source.open("rb") as stream:
        return has_all_pixels(stream)


def _begins_like_an_image(source: Path | BinaryIO) -> bool:
    if isinstance(source, Path):
        with source.open("rb") as stream:
            return stream.read(8).startswith(BEGINNINGS)
    source.seek(0)
    return source.read(8).startswith(BEGINNINGS)


def _unreadable(called: str, error: BaseException, reason: LeftOut) -> UnusableImage:
    said = f"the image {called} cannot be read ({first_line(error)})"
    return UnusableImage(reason, f"{said}; replace it with a whole {', '.join(FORMATS)} file")


def _too_large(called: str) -> UnusableImage:
    """One sentence for both of Pillow's bounds: it warns from the lower one on, and refuses from twice as many pixels."""
    return UnusableImage(
        LeftOut.IMAGE_TOO_LARGE,
        f"the image {called} cannot be read (it has more than {Image.MAX_IMAGE_PIXELS:,} pixels, as a decompression bomb has);"
        " scale it down, or leave its problem out",
    )


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers without a known range")
    if image.mode == "I" and int(numpy.asarray(image).max()) > 2**16 - 1:
        raise ValueError("its pixels are 32-bit numbers without a known range")
    if image.mode.startswith("I"):  # 16 bits a pixel; Pillow's own conversion cuts everything above 255 to white
        image = Image.fromarray((numpy.asarray(image).clip(0, 2**16 - 1) // 256).astype(numpy.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        opaque = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image.convert("RGB")
