"""The images of a preparation: each is decoded once, to see that it is whole, and kept once, under a name made from its bytes.

The bytes stay as they came: nothing is resized, turned or encoded anew. One image is in memory at a time; what is remembered of
the others is a name each, and a digest of what it shows. Files that no written row names in the end (of rows that repeat others,
say, or of an excluded benchmark) are removed again.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from luspo_cli.data.archives import ImagePlaces, refuse_large
from luspo_cli.data.image_columns import RawImage
from luspo_cli.data.images import FORMATS, decoded
from luspo_cli.data.left_out import LeftOut, UnusableImage
from luspo_cli.data.pictures import Picture, picture_of
from luspo_cli.data.writing import StoredAs

FOLDER = "images"
MOST_ASPECT = 200
"""Of the longer side to the shorter one, as in the processors of Qwen2-VL and its successors."""

_SUFFIXES = {name: f".{name.lower()}" for name in FORMATS} | {"JPEG": ".jpg", "MPO": ".jpg"}


@dataclass(slots=True)
class ImageCounts:
    """What the manifest says of a preparation's images."""

    used: int = 0
    """References of written rows."""
    files: int = 0
    """Images with different bytes among them."""
    bytes: int = 0
    animated: int = 0
    """Of the files: those of which only the first frame is seen."""


@dataclass(slots=True)
class ImageStore:
    """Images by content below `folder`, which is written now and will be `out`."""

    folder: Path
    out: Path
    stored_as: StoredAs
    _by_path: dict[tuple[ImagePlaces, str], str | UnusableImage] = field(default_factory=dict)
    _by_content: dict[bytes, str] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    """Name of a kept file -> its bytes."""
    _pictures: dict[str, str] = field(default_factory=dict)
    """Name of a kept file -> what it shows."""
    _animated: set[str] = field(default_factory=set)
    _used: set[str] = field(default_factory=set)
    _references: int = 0

    def keep(self, image: RawImage, places: ImagePlaces) -> str:
        """Keep an image and return its name, equal for equal bytes; UnusableImage where it cannot be used."""
        if image.content is not None:
            return self._kept(image.content, "in the table")
        if image.path is None:
            raise UnusableImage(LeftOut.IMAGE_MISSING, "the row names no image in one of its places")
        key = (places, image.path)
        if key not in self._by_path:
            try:
                self._by_path[key] = self._kept(places.read(image.path, self._scratch), image.path)
            except UnusableImage as error:
                self._by_path[key] = error.with_traceback(None)
        found = self._by_path[key]
        if isinstance(found, UnusableImage):
            raise found
        return found

    def _kept(self, content: bytes, called: str) -> str:
        if not content:
            raise UnusableImage(LeftOut.IMAGE_UNREADABLE, f"the image {called} is empty")
        refuse_large(content, called)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest not in self._by_content:
            suffix, animated, picture = _checked(content, called)
            name = f"{FOLDER}/{digest.hex()[:2]}/{digest.hex()}{suffix}"
            file = self.folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            self._sizes[name] = len(content)
            self._by_content[digest] = name
            self._pictures[name] = str(picture)
            if animated:
                self._animated.add(name)
        return self._by_content[digest]

    def pictures(self, names: Sequence[str]) -> tuple[str, ...]:
        """What kept images show, equal for equal pictures, in whatever files."""
        return tuple(self._pictures[name] for name in names)

    def column(self, names: Sequence[str]) -> list[Any]:
        """What the `images` column of a row holds for kept images, which count as used from here on."""
        self._references += len(names)
        self._used.update(names)
        if self.stored_as == "bytes":
            return [{"bytes": (self.folder / name).read_bytes(), "path": None} for name in names]
        return [str(self.out.resolve() / name) if self.stored_as == "absolute" else name for name in names]

    def finish(self) -> ImageCounts:
        """Remove what no row names, or all where the rows hold the bytes, and return the counts."""
        shutil.rmtree(self._scratch, ignore_errors=True)
        if self.stored_as == "bytes" or not self._used:
            shutil.rmtree(self.folder / FOLDER, ignore_errors=True)
        else:
            for name in self._sizes.keys() - self._used:
                file = self.folder / name
                file.unlink()
                if not any(file.parent.iterdir()):
                    file.parent.rmdir()
        size = sum(self._sizes[name] for name in self._used)
        return ImageCounts(self._references, len(self._used), size, len(self._animated & self._used))

    @property
    def _scratch(self) -> Path:
        return self.folder / ".unpacked"


def _checked(content: bytes, called: str) -> tuple[str, bool, Picture]:
    """The suffix of an image's format, whether it moves, and what it shows; UnusableImage where a model could not be shown it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large and odd files, which are counted or fine
        image = decoded(BytesIO(content), called)
        if max(image.size) > MOST_ASPECT * min(image.size):
            raise UnusableImage(
                LeftOut.IMAGE_TOO_THIN,
                f"the image {called} has {image.width} x {image.height} pixels, thinner than {MOST_ASPECT}:1",
            )
        with Image.open(BytesIO(content), formats=FORMATS) as original:
            moves = original.format != "MPO" and _is_animated(original)
            return _SUFFIXES[original.format or ""], moves, picture_of(image)


def _is_animated(image: Image.Image) -> bool:
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # something behind the first frame is damaged, and nothing reads it
        return True
