"""A model's files as transformers reads them, weights aside: configuration, tokenizer, image processor, a model without numbers.

Loading and the dry run both read here, so that what one refuses the other knows. Whatever the library raises over a file becomes
one sentence in `read_part`, which names the entry to blame: the one without which the file is read.

A vision tower keeps torch's own attention: its patches see each other in both directions, and `policy.attention` is causal.
Images are always read through Pillow, never through torchvision, which resizes a little differently: what a prompt contains
must not depend on a package that happens to be installed.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from luspo_cli.config.data import DataConfig
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.rollout import TemplateValue
from luspo_cli.errors import UsageError, first_line
from luspo_cli.files import read_object
from luspo_cli.policy import attention, experts
from luspo_cli.policy.inputs import check_template, check_template_arguments
from luspo_cli.policy.model_files import config_file
from luspo_cli.policy.supported import EXPERT_MODELS, VISION_MODELS, graph_unfit, unsupported
from luspo_cli.policy.whole import broken_tokenizer, broken_weights

IMAGE_PROCESSOR = "preprocessor_config.json"
VISION_ATTENTION = {"text_config": attention.NAME, "vision_config": "sdpa"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What is known of a model before its weights are read."""

    configuration: Any
    """With `generation_config`."""
    architecture: Any
    """The class of transformers whose `from_pretrained` reads the weights."""
    options: dict[str, Any]
    """For that call."""
    tokenizer: Any
    processor: Any | None
    """Of a vision-language model: the tokenizer together with the image processor."""
    end_tokens: tuple[int, ...]


@contextmanager
def held_back(*, heard: bool) -> Iterator[None]:
    """Hold back what transformers logs in this block; it is `heard` after a success, and never beside a refusal."""
    held: dict[str, logging.LogRecord] = {}

    def hold(record: logging.LogRecord) -> bool:
        held[record.getMessage()] = record  # once, however often a file is read
        return False

    handlers = logging.getLogger("transformers").handlers
    for handler in handlers:
        handler.addFilter(hold)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(hold)
    for record in held.values() if heard else ():
        logging.getLogger(record.name).handle(record)


