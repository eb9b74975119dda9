"""Made-up models and problems with images for the measurements beside this file."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from luspo_cli.config.model import ShapeConfig, VisionShapeConfig

SMALL = ShapeConfig(
    vocabulary=128,
    width=64,
    heads=2,
    key_value_heads=2,
    feed_forward=128,
    vision=VisionShapeConfig(depth=2, width=48, heads=2, feed_forward=96, full_attention=(1,)),
)
CHARACTERS = "".join(map(chr, range(32, 127)))
TOKEN_PIXELS = 28 * 28
MOST_TOKENS = 1280
"""Of an image, as in the presets of Qwen2.5-VL."""


def make_model(folder: Path, shape: ShapeConfig, dtype: str = "float32") -> None:
    """Write a model of the class Qwen2.5-VL with random weights and its processor."""
    import torch

    from luspo_cli.policy.loading import no_progress_bars
    from luspo_cli.training.made.build import new_model

    no_progress_bars()
    loaded = new_model(shape, CHARACTERS, 0)
    processor: Any = loaded.processor
    size = processor.image_processor.size
    processor.image_processor.size = type(size)(shortest_edge=4 * TOKEN_PIXELS, longest_edge=MOST_TOKENS * TOKEN_PIXELS)
    loaded.model.to(getattr(torch, dtype)).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_problems(folder: Path, number: int, width: int, height: int) -> None:
    """Write test.parquet with so many problems, and train.parquet with as many others; an image file of noise each."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    folder.mkdir()
    generator = random.Random(0)
    for place in range(number):
        coarse = Image.frombytes("RGB", (width // 4, height // 4), generator.randbytes(width // 4 * (height // 4) * 3))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(folder / f"{place}.jpg", quality=62)
    for split, question in (("train", "What is {}?"), ("test", "And what is {}?")):
        rows = [
            {
                "data_source": "made",
                "prompt": [{"role": "user", "content": f"<image>{question.format(place)}"}],
                "images": [f"{place}.jpg"],
                "reward_model": {"style": "rule", "ground_truth": str(place % 8)},
            }
            for place in range(number)
        ]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}.parquet")
