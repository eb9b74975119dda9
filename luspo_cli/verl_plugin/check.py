"""Is the plug-in in this verl, and on every node? `python -m luspo_cli.verl_plugin.check [--nodes] [--address A]` prints JSON.

verl skips a plug-in that cannot be imported in silence and looks a loss up only after the model is loaded and a whole batch is
sampled. So whoever starts a run asks here first: on the driver, and in a Ray task on each node.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import platform
import socket
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from luspo_cli import __version__
from luspo_cli.config.verl_losses import VERL_LOSSES
from luspo_cli.errors import RunError, first_line

_CODE = ("advantages.py", "config", "grading", "objectives", "rewards", "verl_plugin")
"""What decides losses and rewards, below the package."""
PLUGIN = "luspo_cli.verl_plugin.policy_loss"
SAME = ("luspo", "verl", "math_verify", "code")
"""What must be equal on all nodes of a run."""


def check() -> dict[str, Any]:
    """What this process finds: versions, the registered names, the module's file, a digest of the code; RunError if unusable."""
    host = socket.gethostname()
    try:
        import verl
        from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
    except ImportError as error:
        raise RunError(f"{host}: verl cannot be imported by {sys.executable}: {first_line(error)}.") from None
    foreign = [name for name in VERL_LOSSES if getattr(POLICY_LOSS_REGISTRY.get(name), "__module__", None) != PLUGIN]
    if foreign:
        try:
            importlib.import_module(PLUGIN)
        except Exception as error:
            raise RunError(f"{host}: luspo's plug-in cannot be loaded: {first_line(error)}.") from None
        raise RunError(
            f"{host}: verl has not loaded luspo's plug-in ({', '.join(foreign[:3])} not registered by it): install luspo there, "
            "and leave VERL_USE_EXTERNAL_PLUGINS unset, or let it hold luspo."
        )
    try:
        math_verify = metadata.version("math-verify")
    except metadata.PackageNotFoundError:
        raise RunError(f"{host}: math-verify is missing: pip install math-verify.") from None
    return {
        "host": host,
        "python": platform.python_version(),
        "verl": verl.__version__,
        "luspo": __version__,
        "math_verify": math_verify,
        "names": sorted(VERL_LOSSES),
        "file": str(Path(sys.modules[PLUGIN].__file__ or "").resolve()),
        "code": code_digest(),
    }


def check_nodes(address: str | None = None) -> list[dict[str, Any]]:
    """`check` in a task on each living node of the Ray cluster, all with the same versions and code; RunError otherwise.

    `address`: of the cluster; None: the one that Ray finds, or a new one on this machine.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = check()
    if not ray.is_initialized():
        try:
            ray.init(address=address, logging_level="WARNING", log_to_driver=False)
        except Exception as error:
            raise RunError(
                f"Ray at {address or 'this machine'} cannot be reached: {first_line(error)}; where the cluster asks for a token,"
                " as Ray 2.60 does of a user who has one, set RAY_AUTH_MODE=token."
            ) from None
    on_node = ray.remote(num_cpus=0, max_retries=0)(check)
    nodes = [node for node in ray.nodes() if node["Alive"]]
    tasks = [
        on_node.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)).remote()
        for node in nodes
    ]
    found = []
    for node, task in zip(nodes, tasks, strict=True):
        place = node["NodeManagerAddress"]
        try:
            report = ray.get(task, timeout=300)
        except Exception as error:
            cause = getattr(error, "cause", None) or error
            raise RunError(f"Node {place}: {last_line(cause)}") from None
        different = [key for key in SAME if report[key] != here[key]]
        if different:
            said = ", ".join(f"{key} {report[key]} (here {here[key]})" for key in different)
            raise RunError(
                f"Node {place} has another luspo or verl than the driver: {said}; install the same on all nodes."
            )
        found.append(report | {"node": place, "node_id": node["NodeID"]})
    return found


def code_digest() -> str:
    """Of the files that decide losses and rewards: equal where two installations compute the same."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for name in _CODE:
        place = root / name
        for file in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def last_line(error: BaseException) -> str:
    """What an error says in its last line: Ray puts the traceback of the other process before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the report as JSON, or the sentence that says what is wrong; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m luspo_cli.verl_plugin.check", description="Is luspo's plug-in in verl?"
    )
    parser.add_argument("--nodes", action="store_true", help="ask every node of the Ray cluster")
    parser.add_argument("--address", help="of the cluster; without it the one that Ray finds")
    options = parser.parse_args(arguments)
    try:
        report: Any = check_nodes(options.address) if options.nodes else check()
    except RunError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    print(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
