"""`luspo export-verl`: a preset as a script that starts verl, for those who run it without the launcher."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from luspo_cli.errors import UsageError
from luspo_cli.files import replace_file

EXPORT_VERL_EXAMPLES = [
    "luspo export-verl --preset qwen3-30b-a3b",
    "luspo export-verl --preset qwen3-30b-a3b --objective gspo --as slurm --out qwen3-gspo.sh",
    "luspo export-verl --preset qwen2.5-7b --as ray-job --set verl.nodes=2",
]


def export_verl_cli(
    preset: Annotated[str | None, Option(help="A name from presets/.")] = None,
    objective: Annotated[str | None, Option(help="grpo, gspo, luspo, ...; see `luspo objectives`. [luspo]")] = None,
    config: Annotated[Path | None, Option(help="A TOML file of your own, on top of the preset.")] = None,
    sets: Annotated[
        list[str] | None, Option("--set", help="section.key=value, on top of everything; can be repeated.")
    ] = None,
    form: Annotated[str, Option("--as", help="bash, slurm or ray-job.")] = "bash",
    out: Annotated[
        Path | None, Option(help="The script; the problems are written below --run too. [standard output, no problems]")
    ] = None,
    run: Annotated[
        Path | None, Option(help="Folder of the run's files, seen by all nodes. [runs/PRESET-OBJECTIVE-seedK-verl]")
    ] = None,
    ray_address: Annotated[str, Option(help="Of a Ray cluster that runs: auto, or host:port.")] = "",
    verl_python: Annotated[str, Option(help="verl's interpreter on the machine of the run.")] = "python",
) -> None:
    """Write the command that trains a preset in verl, one setting a line."""
    from luspo_cli.config.layers import preset_names, resolve_train
    from luspo_cli.training.verl.overrides import verl_files
    from luspo_cli.training.verl.plan import plan_verl
    from luspo_cli.training.verl.script import FORMS, script

    if form not in FORMS:
        raise UsageError(f"--as must be one of {', '.join(FORMS)}, not '{form}'")
    if preset is None and config is None:
        raise UsageError(f"say what to export: --preset NAME ({', '.join(preset_names())}) or --config FILE")
    if out is not None and out.exists():
        raise UsageError(f"{out} exists; choose another --out")
    resolved = resolve_train(
        preset=preset, objective=objective, sets=["run.engine=verl", *(sets or [])], config_file=config
    )
    name = preset or (config.stem if config else "run")
    folder = run or Path("runs") / f"{resolved.folder_name(name)}-verl"
    # A script that makes its cluster, or is sent to one, finds it by RAY_ADDRESS.
    address = ray_address or ("auto" if form != "bash" or resolved.verl.nodes > 1 else "")
    plan = plan_verl(resolved, verl_files(folder), folder.name, address)
    text = script(resolved, plan.command, verl_python, form, plan.notes())
    if out is None:
        typer.echo(text, nl=False)
        return
    if plan.missing:
        raise UsageError(plan.missing[0])
    plan.write_data()
    replace_file(out, text.encode(), then="then give the same command again")
    out.chmod(0o755)
    print(f"{out} starts the run; its problems are in {plan.files.train.parent}", file=sys.stderr)
