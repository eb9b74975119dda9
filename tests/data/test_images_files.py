"""Image files as they come: formats, transparency, sizes, paths that leave the folder, files that are broken."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from doubles.hostile_images import encoded, noise, shortened
from doubles.vision import END, IMAGE, VIDEO, character_tokenizer, noise_image, vision_processor
from luspo_cli.data.images import ImageFile, image_file, image_messages
from luspo_cli.data.prepare import prepare
from luspo_cli.data.problems import load_problems
from luspo_cli.errors import UsageError
from luspo_cli.policy.inputs import fitting, prompt_inputs, prompt_length
from luspo_cli.records import Message, Problem


@pytest.fixture(scope="module")
def processor() -> Any:
    return vision_processor()


def problem(text: str, *images: Path, identity: str = "p7") -> Problem:
    return Problem(identity, (Message("user", text),), "1", "t", tuple(map(ImageFile, images)))


def test_transparent_parts_become_white_and_half_transparent_ones_half_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (0, 0, 0, 0), (0, 0, 0, 128)])
    image.save(tmp_path / "rgba.png")
    found = ImageFile(tmp_path / "rgba.png").load()
    assert found.mode == "RGB"
    assert [found.getpixel((x, 0)) for x in range(3)] == [(10, 20, 30), (255, 255, 255), (127, 127, 127)]


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 0])
    image.putdata([0, 1])
    image.save(tmp_path / "palette.png", transparency=1)
    image.save(tmp_path / "opaque.png")
    found, opaque = ImageFile(tmp_path / "palette.png").load(), ImageFile(tmp_path / "opaque.png").load()
    assert [found.getpixel((x, 0)) for x in range(2)] == [(200, 0, 0), (255, 255, 255)]
    assert [opaque.getpixel((x, 0)) for x in range(2)] == [(200, 0, 0), (0, 0, 0)]


def test_sixteen_bit_grey_keeps_its_shades(tmp_path: Path) -> None:
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 128 * 256 + 9, 65535)):
        image.putpixel((x, 0), value)
    image.save(tmp_path / "grey.png")
    found = ImageFile(tmp_path / "grey.png").load()
    assert [found.getpixel((x, 0)) for x in range(3)] == [(0, 0, 0), (128, 128, 128), (255, 255, 255)]


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("black", [0, 1, 30])
def test_a_png_is_whole_or_refused_whatever_its_last_rows_show(tmp_path: Path, mode: str, black: int) -> None:
    """One row is missing, or several; the lowest rows of the whole picture are zero, or none is."""
    image = noise(21, 30, mode)
    image.paste(
        0 if image.getbands() in (("L",), ("1",), ("P",), ("I",)) else (0,) * len(image.getbands()),
        (0, 30 - black, 21, 30),
    )
    whole = encoded(image)
    (tmp_path / "whole.png").write_bytes(whole)
    assert ImageFile(tmp_path / "whole.png").load().size == (21, 30)
    for missing in (1, 5):
        (tmp_path / "short.png").write_bytes(shortened(whole, missing))
        with pytest.raises(UsageError, match="rows of pixels are missing"):
            ImageFile(tmp_path / "short.png").load()


def test_a_jpeg_named_png_and_a_picture_taken_sideways(tmp_path: Path) -> None:
    noise_image(tmp_path / "a.jpg", 40, 20).rename(tmp_path / "a.png")
    assert ImageFile(tmp_path / "a.png").load().size == (40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to see it upright
    Image.new("RGB", (40, 20)).save(tmp_path / "side.jpg", exif=exif)
    assert ImageFile(tmp_path / "side.jpg").load().size == (20, 40)


def test_a_path_stays_inside_the_folder(tmp_path: Path) -> None:
    noise_image(tmp_path / "outside.png", 30, 30)
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    noise_image(folder / "inside.png", 30, 30)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    assert ImageFile(image_file("sub/../inside.png", folder)).load().size == (30, 30)
    for path in ("../outside.png", str(tmp_path / "outside.png"), "link.png", "sub/../../outside.png"):
        with pytest.raises(UsageError, match=r"leaves the data folder .*; copy the image into it"):
            image_file(path, folder)


def test_a_missing_or_broken_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the image no\.png is missing in [^\n]*$"):
        image_file("no.png", tmp_path)
    for read in (ImageFile.load, ImageFile.size):
        with pytest.raises(UsageError, match=r"^the image no\.png is missing in [^\n]*$"):
            read(ImageFile(tmp_path / "no.png"))
    (tmp_path / "text.png").write_text("<html>not found</html>")
    (tmp_path / "empty.png").touch()
    whole = noise_image(tmp_path / "whole.png", 300, 300).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    Image.new("F", (4, 4)).save(tmp_path / "float.tiff")
    for name in ("text.png", "empty.png", "cut.png", "a.eps", "float.tiff", "nul\0.png"):
        with pytest.raises(UsageError, match=r"^the image '[^\n]*cannot be read \([^\n]*$"):
            ImageFile(tmp_path / name).load()


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise_image(tmp_path / "big.png", 100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match="decompression bomb"):
        ImageFile(tmp_path / "big.png").load()


def test_marks_become_image_parts_in_order() -> None:
    turns = (Message("system", "Be brief."), Message("user", "<image>\nA <image>or<image>"))
    assert image_messages(turns, 3) == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image"},
                {"type": "text", "text": "\nA "},
                {"type": "image"},
                {"type": "text", "text": "or"},
                {"type": "image"},
            ],
        },
    ]


@pytest.mark.parametrize(("text", "images"), [("no mark", 1), ("<image><image>", 1), ("<image>", 2)])
def test_marks_and_images_must_be_as_many(processor: Any, tmp_path: Path, text: str, images: int) -> None:
    noise_image(tmp_path / "a.png", 60, 60)
    marks = text.count("<image>")
    asked = problem(text, *[tmp_path / "a.png"] * images)
    for read in (prompt_inputs, prompt_length):
        with pytest.raises(
            UsageError, match=rf"^problem 'p7': the prompt has {marks} '<image>' marks and {images} image"
        ):
            read(asked, processor.tokenizer, processor)


def test_tokens_of_a_prompt_by_hand(processor: Any, tmp_path: Path) -> None:
    """200 x 100 with at most 28 * 28 * 16 pixels: scaled by 1 / 1.2627 and cut to whole 28s, 140 x 56, so 5 x 2 tokens."""
    noise_image(tmp_path / "a.png", 200, 100)
    inputs = prompt_inputs(problem("<image>Hi", tmp_path / "a.png"), processor.tokenizer, processor)
    assert inputs.image_inputs is not None
    assert inputs.image_inputs["image_grid_thw"].tolist() == [[1, 4, 10]]
    assert inputs.image_inputs["pixel_values"].shape == (40, 3 * 2 * 14 * 14)
    kinds = inputs.image_inputs["mm_token_type_ids"].tolist()
    assert kinds == [int(token == IMAGE) for token in inputs.tokens]
    assert sum(kinds) == 10
    text = processor.tokenizer.decode(inputs.tokens)
    wanted = (
        "<|im_start|>user\n<|vision_start|>"
        + "<|image_pad|>" * 10
        + "<|vision_end|>Hi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text == wanted


def test_sixteen_to_one_is_read_and_more_than_two_hundred_to_one_is_refused(processor: Any, tmp_path: Path) -> None:
    noise_image(tmp_path / "wide.png", 400, 25)  # 392 x 28: 14 x 1 tokens
    noise_image(tmp_path / "line.png", 603, 3)
    inputs = prompt_inputs(problem("<image>", tmp_path / "wide.png"), processor.tokenizer, processor)
    assert inputs.image_inputs is not None
    assert inputs.image_inputs["image_grid_thw"].tolist() == [[1, 2, 28]]
    assert inputs.tokens.count(IMAGE) == 14
    for read in (prompt_inputs, prompt_length):
        with pytest.raises(UsageError, match=r"^problem 'p7': absolute aspect ratio must be smaller than 200"):
            read(problem("<image>", tmp_path / "line.png"), processor.tokenizer, processor)


@pytest.mark.parametrize("size", [(1, 1), (400, 40), (40, 400)])
def test_a_pixel_and_ten_to_one_go_from_a_table_to_a_prompt(
    processor: Any, size: tuple[int, int], tmp_path: Path
) -> None:
    noise_image(tmp_path / "a.png", *size)
    (tmp_path / "mine.jsonl").write_text('{"question": "What?", "answer": "1", "image": "a.png"}\n')
    prepare([str(tmp_path / "mine.jsonl")], tmp_path / "out")
    (asked,) = load_problems(tmp_path / "out")
    inputs = prompt_inputs(asked, processor.tokenizer, processor)
    assert inputs.image_inputs is not None
    ((frames, rows, columns),) = inputs.image_inputs["image_grid_thw"].tolist()
    tokens = frames * rows * columns // 4
    assert inputs.tokens.count(IMAGE) == tokens >= 1
    assert (rows < columns, rows > columns) == (size[1] < size[0], size[1] > size[0])
    assert inputs.image_inputs["pixel_values"].isfinite().all()
    assert prompt_length(asked, processor.tokenizer, processor) == len(inputs.tokens)


def test_the_length_known_from_the_headers_is_the_length(processor: Any, tmp_path: Path) -> None:
    generator = random.Random(5)
    names = []
    for n in range(25):
        width, height = generator.randint(1, 700), generator.randint(1, 700)
        if max(width, height) > 200 * min(width, height):
            continue
        names.append(noise_image(tmp_path / f"{n}.png", width, height, n))
    for first, second in zip(names, [*names[1:], names[0]], strict=True):
        asked = problem("<image>a <image> b", first, second)
        inputs = prompt_inputs(asked, processor.tokenizer, processor)
        assert prompt_length(asked, processor.tokenizer, processor) == len(inputs.tokens), (first, second)


def test_long_image_prompts_are_left_out_and_counted_never_cut(processor: Any, tmp_path: Path) -> None:
    noise_image(tmp_path / "small.png", 56, 56)  # 4 tokens
    noise_image(tmp_path / "large.png", 112, 112)  # 16 tokens
    problems = [problem("<image>", tmp_path / name, identity=name) for name in ("small.png", "large.png", "small.png")]
    problems.append(problem("words only", identity="text"))

    def length_of(one: Problem) -> int:
        return prompt_length(one, processor.tokenizer, processor)

    lengths = [length_of(one) for one in problems]
    assert lengths[1] - lengths[0] == 12
    kept, found = fitting(problems, length_of, lengths[0] + 11)
    assert [one.id for one in kept] == ["small.png", "small.png", "text"]
    assert (found[0], len(found)) == (lengths[0], 3)
    kept, found = fitting(problems, length_of, lengths[1])
    assert (len(kept), max(found)) == (4, lengths[1])


def test_text_that_spells_a_placeholder_is_refused(processor: Any, tmp_path: Path) -> None:
    """Otherwise the model would look for pixels that are not there, or shift those of the next row."""
    noise_image(tmp_path / "a.png", 60, 60)
    for token, number in (("<|image_pad|>", IMAGE), ("<|video_pad|>", VIDEO)):
        assert processor.tokenizer.convert_tokens_to_ids(token) == number
        for asked in (problem(f"<image> {token}", tmp_path / "a.png"), problem(f"see {token}")):
            for read in (prompt_inputs, prompt_length):
                with pytest.raises(UsageError, match=r"'p7': its text contains <\|(image|video)_pad\|>, which stands"):
                    read(asked, processor.tokenizer, processor)
    asked = problem("<image> <|vision_end|>", tmp_path / "a.png")
    with pytest.raises(UsageError, match=r"'p7': its text contains <\|vision_end\|>, which stands"):
        prompt_length(asked, processor.tokenizer, processor)


def test_a_template_without_a_place_for_images_is_refused(tmp_path: Path) -> None:
    noise_image(tmp_path / "a.png", 60, 60)
    blind = vision_processor()
    blind.chat_template = "{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(UsageError, match="wrote 0 places for 1 images; take the template of a vision model"):
        prompt_inputs(problem("<image>", tmp_path / "a.png"), blind.tokenizer, blind)


def test_without_images_the_mark_is_text_and_the_prompt_that_of_the_tokenizer(processor: Any) -> None:
    tokenizer = character_tokenizer()
    asked = problem("What does <image> mean in HTML?")
    inputs = prompt_inputs(asked, tokenizer, processor)
    assert inputs.image_inputs is None
    assert inputs == prompt_inputs(asked, tokenizer)
    assert "<image> mean" in tokenizer.decode(inputs.tokens)
    assert END not in inputs.tokens


def test_images_need_a_vision_model_and_files(processor: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'p7' has images; this model reads text only"):
        prompt_inputs(problem("<image>", tmp_path / "a.png"), processor.tokenizer)
    for read in (prompt_inputs, prompt_length):
        with pytest.raises(UsageError, match=r"'p7': the image a\.png is missing in .*; put it there"):
            read(problem("<image>", tmp_path / "a.png"), processor.tokenizer, processor)
