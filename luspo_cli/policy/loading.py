"""Load a language model, or a vision-language one, from a folder or the hub: weights in float32, attention of our own.

Float32 is not a choice of comfort: at a learning rate of 1e-6 the step of a bfloat16 weight is below its rounding, and the
weight does not move. Passes run in the compute type through autocast.

A vision tower keeps torch's own attention: its patches see each other in both directions, and `policy.attention` is causal.
Images are always read through Pillow, never through torchvision, which resizes a little differently: what a prompt contains
must not depend on a package that happens to be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luspo_cli.config.data import DataConfig
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.rollout import TemplateValue
from luspo_cli.errors import UsageError, first_line
from luspo_cli.files import replacing_folder, said_in_one_sentence
from luspo_cli.policy import attention
from luspo_cli.policy.images import tower_is_frozen, with_features
from luspo_cli.policy.inputs import check_template_arguments, prompt_inputs, prompt_length
from luspo_cli.policy.model_files import ADAPTER_CONFIG, config_file, find_model, is_hub_id
from luspo_cli.policy.supported import VISION_MODELS, image_tokens, unsupported
from luspo_cli.policy.whole import unfit_weights
from luspo_cli.records import Problem, Prompt

IMAGE_PROCESSOR = "preprocessor_config.json"
VISION_ATTENTION = {"text_config": attention.NAME, "vision_config": "sdpa"}


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
        return image_tokens(getattr(self.model, "config", self.model))

    @property
    def image_pixels(self) -> tuple[int, int] | None:
        """Least and most pixels of an image after its resizing; None for a model that reads text only."""
        size = self.processor and self.processor.image_processor.size
        return (int(size["shortest_edge"]), int(size["longest_edge"])) if size else None

    def prompt(self, problem: Problem) -> Prompt:
        """The problem as this model reads it; UsageError where the model reads text only, or an image or mark does not fit."""
        return prompt_inputs(problem, self.tokenizer, self.processor, self.template_arguments)

    def training_prompt(self, problem: Problem) -> Prompt:
        """The same with what the vision tower makes of the images, computed now, where no weight of the tower is trained."""
        prompt = self.prompt(problem)
        return with_features(prompt, self.model) if tower_is_frozen(self.model) else prompt

    def prompt_length(self, problem: Problem) -> int:
        """Tokens of that prompt, without decoding an image; raises UsageError alike."""
        return prompt_length(problem, self.tokenizer, self.processor, self.template_arguments)


def load_model(
    config: ModelConfig,
    template_arguments: Mapping[str, TemplateValue] | None = None,
    data: DataConfig | None = None,
) -> LoadedModel:
    """Load weights (float32) and tokenizer; UsageError where there are none or the architecture does not fit.

    `template_arguments` go to the chat template with every prompt; one that it does not read is a UsageError as well. `data`
    bounds the pixels of images; None: as the model's own processor does.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

    folder = Path(config.path).expanduser()
    if (folder / ADAPTER_CONFIG).is_file():
        return _load_adapted(folder, config, template_arguments, data)
    attention.register()
    no_progress_bars()
    source, options = _source(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        kind = AutoConfig.from_pretrained(source, **options)
        if reason := unsupported(kind.to_dict(), config.path):  # with the defaults that config.json leaves out
            raise UsageError(reason)
        processor = _processor(kind, source, tokenizer, config) if hasattr(kind, "vision_config") else None
        bound_pixels(processor, data or DataConfig(), config.path)
        architecture: Any = AutoModelForImageTextToText if processor else AutoModelForCausalLM
        model, report = _read_quietly(
            architecture,
            source,
            # A base that stays in bfloat16 is read in the type it is stored in: it is rounded once, if at all.
            dtype="auto" if config.lora.rank and config.compute_dtype == "bfloat16" else torch.float32,
            attn_implementation=VISION_ATTENTION if processor else attention.NAME,
            use_safetensors=True,  # the other format is a pickle, which can run code
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # so that the report names them; they are refused below
            **options,
        )
        reshaped = [str(entry[0]) for entry in report["mismatched_keys"]]
        if reason := unfit_weights(config.path, report["missing_keys"], report["unexpected_keys"], reshaped):
            raise UsageError(reason)
        if is_hub_id(config.path) and (reason := find_model(config.path, config.revision)):  # it is here only now
            raise UsageError(reason)
        if not tokenizer("0", add_special_tokens=False)["input_ids"]:
            raise UsageError(f"the tokenizer of model '{config.path}' has no tokens; take a complete copy")
    except UsageError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        first = first_line(error)
        if isinstance(error, KeyError):
            first = f"its files lack the entry {first}"
        advice = "set model.path to a complete local folder or a hub id"
        if "custom code" in first or "trust_remote_code" in str(error):
            advice = (
                "it wants to run Python code of its own: read that, then set model.trust_remote_code=true, or leave it"
            )
        raise UsageError(f"cannot load model '{config.path}': {first} ({advice})") from error
    if not hasattr(model, "lm_head") or getattr(model.lm_head, "bias", None) is not None:
        raise UsageError(
            f"model '{config.path}' has no plain vocabulary head, which the chunked log-probs need; choose another model"
        )
    if not hasattr(model, "model"):
        raise UsageError(
            f"model '{config.path}' is a {type(model).__name__}, which keeps its layers under another name than `model`;"
            " choose a model of the Llama or Qwen kind"
        )
    _refuse_altered_logits(model, config.path)
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        # It makes the embeddings' output ask for a gradient, which only the other kind of checkpointing needs, through a hook
        # that fails when the model is copied after its embedding was replaced.
        model.disable_input_require_grads()
    check_template_arguments(processor or tokenizer, template_arguments or {}, config.path)
    return LoadedModel(model, tokenizer, end_tokens(model, tokenizer), processor, template_arguments or {})


def load_without_weights(
    config: ModelConfig, template_arguments: Mapping[str, TemplateValue] | None = None
) -> LoadedModel:
    """What talks to a model, for a sampler that reads the weights itself; `model` is the model's configuration.

    UsageError where there is no such model, or one that is not trained here.
    """
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    source, options = _source(config)
    try:
        kind = AutoConfig.from_pretrained(source, **options)
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"cannot load model '{config.path}': {first_line(error)} (set model.path to a complete local folder or a hub id)"
        ) from error
    if reason := unsupported(kind.to_dict(), config.path):
        raise UsageError(reason)
    processor = _processor(kind, source, tokenizer, config) if hasattr(kind, "vision_config") else None
    try:
        kind.generation_config = GenerationConfig.from_pretrained(source, revision=config.revision)
    except OSError:
        kind.generation_config = GenerationConfig.from_model_config(kind)
    check_template_arguments(processor or tokenizer, template_arguments or {}, config.path)
    return LoadedModel(kind, tokenizer, end_tokens(kind, tokenizer), processor, template_arguments or {})


