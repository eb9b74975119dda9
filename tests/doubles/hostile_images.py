"""Image files as the wild has them: each with the reason that a preparation leaves it out for, or None where it is read."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import Any

from PIL import Image

EXIF_ORIENTATION = 0x0112


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    out = BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    return Image.effect_noise((width, height), 90).convert(mode)


def empty_png(width: int, height: int) -> bytes:
    """A PNG whose header promises a size and whose pixels are missing: a bomb of few bytes."""
    return png(width, height, b"\0" * 64)


def png(width: int, height: int, rows: bytes, interlaced: bool = False) -> bytes:
    """A PNG in RGB with these rows, whatever its header promises."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def shortened(whole: bytes, missing: int) -> bytes:
    """A PNG of one chunk of pixels without its last rows: Pillow reads it and leaves them zero."""
    start = whole.index(b"IDAT")
    (length,) = struct.unpack(">I", whole[start - 4 : start])
    rows = zlib.decompress(whole[start + 4 : start + 4 + length])
    (height,) = struct.unpack(">I", whole[20:24])
    packed = zlib.compress(rows[: len(rows) // height * (height - missing)])
    chunk = b"IDAT" + packed
    rest = whole[start + 8 + length :]
    return whole[: start - 4] + struct.pack(">I", len(packed)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + rest


def hostile_images() -> dict[str, tuple[bytes, str | None]]:
    """File name -> its bytes, and the reason it is left out for."""
    grey = noise(40, 30, "L")
    sideways = Image.Exif()
    sideways[EXIF_ORIENTATION] = 6
    sixteen = Image.new("I;16", (8, 8))
    sixteen.putpixel((1, 1), 40_000)
    palette = noise(40, 30).quantize(16)
    frames = [noise(20, 20, "P") for _ in range(3)]
    whole, jpeg = encoded(noise(200, 200)), encoded(noise(200, 200), "JPEG")
    gif, webp = encoded(noise(90, 90, "P"), "GIF"), encoded(noise(90, 90), "WEBP")
    tiff, bmp = encoded(noise(90, 90), "TIFF"), encoded(noise(90, 90), "BMP")
    heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 100
    svg = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="5" height="5"/></svg>'
    unreadable, unsupported, large, thin = (
        f"image_{reason}" for reason in ("unreadable", "not_supported", "too_large", "too_thin")
    )
    return {
        "plain.png": (encoded(noise(40, 30)), None),
        "plain.jpg": (encoded(noise(41, 30), "JPEG"), None),
        "grey.png": (encoded(grey), None),
        "one_bit.png": (encoded(noise(42, 30, "1")), None),
        "cmyk.jpg": (encoded(noise(43, 30, "CMYK"), "JPEG"), None),
        "sixteen_bit.png": (encoded(sixteen), None),
        "palette.png": (encoded(palette), None),
        "palette_transparent.png": (encoded(palette, transparency=0), None),
        "alpha.png": (encoded(noise(44, 30, "RGBA")), None),
        "grey_alpha.png": (encoded(noise(45, 30, "LA")), None),
        "moving.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), None),
        "moving.webp": (encoded(frames[1], "WEBP", save_all=True, append_images=frames[:1]), None),
        "pages.tiff": (encoded(noise(46, 30), "TIFF", save_all=True, append_images=[noise(46, 30)]), None),
        "sideways.jpg": (encoded(noise(47, 30), "JPEG", exif=sideways), None),
        "one_pixel.png": (encoded(Image.new("RGB", (1, 1))), None),
        "wide.png": (encoded(noise(400, 40)), None),
        "jpeg_called.png": (encoded(noise(48, 30), "JPEG"), None),
        "thin.png": (encoded(noise(603, 3)), thin),
        "truncated.png": (whole[: len(whole) // 2], unreadable),
        "end_gone.png": (encoded(noise(49, 30))[:-20], None),  # a checksum and the end mark: every pixel is there
        "end_gone.gif": (encoded(noise(50, 30, "P"), "GIF")[:-2], None),
        "pixels_gone.png": (encoded(noise(49, 31))[:-24], unreadable),
        "rows_missing.png": (png(20, 30, b"\0" * (1 + 3 * 20) * 29), unreadable),  # Pillow leaves the last one black
        "interlaced.png": (png(8, 8, b"\0" * (15 + 3 * 64), interlaced=True), None),
        "interlaced_missing.png": (png(8, 8, b"\0" * (14 + 3 * 56), interlaced=True), unreadable),
        "end_gone.jpg": (jpeg[:-1], unreadable),  # what a JPEG lacks at its end, its decoder does not say
        "truncated.jpg": (jpeg[: len(jpeg) // 2], unreadable),
        "last_bytes_gone.jpg": (jpeg[:-200], unreadable),
        "truncated.gif": (gif[: len(gif) // 2], unreadable),
        "truncated.webp": (webp[: len(webp) // 2], unreadable),
        "truncated.tiff": (tiff[: len(tiff) // 2], unreadable),
        "truncated.bmp": (bmp[: len(bmp) // 2], unreadable),
        "header_only.png": (whole[:40], unreadable),
        "float.tiff": (encoded(Image.new("F", (4, 4)), "TIFF"), unreadable),
        "empty.png": (b"", unreadable),
        "hundred_megapixels.png": (empty_png(10_000, 10_000), large),
        "bomb.png": (empty_png(60_000, 60_000), large),
        "web_page.png": (b"<html>404 not found</html>", unsupported),
        "text.jpg": (b"see attachment", unsupported),
        "drawing.svg": (svg, unsupported),
        "phone.heic": (heic, unsupported),
        "page.pdf": (b"%PDF-1.4\n%\xe2\xe3\n1 0 obj<<>>endobj\n", unsupported),
        "program.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", unsupported),
        "pointer.png": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n", unsupported),
    }
