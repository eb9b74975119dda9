"""Where a model's files are and which they are, told without importing torch: the dry run asks this too."""

from __future__ import annotations

import json
import os
from pathlib import Path

from luspo_cli.policy.supported import unsupported
from luspo_cli.policy.whole import broken_tokenizer, broken_weights

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder a peft folder: adapters that belong to a base model elsewhere."""
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def is_hub_id(path: str) -> bool:
    """Whether `model.path` can only be a hub id (owner/name): not a folder, and not written like a path."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).is_dir()


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
    if (folder / ADAPTER_CONFIG).is_file():
        return None  # loading looks at its base model and its kind
    if not (folder / "config.json").exists():
        return f"model.path '{path}' has no config.json"
    try:
        config = json.loads((folder / "config.json").read_bytes())
        reason = unsupported(config, path)
    except (OSError, ValueError, AttributeError):
        return f"cannot load model '{path}': its config.json does not hold one JSON object; take a complete copy"
    if reason:
        return reason
    if any(folder.glob("*.safetensors")):
        return broken_weights(folder, config, path) or broken_tokenizer(folder, config, path)
    pickles = sorted(file.name for kind in PICKLED for file in folder.glob(kind))
    if pickles:
        return (
            f"model.path '{path}' has its weights in {pickles[0]} only, which can run code when it is read; convert it to"
            " safetensors where you trust it (save_pretrained writes them), or take a copy that has them"
        )
    return None


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