@held_back(heard=True)
def read_files(config: ModelConfig, source: str, template_arguments: Mapping[str, TemplateValue]) -> ModelFiles:
    """Read the model at `source`, a folder or a hub id; UsageError where its files are none, or the engine cannot use them."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    attention.register()
    experts.register()
    trusted = config.trust_remote_code
    options = {"revision": config.revision, "trust_remote_code": trusted}
    configured = cache(lambda place: AutoConfig.from_pretrained(place, **options))
    kind = read_part(config, source, "config.json", configured)
    if reason := unsupported(kind.to_dict(), config.path):  # with the defaults that config.json leaves out
        raise UsageError(reason)
    if config.kernels.decode == "graph" and (reason := graph_unfit(kind.to_dict())):
        raise UsageError(reason)
    vision = hasattr(kind, "vision_config")
    attended: dict[str, Any] = {"attn_implementation": VISION_ATTENTION if vision else attention.NAME}
    if kind.model_type in EXPERT_MODELS:
        attended["experts_implementation"] = experts.NAME

    def architecture(kind: Any) -> Any:
        return AutoModelForImageTextToText if hasattr(kind, "vision_config") else AutoModelForCausalLM

    def empty(place: str) -> Any:
        kind = copy.deepcopy(configured(place))
        with torch.device("meta"):
            return architecture(kind).from_config(kind, dtype=torch.float32, trust_remote_code=trusted, **attended)

    model, tied = read_part(config, source, "config.json", empty), is_tied(kind)
    _refuse_structure(model, config.path)
    embeddings, folder = kind.get_text_config().vocab_size, Path(source)
    if folder.is_dir():  # a hub id's files may not be here yet
        reason = read_part(config, source, "weights", lambda _: broken_weights(folder, model, tied, config.path))
        if reason := reason or broken_tokenizer(folder, embeddings, config.path):
            raise UsageError(reason)

    def generation(place: str) -> Any:
        from transformers import GenerationConfig

        try:
            return GenerationConfig.from_pretrained(place, revision=config.revision)
        except OSError:
            if (Path(place) / "generation_config.json").exists():
                raise
            return GenerationConfig.from_model_config(kind)

    def tokenizer_of(place: str) -> Any:
        found = AutoTokenizer.from_pretrained(place, **options)
        found.decode(found("0", add_special_tokens=False)["input_ids"])
        return found

    kind.generation_config = read_part(config, source, "generation_config.json", generation)
    tokenizer = read_part(config, source, "tokenizer_config.json", tokenizer_of, "tokenizer")
    if not tokenizer("0", add_special_tokens=False)["input_ids"]:
        raise UsageError(f"the tokenizer of model '{config.path}' has no tokens; take a complete copy")
    processor = None
    if vision:
        if tokenizer.chat_template is None:
            raise UsageError(
                f"model '{config.path}' has no chat template, which says where an image stands in a prompt"
            )
        images = read_part(config, source, IMAGE_PROCESSOR, lambda place: image_processor(place, config.revision))
        processor = vision_processor(kind.model_type, images, tokenizer)
    check_template(processor or tokenizer, config.path)
    check_template_arguments(processor or tokenizer, template_arguments, config.path)
    ends = end_tokens(kind, tokenizer)
    if ends[-1] >= embeddings:
        raise UsageError(
            f"the end-of-sequence token of model '{config.path}', {ends[-1]}, is none of its {embeddings}, so no response would"
            " ever end with it: mend eos_token_id, or take the tokenizer that belongs to the model"
        )
    return ModelFiles(kind, architecture(kind), {**options, **attended}, tokenizer, processor, ends)


def check_files(config: ModelConfig, template_arguments: Mapping[str, TemplateValue], data: DataConfig) -> None:
    """UsageError for what loading a model that is on this machine would refuse in its files, as far as it is known early."""
    file = config_file(config.path, config.revision)
    if file is None or not any(file.parent.glob("*.safetensors")):
        return  # of a hub id: the rest is still to come
    files = read_files(config, str(file.parent), template_arguments)
    bound_pixels(files.processor, data, config.path)


def read_part(config: ModelConfig, source: str, file: str, read: Callable[[str], Any], what: str = "") -> Any:
    """`read(source)`, where `file` of the model is read by a library; UsageError for whatever that raises.

    Only calls of libraries belong in `read`: a fault of ours would be taken for one of the model.
    """
    try:
        return read(source)
    except Exception as error:
        local = config_file(config.path, config.revision)
        folder = Path(source) if Path(source).is_dir() else local.parent if local else None
        stored = read_object(folder / file) if folder else None
        said = f"no entry {first_line(error)}" if isinstance(error, KeyError) else first_line(error)
        advice, entries = "set model.path to a complete local folder or a hub id", ""
        if "custom code" in said or "trust_remote_code" in str(error):
            advice = (
                "it wants to run Python code of its own: read that, then set model.trust_remote_code=true, or leave it"
            )
        elif folder and stored is None and (folder / file).suffix == ".json" and (folder / file).exists():
            said, advice = f"{file} does not hold one JSON object", "take a complete copy"
        elif folder and stored and not config.trust_remote_code and (found := _to_blame(folder, file, stored, read)):
            entries, advice = f" with {' or '.join(found[:3])}", f"mend that in {file}, or take a complete copy"
        raise UsageError(
            f"cannot load model '{config.path}': its {what or file} cannot be read{entries}: {said} ({advice})"
        ) from error


def _to_blame(folder: Path, file: str, stored: Mapping[str, Any], read: Callable[[str], Any]) -> list[str]:
    """The entries of a JSON file, each with its value, without any one of which the model is read."""
    found = []
    for key, value in stored.items():
        with TemporaryDirectory() as place, suppress(Exception):
            for other in folder.iterdir():
                (Path(place) / other.name).symlink_to(other.absolute())
            (Path(place) / file).unlink()
            (Path(place) / file).write_text(json.dumps({name: stored[name] for name in stored if name != key}))
            read(place)
            text = json.dumps(value)
            found.append(f"{key} = {text if len(text) <= 60 else text[:57] + '...'}")
    return found


def _refuse_structure(model: Any, path: str) -> None:
    """UsageError for a model whose layers or head are not where the engine looks for them."""
    if not hasattr(model, "lm_head") or getattr(model.lm_head, "bias", None) is not None:
        raise UsageError(
            f"model '{path}' has no plain vocabulary head, which the chunked log-probs need; choose another model"
        )
    if not hasattr(model, "model"):
        raise UsageError(
            f"model '{path}' is a {type(model).__name__}, which keeps its layers under another name than `model`;"
            " choose a model of the Llama or Qwen kind"
        )


def image_processor(source: str, revision: str = "main", **options: Any) -> Any:
    """The Pillow image processor of a folder or hub id; `options` go before what its files say."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(source, revision=revision, **options)


