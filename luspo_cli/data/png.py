"""Whether a PNG holds all the pixels that its header promises: Pillow leaves rows that are not there zero, without a word.

So a decoded image whose last row is not zero is whole, and only of the others are the packed rows unpacked a second time and
counted, which takes about half as long as decoding.
"""

from __future__ import annotations

import struct
import zlib
from typing import BinaryIO

from PIL import Image

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""By colour type (PNG specification, section 11.2.1)."""
_WHOLE = ((0, 0, 1, 1),)
_INTERLACED = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and the steps, of each pass (section 8.2)."""
_AT_ONCE = 2**20
"""Bytes unpacked at a time."""


def may_lack_rows(image: Image.Image) -> bool:
    """Whether rows of a decoded PNG, as it came, could be missing: its last row is zero, or the order of its rows is another."""
    last = image.crop((0, image.height - 1, image.width, image.height))
    return "interlace" in image.info or not last.tobytes().strip(b"\0")


def has_all_pixels(stream: BinaryIO) -> bool:
    """Whether the packed rows of a PNG that Pillow reads, which is read from its start, are as many bytes as its size needs.

    What stands behind them, a checksum or the end mark, is not asked for.
    """
    stream.seek(8)
    unpacking, missing = zlib.decompressobj(), 0
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IHDR":
            missing = _row_bytes(stream.read(length))
        elif kind == b"IDAT":
            packed = stream.read(length)
            while packed and missing > 0 and not unpacking.eof:
                missing -= len(unpacking.decompress(packed, _AT_ONCE))
                packed = unpacking.unconsumed_tail
            if missing <= 0:
                return True
        else:
            stream.seek(length, 1)
        stream.seek(4, 1)
    return missing - len(unpacking.flush()) <= 0


def _row_bytes(header: bytes) -> int:
    """Bytes of all rows, each with the one that names its filter."""
    width, height, depth, colour, _, _, interlace = struct.unpack(">IIBBBBB", header[:13])
    total = 0
    for column, row, across, down in _INTERLACED if interlace else _WHOLE:
        columns, rows = -((column - width) // across), -((row - height) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * depth * _CHANNELS[colour] // 8))
    return total