def _source(config: ModelConfig) -> tuple[str, dict[str, Any]]:
    """What `from_pretrained` is given for this model, folder or hub id; UsageError for a folder that is no model's."""
    hub = is_hub_id(config.path)
    reason = find_model(config.path, config.revision)
    if reason and not (hub and config_file(config.path, config.revision) is None):  # else the hub is asked
        raise UsageError(reason)
    options = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    return config.path if hub else str(Path(config.path).expanduser()), options


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
    if not torch.allclose(logits.float(), model.lm_head(states).float(), rtol=1e-4, atol=1e-5):
        raise UsageError(
            f"model '{path}' changes its hidden states or logits around the vocabulary head, which log-probs and rollouts here"
            " would leave out; choose another model"
        )


def _read_quietly(architecture: Any, source: str, **options: Any) -> Any:
    """`from_pretrained` without its table of weights that do not fit: one sentence of ours says it."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return architecture.from_pretrained(source, **options)
    finally:
        logging.set_verbosity(before)


def _load_adapted(
    folder: Path,
    config: ModelConfig,
    template_arguments: Mapping[str, TemplateValue] | None,
    data: DataConfig | None,
) -> LoadedModel:
    """A base model with the adapter of a peft folder folded into it: a plain model in float32."""
    from luspo_cli.policy.lora import fold_adapter, read_adapter_config

    if config.lora.rank:
        raise UsageError(
            f"model.path {folder} is an adapter; make a model of it first (luspo merge {folder} --out DIR) and put new"
            " adapters on that"
        )
    stored = read_adapter_config(folder)
    base = str(stored["base_model_name_or_path"])
    of_base = config.model_copy(update={"path": base, "revision": stored.get("revision") or config.revision})
    try:
        loaded = load_model(of_base, template_arguments)
    except UsageError as error:
        raise UsageError(
            f"the base model of the adapter in {folder} cannot be loaded: {error} (its place is base_model_name_or_path in"
            f" {ADAPTER_CONFIG})"
        ) from error
    fold_adapter(loaded.model, folder)
    if loaded.processor is not None and (folder / IMAGE_PROCESSOR).is_file():
        loaded.processor.image_processor = _image_processor(str(folder), "main")  # it was trained with these sizes
    bound_pixels(loaded.processor, data or DataConfig(), config.path)
    return loaded


def no_progress_bars() -> None:
    """Keep transformers' bars for loading and saving off stderr, where a run speaks in lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _processor(kind: Any, source: str, tokenizer: Any, config: ModelConfig) -> Any:
    """The processor of a vision-language model, from its tokenizer and its Pillow image processor; videos are not read."""
    import transformers

    if tokenizer.chat_template is None:
        raise UsageError(f"model '{config.path}' has no chat template, which says where an image stands in a prompt")
    images = _image_processor(source, config.revision)
    processor = images_only(getattr(transformers, VISION_MODELS[kind.model_type]))
    return processor(images, tokenizer, chat_template=tokenizer.chat_template)


def _image_processor(source: str, revision: str) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil.from_pretrained(source, revision=revision)


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


def images_only(processor: Any) -> Any:
    """A processor class of transformers without its video part, which alone needs torchvision; saves under its own name."""

    def build(self: Any, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        processor.__init__(self, image_processor, tokenizer, None, chat_template=chat_template)

    def save(self: Any, folder: Any, **options: Any) -> Any:
        # The file of its own is where others look for the settings of the video part.
        self.image_processor.save_pretrained(folder)
        return processor.save_pretrained(self, folder, **options)

    parts = {"__init__": build, "save_pretrained": save, "__module__": processor.__module__}
    return type(processor.__name__, (processor,), parts)


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


def end_tokens(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """The generation config's end-of-sequence tokens and the tokenizer's."""
    found: set[int] = set()
    for value in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(value, int):
            found.add(value)
        elif value:
            found.update(value)
    if not found:
        raise UsageError("the model names no end-of-sequence token, so no response would ever end: set eos_token_id")
    return tuple(sorted(found))


def write_merged(adapter: Path, out: Path) -> None:
    """Write the merged model of a peft folder to `out`, whole or not at all; RunError on a full disk."""
    loaded = load_model(ModelConfig(path=str(adapter)))
    with (
        said_in_one_sentence(out, "or choose another --out", "nothing half-written was left"),
        replacing_folder(out) as folder,
    ):
        loaded.model.save_pretrained(folder, safe_serialization=True)
        (loaded.processor or loaded.tokenizer).save_pretrained(folder)
