"""Low-rank adapters (LoRA, arXiv 2106.09685) on the language model's linear layers, through peft; the base stays as it is.

Decided here:
1. The base is held in the compute type. A frozen weight needs no float32: autocast would round it to bfloat16 in every pass
   anyway, so the passes are the same bit for bit where the published weights are bfloat16, at half the memory. The adapters,
   which the optimizer moves, are float32. Norms stay float32, and embeddings come out as float32, so that the residual stream
   adds up as it does in a full run.
2. There is no dropout. Old and new log-probs must be computed alike (the ratios of an unchanged policy are exactly 1), and a
   response is sampled from the policy without it.
3. The vocabulary head and the embeddings carry no adapter: the chunked log-probs read the head's matrix itself.
4. Only the language model is adapted; a vision tower stays as it is.

Whoever needs whole matrices (a sampler, a merged model) gets them one at a time from `merged_weights`, so that no second full
copy of the model has to exist. Only making and folding adapters import peft: a model without adapters must not need it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError, first_line
from luspo_cli.policy.experts import is_experts
from luspo_cli.policy.model_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_hub_id
from luspo_cli.policy.packing import PolicyBatch
from luspo_cli.policy.reading import is_tied

ADAPTER = "default"
"""The name that peft gives to the only adapter of a model."""
TABLES = ("embed_tokens.weight", "lm_head.weight", ".base_layer.weight")
"""Ends of names under which peft stores the base model's own embedding and head beside the adapter."""
_PREFIX = "base_model.model."
"""What peft puts before every name in an adapter's file."""


def is_adapted(layer: nn.Module) -> bool:
    """Whether a layer carries an adapter."""
    return hasattr(layer, "base_layer") and hasattr(layer, "lora_A")


def has_adapters(model: nn.Module) -> bool:
    return any(is_adapted(layer) for layer in model.modules())


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """A layer's matrix [out, in] as it acts: W + scale · B · A in float32 for an adapted one, else its own weight as it is."""
    if not is_adapted(layer):
        weight: Tensor = layer.weight
        return weight.detach()
    down, up = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight  # [rank, in], [out, rank]
    return torch.addmm(layer.base_layer.weight.float(), up.float(), down.float(), alpha=layer.scaling[ADAPTER])


def merged_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of `model` under the name that it has without adapters, tied ones once; one merged matrix at a time.

    An adapted matrix comes as a new float32 tensor, every other parameter as it is held. Of a model without adapters these are
    its named parameters.
    """
    seen: set[int] = set()
    for path, layer in model.named_modules():
        if "lora_" in path:
            continue
        if is_adapted(layer):
            yield f"{path}.weight", merged_weight(layer)
            if layer.base_layer.bias is not None:
                yield f"{path}.bias", layer.base_layer.bias.detach()
            continue
        if path.endswith(".base_layer"):
            continue
        for key, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{path}.{key}" if path else key, parameter.detach()


@contextmanager
def without_adapters(model: nn.Module) -> Iterator[None]:
    """Within this block the model computes with its own matrices alone, as before training."""
    layers: list[Any] = [layer for layer in model.modules() if is_adapted(layer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


class Float32Embedding(nn.Embedding):
    """Rows of a bfloat16 table as float32: what follows adds up in float32, as it does with float32 weights."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).float()


class BasePolicy:
    """The policy with its adapters off: the reference of a KL term, at no memory."""

    def __init__(self, policy: Any, model: nn.Module) -> None:
        self._policy, self._model = policy, model

    def __call__(self, batch: PolicyBatch) -> tuple[Tensor, Tensor]:
        with without_adapters(self._model):
            logprobs, entropy = self._policy(batch)
        return logprobs, entropy


def require_peft() -> None:
    """Raise UsageError where peft is not installed."""
    # peft imports bitsandbytes where that is installed, which reports a kernel that nothing here asks for.
    bitsandbytes = logging.getLogger("bitsandbytes")
    before, bitsandbytes.level = bitsandbytes.level, logging.ERROR + 1
    try:
        import peft  # noqa: F401
    except ImportError as error:
        raise UsageError(f"model.lora needs peft ({error}): pip install 'luspo[lora]'") from None
    finally:
        bitsandbytes.level = before


def add_adapters(model: Any, config: ModelConfig, seed: int, base: str) -> int:
    """Freeze `model`, put new adapters on it in place and return their number of weights; the policy is not changed by this.

    `seed` fixes the first matrices (B starts at zero); `base` is the folder or hub id that the adapters belong to.
    Raises UsageError where a target names no linear layer of the language model.
    """
    require_peft()
    from peft import LoraConfig, TaskType, inject_adapter_in_model

    settings = config.lora
    _check_targets(model, settings.targets)
    model.requires_grad_(False)
    if config.compute_dtype == "bfloat16":
        hold_in_bfloat16(model)
    description = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=0.0,
        target_modules=list(settings.targets),
        exclude_modules=r".*\bvisual\b.*" if hasattr(model.model, "visual") else None,
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base if is_hub_id(base) else str(Path(base).expanduser().resolve()),
        revision=config.revision if is_hub_id(base) else None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(description, model, adapter_name=ADAPTER)
    adapters = adapter_parameters(model)
    for weight in adapters.values():
        weight.data = weight.data.float()  # peft takes the type of the matrix beside it
        weight.requires_grad_(True)
    return sum(weight.numel() for weight in adapters.values())


