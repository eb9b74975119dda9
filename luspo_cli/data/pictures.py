"""Whether two images are the same picture: equal sizes and equal pixels, upright and RGB, whatever files hold them.

Preparing data, the warning of held-out questions that are trained on and the blind control all ask here. One picture as PNG and
as BMP, or with other metadata, is one; a JPEG of it has other pixels, and is another.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from luspo_cli.errors import UsageError
from luspo_cli.records import ImageSource

if TYPE_CHECKING:
    from PIL import Image

Picture = tuple[tuple[int, int], str]
"""Height, width and digest of the pixels: equal for equal pictures and for no others."""


class Illustrated(Protocol):
    """A problem with its images, of training or of a benchmark."""

    @property
    def id(self) -> str: ...

    @property
    def images(self) -> tuple[ImageSource, ...]: ...


def picture_of(image: Image.Image) -> Picture:
    """What an upright RGB image shows."""
    return (image.height, image.width), hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest()


def pictures(problems: Sequence[Illustrated], *, broken_by_name: bool = False) -> dict[str, Picture]:
    """The picture of each image of the problems, by the image's name. A size that no other image has needs no look at pixels.

    Raises UsageError, naming the problem, for an image that cannot be read, or `broken_by_name` takes it for what its name says.
    """
    sizes: dict[str, tuple[int, int]] = {}
    digests: dict[str, str] = {}
    named = [(problem.id, image) for problem in problems for image in problem.images]
    images = {image.name: (identity, image) for identity, image in reversed(named)}
    for digesting in (False, True):
        images_of = Counter(sizes.values())
        for name, (identity, image) in images.items():
            try:
                if not digesting:
                    sizes[name] = image.size()
                elif images_of[sizes[name]] > 1 and name not in digests:
                    digests[name] = picture_of(image.load())[1]
            except UsageError as error:
                if not broken_by_name:
                    raise UsageError(f"problem '{identity}': {error}") from error
                sizes[name], digests[name] = (0, 0), name
    return {name: (size, digests.get(name, "")) for name, size in sizes.items()}
