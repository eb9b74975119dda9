"""Asked of verl's interpreter, by its path: which packages are there, which losses are registered, do the settings compose?

Standard library, Hydra and verl alone: luspo may be missing there, and that is one of the answers. The settings come on stdin as
a JSON list, the answer is the last line of stdout.
"""

from __future__ import annotations

import contextlib
import json
import sys
from importlib import metadata

PACKAGES = (
    "verl", "luspo", "math-verify", "torch", "transformers", "ray", "tensordict", "TransferQueue", "vllm", "sglang",
    "tensorrt_llm", "megatron-core", "mbridge", "flash-attn", "hydra-core",
)  # fmt: skip


def version(package: str) -> str | None:
    """The installed version; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def refusal(settings: list[str]) -> str:
    """What Hydra or verl's own validation says against the settings; empty where they pass."""
    from hydra import compose, initialize_config_module
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    try:
        with initialize_config_module("verl.trainer.config", version_base=None):
            config = compose("ppo_trainer", overrides=[one for one in settings if not one.startswith("hydra.")])
        validate_config(config, need_reference_policy(config), need_critic(config))
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return " ".join(lines[:2]) or type(error).__name__
    return ""


def main() -> None:
    settings = json.load(sys.stdin)
    packages = {name: version(name) for name in PACKAGES}
    found: dict[str, object] = {"packages": packages, "losses": [], "refused": ""}
    if packages["verl"]:
        with contextlib.redirect_stdout(sys.stderr):
            from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

            found["losses"] = sorted(POLICY_LOSS_REGISTRY)
            found["refused"] = refusal(settings)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
