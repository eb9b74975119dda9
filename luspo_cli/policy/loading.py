"""Load a language model, or a vision-language one, from a folder or the hub: weights in float32, attention of our own.

Float32 is not a choice of comfort: at a learning rate of 1e-6 the step of a bfloat16 weight is below its rounding, and the
weight does not move. Passes run in the compute type through autocast.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luspo_cli.config.data import DataConfig
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.rollout import TemplateValue
from luspo_cli.errors import UsageError
from luspo_cli.files import replacing_folder, said_in_one_sentence
from luspo_cli.policy.images import tower_is_frozen, with_features
from luspo_cli.policy.inputs import placeholder_in, prompt_inputs, prompt_length
from luspo_cli.policy.logprobs import head_logits
from luspo_cli.policy.model_files import base_of, find_model, is_hub_id, of_base
from luspo_cli.policy.reading import (
    IMAGE_PROCESSOR,
    ModelFiles,
    bound_pixels,
    check_files,
    held_back,
    image_processor,
    pixel_bounds,
    read_files,
    read_part,
)
from luspo_cli.policy.routing import routers
from luspo_cli.policy.supported import image_token_ids
from luspo_cli.policy.whole import unfit_weights
from luspo_cli.processes.sharding import without_numbers
from luspo_cli.records import Problem, Prompt


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model with what is needed to talk to it."""

    model: Any
    """The model, or its configuration alone."""
    tokenizer: Any
    end_tokens: tuple[int, ...]
    """Tokens that end a response."""
    processor: Any | None = None
    """Of a vision-language model: the tokenizer together with the image processor."""
    template_arguments: Mapping[str, TemplateValue] = field(default_factory=dict)
    """For the chat template, beside the turns."""

    @property
    def never_drawn(self) -> tuple[int, ...]:
        """A vision model's image tokens."""
        return image_token_ids(getattr(self.model, "config", self.model))

    @property
    def image_pixels(self) -> tuple[int, int] | None:
        """Least and most pixels of an image after its resizing; None for a model that reads text only."""
        return pixel_bounds(self.processor)

    @property
    def has_trained_tower(self) -> bool:
        """Whether it reads images with weights that may be trained."""
        return self.processor is not None and not tower_is_frozen(self.model)

    @property
    def has_experts(self) -> bool:
        """Whether it has routers that the engine reads."""
        return bool(routers(self.model))

    def prompt(self, problem: Problem) -> Prompt:
        """The problem as this model reads it; UsageError where the model reads text only, or an image or mark does not fit."""
        return prompt_inputs(problem, self.tokenizer, self.processor, self.template_arguments)

    def training_prompt(self, problem: Problem) -> Prompt:
        """The same with what the vision tower makes of the images, computed now, where no weight of the tower is trained."""
        prompt = self.prompt(problem)
        return with_features(prompt, self.model) if tower_is_frozen(self.model) else prompt

    def placeholder_in(self, problem: Problem) -> str | None:
        """A token that stands for pixels in the problem's text; such a prompt is refused."""
        return placeholder_in(problem, self.processor)

    def prompt_length(self, problem: Problem) -> int:
        """Tokens of that prompt, without decoding an image; raises UsageError alike."""
        return prompt_length(problem, self.tokenizer, self.processor, self.template_arguments)


def load_model(
    config: ModelConfig,
    template_arguments: Mapping[str, TemplateValue] | None = None,
    data: DataConfig | None = None,
    numbers: bool = True,
) -> LoadedModel:
    """Load weights (float32) and tokenizer; UsageError where there are none or the architecture does not fit.

    `template_arguments` go to the chat template with every prompt; one that it does not read is a UsageError as well. `data`
    bounds the pixels of images; None: as the model's own processor does. `numbers`: read the weights; without, they have a
    place and no value (`luspo_cli.processes.sharding`).
    """
    if base := base_of(config):
        return _load_adapted(config, base, template_arguments, data or DataConfig(), numbers)
    no_progress_bars()
    source = _source(config)
    files = read_files(config, source, template_arguments or {})
    bound_pixels(files.processor, data or DataConfig(), config.path)
    model = _with_numbers(config, source, files) if numbers else _without_numbers(source, files)
    if is_hub_id(config.path):  # its files are all here only now
        check_files(config, template_arguments or {}, data or DataConfig())
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # It makes the embeddings' output ask for a gradient, which only the other kind of checkpointing needs, through a hook
        # that fails when the model is copied after its embedding was replaced.
        model.disable_input_require_grads()
    return LoadedModel(model, files.tokenizer, files.end_tokens, files.processor, template_arguments or {})


def _with_numbers(config: ModelConfig, source: str, files: ModelFiles) -> Any:
    with held_back(heard=False):  # its table of weights that do not fit is one sentence below
        model, report = read_part(
            config,
            source,
            "weights",
            lambda place: files.architecture.from_pretrained(
                place,
                # A base that stays in bfloat16 is read in the type it is stored in: it is rounded once, if at all.
                dtype="auto" if config.lora.rank and config.compute_dtype == "bfloat16" else torch.float32,
                use_safetensors=True,  # the other format is a pickle, which can run code
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # so that the report names them; they are refused below
                **files.options,
            ),
        )
    reshaped = [str(entry[0]) for entry in report["mismatched_keys"]]
    reason = unfit_weights(config.path, report["missing_keys"], report["unexpected_keys"], reshaped)
    if reason:
        raise UsageError(reason)
    _refuse_altered_logits(model, config.path)
    return model