def hold_in_bfloat16(model: nn.Module) -> None:
    """Turn the matrices of all linear layers, experts and embeddings to bfloat16 in place, everything else to float32."""
    for layer in model.modules():
        is_matrix = isinstance(layer, nn.Linear | nn.Embedding) or is_experts(layer)
        dtype = torch.bfloat16 if is_matrix else torch.float32
        for weight in layer.parameters(recurse=False):
            weight.data = weight.data.to(dtype)  # the parameter stays the same object: a head may be tied to it
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Embedding:
                own = Float32Embedding(layer.num_embeddings, layer.embedding_dim, layer.padding_idx, device="meta")
                own.weight = layer.weight
                setattr(parent, name, own)


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The adapters' weights by the names that they have in a peft folder."""
    return {
        _PREFIX + name.replace(f".{ADAPTER}.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if f".{ADAPTER}." in name and ".lora_" in name
    }


def save_adapter(model: Any, folder: Path) -> None:
    """Write a peft folder: adapter_config.json and adapter_model.safetensors."""
    from safetensors.torch import save_file

    model.peft_config[ADAPTER].save_pretrained(str(folder))
    stored = json.loads((folder / ADAPTER_CONFIG).read_text())
    stored["target_modules"] = sorted(stored["target_modules"])  # a set: its order is another one in every process
    stored["inference_mode"] = True  # whoever loads it did not ask to train it
    (folder / ADAPTER_CONFIG).write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n")
    tensors = {name: weight.detach().cpu().contiguous() for name, weight in adapter_parameters(model).items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


@torch.no_grad()
def load_adapter(model: Any, folder: Path) -> None:
    """Bring an adapter's weights into the adapters of `model`; UsageError where they are not of the same shape."""
    stored = _adapter_file(folder)
    own = adapter_parameters(model)
    if stored.keys() != own.keys() or any(stored[name].shape != weight.shape for name, weight in own.items()):
        raise UsageError(f"the adapter in {folder} does not fit the model: its layers or ranks are others")
    for name, weight in own.items():
        weight.copy_(stored[name])


def adapter_settings(folder: Path) -> tuple[Any, set[str]]:
    """An adapter folder's configuration as peft reads it, and the names of the layers that it changes as far as it lists them.

    UsageError where it cannot be read, or peft is not installed.
    """
    require_peft()
    from peft import LoraConfig

    try:
        settings = LoraConfig.from_pretrained(str(folder))
        targets = settings.target_modules or ()  # a text is a pattern that chooses them
        return settings, {*(settings.modules_to_save or ()), *(() if isinstance(targets, str) else targets)}
    except Exception as error:
        raise UsageError(
            f"{folder / ADAPTER_CONFIG} is no adapter's configuration: {first_line(error)}; take a complete copy"
        ) from error


@torch.no_grad()
def fold_adapter(model: Any, folder: Path) -> None:
    """Fold an adapter, of any kind of LoRA that peft merges, into the base model that it belongs to; a plain model is left.

    UsageError where the weights are not those that adapter_config.json asks for, or the merged model computes something else.
    """
    settings, whole = adapter_settings(folder)
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    if is_tied(model.config) and (ends := sorted(whole & {"lm_head", "embed_tokens"})):
        raise UsageError(
            f"the adapter in {folder} changes {ends[0]} (target_modules or modules_to_save in {ADAPTER_CONFIG}), which its base"
            " model holds as one matrix for embedding and head: no plain model of this kind can hold it"
        )
    stored = _adapter_file(folder)
    try:
        adapted = get_peft_model(model, settings, adapter_name=ADAPTER)
        expected = get_peft_model_state_dict(adapted, adapter_name=ADAPTER, save_embedding_layers=False)
        spare = [name for name in stored.keys() - expected.keys() if not name.endswith(TABLES)]
        if expected.keys() - stored.keys() or spare or any(stored[n].shape != w.shape for n, w in expected.items()):
            raise UsageError(f"the adapter in {folder} does not fit the model: its layers or ranks are others")
        set_peft_model_state_dict(adapted, stored, adapter_name=ADAPTER)
        adapted.eval()
        tokens = torch.arange(min(8, model.config.get_text_config().vocab_size))[None]
        before = model(input_ids=tokens, use_cache=False).logits
        adapted.merge_and_unload()
        after = model(input_ids=tokens, use_cache=False).logits
    except UsageError:
        raise
    except Exception as error:
        raise UsageError(
            f"the adapter in {folder} cannot be folded into its base model: {first_line(error)}"
        ) from error
    if not torch.allclose(before, after, atol=1e-3, rtol=1e-3):
        raise UsageError(f"the adapter in {folder} computes what no plain model does (see its {ADAPTER_CONFIG})")
    if hasattr(model, "peft_config"):
        del model.peft_config
    model.requires_grad_(True)


def _adapter_file(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / ADAPTER_WEIGHTS
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise UsageError(f"cannot read the adapter's weights in {file}: {error}") from None


def _check_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    known = {
        path.rpartition(".")[2]
        for path, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and "visual" not in path.split(".") and path != "lm_head"
    }
    unknown = [target for target in targets if target not in known]
    if unknown:
        # Routed experts are parameters of three dimensions, which no adapter of a linear layer reaches.
        fused = any(map(is_experts, model.modules())) and unknown[0] in ("gate_proj", "up_proj", "down_proj")
        raise UsageError(
            f"model.lora.targets names '{unknown[0]}', which is no linear layer inside this model"
            f"{', whose experts get no adapters' if fused else ''}; there are {', '.join(sorted(known))}"
        )