def vision_processor(model_type: str, images: Any, tokenizer: Any) -> Any:
    """The processor of a vision model, one of `VISION_MODELS`, from its image processor and its tokenizer."""
    import transformers

    kind = _images_only(getattr(transformers, VISION_MODELS[model_type]))
    return kind(images, tokenizer, chat_template=tokenizer.chat_template)


def bound_pixels(processor: Any | None, data: DataConfig, path: str) -> None:
    """Put the bounds that `data` sets into the processor of the model at `path`, which is saved with them.

    UsageError for bounds that leave no size, and for a model without images.
    """
    asked = data.changed("max_pixels", "min_pixels")
    if not asked:
        return
    if processor is None:
        raise UsageError(
            f"data.{asked[0]} is for models that read images, and model '{path}' reads text only: leave it out"
        )
    size = processor.image_processor.size
    least, most = data.min_pixels or size["shortest_edge"], data.max_pixels or size["longest_edge"]
    if least > most:
        other = "min_pixels" if asked == ["max_pixels"] else "max_pixels"
        raise UsageError(
            f"model '{path}' makes every image at least {least} pixels large and at most {most} with data.{asked[0]} ="
            f" {getattr(data, asked[0])}: set data.{other} too"
        )
    processor.image_processor.size = type(size)(shortest_edge=least, longest_edge=most)


def pixel_bounds(processor: Any | None) -> tuple[int, int] | None:
    """Least and most pixels of an image after its resizing; None for a model that reads text only."""
    size = processor and processor.image_processor.size
    return (int(size["shortest_edge"]), int(size["longest_edge"])) if size else None


def _images_only(processor: Any) -> Any:
    """A processor class of transformers without its video part, which alone needs torchvision; saves under its own name."""

    def build(self: Any, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        processor.__init__(self, image_processor, tokenizer, None, chat_template=chat_template)

    def save(self: Any, folder: Any, **options: Any) -> Any:
        # The file of its own is where others look for the settings of the video part.
        self.image_processor.save_pretrained(folder)
        return processor.save_pretrained(self, folder, **options)

    parts = {"__init__": build, "save_pretrained": save, "__module__": processor.__module__}
    return type(processor.__name__, (processor,), parts)


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The generation config's end-of-sequence tokens and the tokenizer's; `model` may be its configuration alone.

    UsageError where there is none, or one is no token's number.
    """
    named = getattr(model.generation_config, "eos_token_id", None)
    found = [*(named if isinstance(named, list | tuple) else [named]), tokenizer.eos_token_id]
    if wrong := [token for token in found if token is not None and (type(token) is not int or token < 0)]:
        raise UsageError(f"eos_token_id = {wrong[0]!r} in the model's files is no token's number; mend it there")
    tokens = {token for token in found if token is not None}
    if not tokens:
        raise UsageError("the model names no end-of-sequence token, so no response would ever end: set eos_token_id")
    return tuple(sorted(tokens))


def is_tied(configuration: Any) -> bool:
    """Whether embedding and vocabulary head are one matrix."""
    # A vision model's text part does not say it; its whole configuration does.
    return any(getattr(part, "tie_word_embeddings", False) for part in (configuration, configuration.get_text_config()))
