"""Time and peak memory of preparing made-up data with images in ViRL39K's layout and size.

    python bench/prepare_images.py FOLDER [ROWS] [relative|absolute|bytes]

Makes a parquet and an images.zip of about 90 KB an image in FOLDER (3.7 GB at 39,000 rows; kept for the next call), prepares them
in a process of their own into FOLDER/out, and prints one line. Every image is another file; some hundred motifs repeat in them.
"""

from __future__ import annotations

import os
import random
import resource
import subprocess
import sys
import time
import zipfile
from io import BytesIO
from pathlib import Path

from shared.child import resident_peak_gib

MOTIFS = 300
WIDTH, HEIGHT = 640, 480


def motif(generator: random.Random) -> bytes:
    """A JPEG of about 90 KB: coarse noise, which compresses like a photograph."""
    from PIL import Image

    coarse = Image.frombytes("RGB", (WIDTH // 3, HEIGHT // 3), generator.randbytes(WIDTH // 3 * (HEIGHT // 3) * 3))
    out = BytesIO()
    coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(out, "JPEG", quality=62)
    return out.getvalue()


def make(folder: Path, rows: int) -> None:
    import pyarrow
    import pyarrow.parquet

    generator = random.Random(0)
    motifs = [motif(generator) for _ in range(MOTIFS)]
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(rows):
            # Bytes behind an image's end belong to no picture, and make it another file.
            archive.writestr(f"images/{number}.jpg", motifs[number % MOTIFS] + number.to_bytes(8, "big"))
    table = pyarrow.Table.from_pylist(
        [
            {
                "question": f"<image>\nWhat is the area of figure {number}, in square centimetres?",
                "answer": rf"\boxed{{{number}}}",
                "PassRate_32BTrained": 1.0,
                "PassRate_7BBase": generator.randrange(9) / 8,
                "category": "made",
                "source": "made",
                "qid": f"made-{number}",
                "image": [f"images/{number}.jpg"],
            }
            for number in range(rows)
        ]
    )
    pyarrow.parquet.write_table(table, folder / "39Krelease.parquet")


def prepare(folder: Path, stored_as: str) -> None:
    from luspo_cli.data.columns import SourceOptions
    from luspo_cli.data.prepare import prepare

    began = time.monotonic()
    prepared = prepare(
        ["virl39k"],
        folder / "out",
        options=SourceOptions(from_path=folder),
        if_exists="replace",
        images=stored_as,  # type: ignore[arg-type]
    )
    seconds = time.monotonic() - began
    images = prepared.manifest["images"]
    processor = resource.getrusage(resource.RUSAGE_SELF)
    peak = 1024 * resident_peak_gib()
    print(
        f"{prepared.rows['train']} rows, {images['files']} images, {images['bytes'] / 1e9:.2f} GB, {stored_as}: {seconds:.0f} s"
        f" ({processor.ru_utime + processor.ru_stime:.0f} s of one core), peak {peak:.0f} MiB"
    )


def main() -> None:
    folder = Path(sys.argv[1])
    rows = int(sys.argv[2]) if len(sys.argv) > 2 else 39_000
    stored_as = sys.argv[3] if len(sys.argv) > 3 else "relative"
    if os.environ.get("PREPARE_ONLY"):
        prepare(folder, stored_as)
        return
    if not (folder / "39Krelease.parquet").exists():
        make(folder, rows)
    # A process of its own: what making the data took does not count.
    subprocess.run([sys.executable, *sys.argv], env={**os.environ, "PREPARE_ONLY": "1"}, check=True)


if __name__ == "__main__":
    main()
