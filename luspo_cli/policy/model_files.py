"""Where a model's files are and which they are, told without importing torch: the dry run asks this too."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.files import read_object, require_object
from luspo_cli.machine import has_cuda, multiplies_bfloat16
from luspo_cli.policy.supported import is_measured, unsupported

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder a peft folder: adapters that belong to a base model elsewhere."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"
NOT_FOLDED = ("layer_replication", "alora_invocation_tokens", "arrow_config")
"""Entries of adapter_config.json under which an adapter is more than another value of its base model's matrices."""
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def is_hub_id(path: str) -> bool:
    """Whether `model.path` can only be a hub id (owner/name): not a folder, and not written like a path."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).is_dir()


def is_adapter(path: str) -> bool:
    """Whether `model.path` is a folder with an adapter for a base model elsewhere."""
    return (Path(path).expanduser() / ADAPTER_CONFIG).is_file()


def hub_commit(path: str, revision: str) -> str | None:
    """The commit that a hub id's revision means in this machine's cache; None where it is not there, or of a folder."""
    if not is_hub_id(path):
        return None
    from huggingface_hub import try_to_load_from_cache  # takes a second: the dry run does not need it

    cached = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(cached).parent.name if isinstance(cached, str) else None


def unread_revision(path: str, revision: str) -> str | None:
    """Say in one sentence that `model.revision` is set and cannot be read for a local folder; None otherwise."""
    if revision == "main" or is_hub_id(path):
        return None
    return f"model.revision = '{revision}' applies to hub ids only, and model.path = '{path}' is not one: remove model.revision"


def slow_passes(model: ModelConfig) -> str | None:
    """What a run is warned of that computes in bfloat16 on a processor without instructions for it; None for any other one."""
    if model.compute_dtype != "bfloat16" or has_cuda() or multiplies_bfloat16():
        return None
    return (
        "this processor has no instructions for bfloat16 products, which take ten times as long as in float32 and more: set"
        " model.compute_dtype=float32"
    )


def liger_missing() -> str | None:
    """Say what Liger's head lacks on this machine; None where it can compute, also by Triton's interpreter."""
    if find_spec("liger_kernel") is None:
        return "model.kernels.head = liger needs Liger: pip install 'luspo[liger]', or set it to blocks"
    if not has_cuda() and os.environ.get("TRITON_INTERPRET") != "1":
        return "model.kernels.head = liger needs a CUDA device: set it to blocks"
    return None


def unmeasured(file: Path) -> str | None:
    """Say what the start does with a model of a type whose log-probs nobody compared yet; `file`: its config.json."""
    kind = (read_object(file) or {}).get("model_type")
    if kind is None or is_measured(kind):
        return None
    return (
        f"models of type {kind} were not measured (docs/models.md): at the start a few tokens of it are compared with plain"
        " transformers, and it is refused where they differ"
    )


def find_model(path: str, revision: str = "main") -> str | None:
    """Say in one sentence why the model at `model.path` cannot be used, as far as files on this disk tell; None otherwise."""
    folder = Path(path).expanduser()
    if is_hub_id(path):
        file = config_file(path, revision)
        if file is not None:
            return _unfit(file.parent, path)
        if _cached_model(path).is_dir():
            return None
        return f"model.path '{path}' is not on this machine; the hub would be asked, or set a local folder"
    if folder.is_dir():
        return _unfit(folder, path)
    place = "" if folder.is_absolute() else f" in {Path.cwd()}, which it is relative to"
    return f"model.path '{path}' is not a folder{place}; set it to a folder with config.json or a hub id (owner/name)"


def _unfit(folder: Path, path: str) -> str | None:
    """Why the files in `folder` are no model that can be used. Weights are read from safetensors alone: the older formats are
    pickles, and a pickle can run code when it is read."""
    if not (folder / "config.json").exists():
        return f"model.path '{path}' has no config.json"
    config = read_object(folder / "config.json")
    if config is None:
        return f"cannot load model '{path}': its config.json does not hold one JSON object; take a complete copy"
    if reason := unsupported(config, path):
        return reason
    pickles = sorted(file.name for kind in PICKLED for file in folder.glob(kind))
    if pickles and not any(folder.glob("*.safetensors")):
        return (
            f"model.path '{path}' has its weights in {pickles[0]} only, which can run code when it is read; convert it to"
            " safetensors where you trust it (save_pretrained writes them), or take a copy that has them"
        )
    if is_hub_id(path) or any(folder.glob("*.safetensors")):
        return None  # what is in them is read elsewhere; the hub would be asked for what is not there
    return f"model.path '{path}' has no weights: there is no *.safetensors in its folder; take a complete copy"


def of_base(folder: Path, reason: str) -> str:
    """The sentence that the base model of the adapter in `folder` is the one to mend."""
    return (
        f"the base model of the adapter in {folder} cannot be loaded: {reason} (its place is base_model_name_or_path in"
        f" {ADAPTER_CONFIG})"
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's adapter_config.json; UsageError where it is none that can be folded."""
    stored = require_object(folder / ADAPTER_CONFIG, "take a complete copy of the adapter")
    kind, base, revision = (stored.get(key) for key in ("peft_type", "base_model_name_or_path", "revision"))
    if not (isinstance(kind, str) and isinstance(base, str) and base and isinstance(revision, str | None)):
        raise UsageError(
            f"{folder / ADAPTER_CONFIG} is no adapter's configuration: it has peft_type = {kind!r}, base_model_name_or_path ="
            f" {base!r} and revision = {revision!r}; take a complete copy"
        )
    if kind != "LORA":
        raise UsageError(f"{folder} holds a {kind} adapter for base model '{base}'; only LoRA is read")
    if is_adapter(base):
        raise UsageError(
            f"the base model of the adapter in {folder} is an adapter itself; make a model of that first (luspo merge {base}"
            f" --out DIR) and set base_model_name_or_path in {ADAPTER_CONFIG} to it"
        )
    for key in NOT_FOLDED:
        if stored.get(key):
            raise UsageError(
                f"the adapter in {folder} has {key} in its {ADAPTER_CONFIG}, which no plain model can hold"
            )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise UsageError(f"the adapter in {folder} has no weights: there is no {ADAPTER_WEIGHTS}; take a complete copy")
    return stored


def base_of(config: ModelConfig) -> ModelConfig | None:
    """The base model where `model.path` is an adapter's folder, None elsewhere; UsageError where it cannot be loaded as one."""
    folder = Path(config.path).expanduser()
    if not is_adapter(config.path):
        return None
    if config.lora.rank:
        raise UsageError(
            f"model.path {folder} is an adapter; make a model of it first (luspo merge {folder} --out DIR) and put new"
            " adapters on that"
        )
    stored = read_adapter_config(folder)
    revision = stored.get("revision") or config.revision
    return config.model_copy(update={"path": stored["base_model_name_or_path"], "revision": revision})


def config_file(path: str, revision: str = "main") -> Path | None:
    """The config.json of a folder, or of a hub id in this machine's cache; None where it is not on the disk."""
    folder = Path(path).expanduser()
    if is_hub_id(path):
        cached = _cached_model(path)
        named = cached / "refs" / revision
        folder = cached / "snapshots" / (named.read_text().strip() if named.is_file() else revision)
    return folder / "config.json" if (folder / "config.json").is_file() else None


def _cached_model(hub_id: str) -> Path:
    """Where the hub's client keeps a model on this machine."""
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
    return cache / f"models--{hub_id.replace('/', '--')}"
