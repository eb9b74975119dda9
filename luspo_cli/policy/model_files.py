"""Where a model's files are, told without importing torch or the hub's client: the dry run asks this too."""

from __future__ import annotations

import os
from pathlib import Path

ADAPTER_CONFIG = "adapter_config.json"
"""What makes a folder a peft folder: adapters that belong to a base model elsewhere."""


def is_hub_id(path: str) -> bool:
    """Whether `model.path` can only be a hub id (owner/name): not a folder, and not written like a path."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).is_dir()


def find_model(path: str) -> str | None:
    """Say in one sentence why `model.path` cannot be read from this machine's disk, or None where it can."""
    if is_hub_id(path):
        if (_hub_cache() / f"models--{path.replace('/', '--')}").is_dir():
            return None
        return f"model.path '{path}' is not on this machine; the hub would be asked, or set a local folder"
    folder = Path(path).expanduser()
    if folder.is_dir():
        found = any((folder / name).exists() for name in ("config.json", ADAPTER_CONFIG))
        return None if found else f"model.path '{path}' has no config.json"
    return f"model.path '{path}' is not a folder; set it to a folder with config.json or a hub id (owner/name)"


def _hub_cache() -> Path:
    home = os.environ.get("HF_HOME", "~/.cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE", f"{home}/hub")).expanduser()