def _without_numbers(source: str, files: ModelFiles) -> Any:
    """The model that reading its weights would give, but for their values; buffers, which no file holds, have theirs."""
    from accelerate import init_empty_weights

    options = {key: value for key, value in files.options.items() if key != "revision"}
    configuration = copy.copy(files.configuration)
    generation = vars(configuration).pop("generation_config")
    with init_empty_weights(include_buffers=False):
        model = files.architecture.from_config(configuration, dtype=torch.float32, **options)
    without_numbers(model)
    model.tie_weights()
    model.config.name_or_path, model.generation_config = source, generation
    return model.eval()


def load_without_weights(
    config: ModelConfig, template_arguments: Mapping[str, TemplateValue] | None = None
) -> LoadedModel:
    """What talks to a model, for a sampler that reads the weights itself; `model` is the model's configuration.

    UsageError where there is no such model, or one that is not trained here.
    """
    files = read_files(config, _source(config), template_arguments or {})
    return LoadedModel(
        files.configuration, files.tokenizer, files.end_tokens, files.processor, template_arguments or {}
    )


def _source(config: ModelConfig) -> str:
    """What `from_pretrained` is given for this model, folder or hub id; UsageError for a folder that is no model's."""
    if is_hub_id(config.path):
        return config.path  # the hub is asked for what is not here yet
    if reason := find_model(config.path):
        raise UsageError(reason)
    return str(Path(config.path).expanduser())


class _FixedStates(torch.nn.Module):
    """In the place of a model's layers: gives back the same hidden states [1, 2, width] whatever is asked."""

    def __init__(self, states: Any) -> None:
        super().__init__()
        self.states = states

    @property
    def decoder(self) -> _FixedStates:
        """OPT asks its decoder instead of its model."""
        return self

    def forward(self, *_: Any, **__: Any) -> Any:
        from transformers.modeling_outputs import MoeModelOutputWithPast

        return MoeModelOutputWithPast(last_hidden_state=self.states)


@torch.no_grad()
def _refuse_altered_logits(model: Any, path: str) -> None:
    """UsageError for a model that does more to its hidden states than the head's product, under a name that nobody has listed."""
    if hasattr(model.config, "vision_config"):
        return  # the types that are supported are known
    head = model.lm_head.weight
    states = torch.linspace(-1.0, 1.0, 2 * head.shape[1], dtype=head.dtype).view(1, 2, -1)
    layers, model.model = model.model, _FixedStates(states)
    try:
        logits = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=False).logits
    finally:
        model.model = layers
    if not torch.allclose(logits.float(), head_logits(model, states).float(), rtol=1e-4, atol=1e-5):
        raise UsageError(
            f"model '{path}' changes its hidden states or logits around the vocabulary head, which log-probs and rollouts here"
            " would leave out; choose another model"
        )


def _load_adapted(
    config: ModelConfig,
    base: ModelConfig,
    template_arguments: Mapping[str, TemplateValue] | None,
    data: DataConfig,
    numbers: bool,
) -> LoadedModel:
    """A base model with the adapter of a peft folder folded into it: a plain model in float32."""
    from luspo_cli.policy.lora import fold_adapter

    folder = Path(config.path).expanduser()
    try:
        loaded = load_model(base, template_arguments, numbers=numbers)
    except UsageError as error:
        raise UsageError(of_base(folder, str(error))) from error
    if numbers:
        fold_adapter(loaded.model, folder)
    if loaded.processor is not None and (folder / IMAGE_PROCESSOR).is_file():
        loaded.processor.image_processor = read_part(
            config, str(folder), IMAGE_PROCESSOR, image_processor
        )  # trained with its sizes
    bound_pixels(loaded.processor, data, config.path)
    return loaded


def no_progress_bars() -> None:
    """Keep transformers' bars for loading and saving off stderr, where a run speaks in lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def freeze_vision(model: Any) -> int:
    """Keep the vision tower as it is from now on; returns its number of weights, 0 for a model without one."""
    tower = getattr(model.model, "visual", None)
    if tower is None:
        return 0
    tower.requires_grad_(False)
    return sum(weight.numel() for weight in tower.parameters())


def context_of(configuration: Any) -> int | None:
    """Positions that a model of this configuration was made for, prompt and response together; None where it does not say."""
    found = getattr(configuration.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def write_merged(adapter: Path, out: Path) -> None:
    """Write the merged model of a peft folder to `out`, whole or not at all; RunError on a full disk."""
    loaded = load_model(ModelConfig(path=str(adapter)))
    with (
        said_in_one_sentence(out, "or choose another --out", "nothing half-written was left"),
        replacing_folder(out) as folder,
    ):
        loaded.model.save_pretrained(folder, safe_serialization=True)
        (loaded.processor or loaded.tokenizer).save_pretrained(folder)
