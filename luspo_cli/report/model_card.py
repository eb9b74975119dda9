"""The model card of `luspo push`: one run in the words of its report, with what it does not show.

Nothing of the machine that trained is in it: of a path only the last part is told.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from luspo_cli.analysis.history import RunHistory
from luspo_cli.analysis.logs import read_json_lines
from luspo_cli.analysis.variants import show, split_into_variants
from luspo_cli.config.run import MADE
from luspo_cli.config.stored import differing_keys, flatten, with_defaults
from luspo_cli.policy.model_files import is_hub_id
from luspo_cli.report.tables import formulas

FIGURE = "luspo/lengths.png"
PLACES = ("rollout.vllm.servers", "verl.")
"""Keys that name machines or programs of one machine."""
ENDS = (
    ("response_length/mean", "mean response length, tokens"),
    ("response/truncated_fraction", "responses cut by the limit"),
    ("reward/accuracy/mean", "accuracy on the training batch"),
    ("reward/total/mean", "mean reward"),
)
INTERVAL = ("evaluation/accuracy_low", "evaluation/accuracy_high")
NOTED_CUT = 0.05
"""Share of cut responses from which the card says so."""
Rows = Sequence[Sequence[str]]


def public(value: Any) -> Any:
    """A stored value as it may leave this machine: of an absolute path the last part, everything else as it is."""
    if isinstance(value, Mapping):
        return {key: public(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [public(inner) for inner in value]
    if isinstance(value, str) and value.startswith(("/", "~", "file:")):
        return value.rstrip("/").rpartition("/")[2]
    return value


def public_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The leaves of a run's configuration, as `public`, without the keys that name machines."""
    return {key: public(value) for key, value in flatten(config).items() if not key.startswith(PLACES)}


def model_card(run: RunHistory, step: int, repository: str, *, adapter: bool, vision: bool) -> str:
    """README.md of the weights of `step`: front matter, objective, settings, curves, evaluations, provenance, limits."""
    settings = public_settings(with_defaults(run.config))
    base = str(settings.get("model.path", "?"))
    parts = [
        _front_matter(run, adapter=adapter, vision=vision),
        f"# {repository.rpartition('/')[2]}",
        f"{'An adapter' if adapter else 'Weights'} of step {step} of a training with luspo: {_start(base)},"
        f" objective `{run.objective}`, data"
        f" `{settings.get('data.train') or '?'}`, seed {run.seed}. This card was made from the run's own record.",
        "## Objective",
        *_objective(run),
        "## Settings",
        "What differs from the defaults of luspo"
        f" {run.provenance.get('luspo', '(version not recorded)')}; all keys are in `luspo/config.json`.",
        _table(("key", "value"), [(f"`{key}`", _code(value)) for key, value in _changed(run, settings)]),
        "## Curves",
        f"![Response length and accuracy over training steps]({FIGURE})",
        *_ends(run, step),
        "All steps are in `luspo/metrics.jsonl`, one JSON object a line.",
        "## Evaluations",
        *_evaluations(run, step),
        "## Provenance",
        _table(("what", "value"), [(what, _code(value)) for what, value in _provenance(run)]),
        "## What this run does not show",
        "\n".join(f"- {sentence}" for sentence in _limits(run, step, base)),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _front_matter(run: RunHistory, *, adapter: bool, vision: bool) -> str:
    path = run.setting("model", "path") or ""
    lines = [
        f"library_name: {'peft' if adapter else 'transformers'}",
        f"pipeline_tag: {'image-text-to-text' if vision else 'text-generation'}",
        f"tags: {json.dumps(list(dict.fromkeys(['luspo', 'reinforcement-learning', 'rlvr', run.objective])))}",
    ]
    if is_hub_id(path):
        lines.append(f"base_model: {json.dumps(path)}")
    return "\n".join(["---", *lines, "---"])


def _start(base: str) -> str:
    return "a small model made on the spot" if base == MADE else f"started from `{base}`"


def _objective(run: RunHistory) -> Iterator[str]:
    for formula in formulas(split_into_variants([run])):
        if formula["equation"]:
            yield f"```\n{formula['equation']}\n```"
        yield _table(("part", "as it was executed"), [(title, _code(said, "")) for title, said in formula["rows"]])


def _changed(run: RunHistory, settings: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Settings that differ from their defaults; those of the objective stand beside its formula."""
    stored = with_defaults(run.config)
    needed = {"objective": stored.get("objective"), "model": {"path": ""}, "data": {"train": ""}, "rollout": {}}
    keys = {key for key, _, _ in differing_keys(with_defaults(needed), stored)}
    return [(key, value) for key, value in settings.items() if key in keys and not key.startswith("objective.")]


def _ends(run: RunHistory, step: int) -> Iterator[str]:
    upto = run.table.loc[:step]
    rows = []
    for metric, said in ENDS:
        if metric in upto and len(known := upto[metric].dropna()):
            rows.append((said, f"{known.iloc[0]:.4g}", f"{known.iloc[-1]:.4g}"))
    if rows:
        yield _table(("", f"step {int(upto.index[0])}", f"step {int(upto.index[-1])}"), rows)


def _evaluations(run: RunHistory, step: int) -> Iterator[str]:
    rows = []
    held_out = _held_out(run, step)
    for row in {id(row): row for row in (*held_out[:1], *held_out[-1:])}.values():
        shown = _percent(row["evaluation/accuracy"], [row.get(end) for end in INTERVAL])
        samples, cut = run.setting("evaluation", "samples"), row.get("evaluation/truncated_fraction")
        problems = str(row.get("evaluation/problems", "?"))
        of_run = str(samples or "?"), _percent(cut, None)
        rows.append(("held-out", str(row["step"]), shown, problems, *of_run))
    for name, content in run.benchmarks.items():
        metrics = content["metrics"]
        rows.append(
            (
                f"{name} (version {content.get('version', '?')}, {content.get('mode', '?')})",
                str(content.get("step", "?")),
                _percent(metrics.get("accuracy"), metrics.get("accuracy_interval_95")),
                str(content.get("n_problems", "?")),
                str(content.get("n_samples", "?")),
                _percent(metrics.get("truncated_fraction"), None),
            )
        )
    if not rows:
        yield "None was made."
        return
    yield _table(("benchmark", "step", "accuracy [95 %]", "problems", "samples a problem", "cut"), rows)
    yield "Accuracy is the mean over problems of their share of right samples; the interval is over problems."


def _percent(value: Any, interval: Any) -> str:
    if not isinstance(value, float | int):
        return "?"
    ends = [one for one in interval or () if isinstance(one, float | int) and one == one]
    shown = f" [{ends[0]:.1%}, {ends[1]:.1%}]" if len(ends) == 2 else ""
    return f"{value:.1%}{shown}"


def _provenance(run: RunHistory) -> Iterator[tuple[str, Any]]:
    found = run.provenance
    code = found.get("code") or {}
    yield "luspo", found.get("luspo")
    yield "commit", code.get("commit")
    if code.get("uncommitted"):
        yield "uncommitted changes, sha256", code["uncommitted"]
    yield "Python", found.get("python")
    for package, version in (found.get("packages") or {}).items():
        if version:
            yield package, version
    yield "seed", found.get("seed", run.seed)
    hardware = found.get("hardware") or {}
    yield "hardware", ", ".join(map(str, hardware.get("gpus") or [])) or hardware.get("processor")
    for name, data in (found.get("data") or {}).items():
        yield f"data, {name}", f"{public(data.get('path'))}, sha256 {data.get('sha256')}"
    model = found.get("model") or {}
    if model.get("commit"):
        yield "base model's commit", model["commit"]
    for name, digest in (model.get("weights") or {}).items():
        yield f"starting weights, {name}", f"sha256 {digest}"
    for name, function in (found.get("functions") or {}).items():
        digest = function.get("sha256") if isinstance(function, Mapping) else function
        yield f"own function, {name}", f"sha256 {digest}"
    yield "configuration, sha256", found.get("configuration")


def _limits(run: RunHistory, step: int, base: str) -> Iterator[str]:
    yield (
        f"It is one run with one seed ({run.seed}): another seed may end elsewhere, and nothing here compares objectives or"
        " settings."
    )
    if run.planned_steps and step < run.planned_steps:
        yield f"These are the weights of step {step}, and {run.planned_steps} steps were planned."
    yield from _of_held_out(run, step)
    if not run.benchmarks:
        yield "It was scored on no benchmark."
    else:
        if other := [name for name, content in run.benchmarks.items() if content.get("step") != step]:
            yield f"Not scored at the step of these weights: {', '.join(other)}."
        yield "Whether the problems of a benchmark were in what the starting model had read before is not known."
    cut = run.table.loc[:step].get("response/truncated_fraction")
    if cut is not None and len(cut) and cut.iloc[-1] >= NOTED_CUT:
        yield (
            f"{cut.iloc[-1]:.0%} of the responses of the last step were cut by the limit: how long they would have become is not"
            " known."
        )
    if base == MADE:
        yield (
            "The model is a small one, made on the spot for a made task: it shows what an objective does, not what a language"
            " model can do."
        )
    if (run.provenance.get("code") or {}).get("uncommitted"):
        yield "The code had uncommitted changes: the commit alone does not give this run."
    yield "No licence is stated here: see those of the starting model and of the data."


def _of_held_out(run: RunHistory, step: int) -> Iterator[str]:
    known = _held_out(run, step)
    if not known:
        yield "No held-out accuracy was measured while it trained."
        return
    first, last = known[0], known[-1]
    low, high = INTERVAL
    if known[0]["step"] != 0 or len(known) < 2:
        yield "Held-out accuracy was not measured both before and after the training, so no gain is shown."
    elif first.keys() & last.keys() >= {low, high} and last[low] <= first[high] and first[low] <= last[high]:
        yield "The intervals of held-out accuracy before and after the training overlap: a change in accuracy is not shown."


def _held_out(run: RunHistory, step: int) -> list[dict[str, Any]]:
    """The run's held-out evaluations up to `step`; that of step 0 is the model before the training."""
    log = run.path / "evals" / "held-out.jsonl"
    rows = read_json_lines(log)[0] if log.is_file() else []
    return [row for row in rows if row.get("step", step + 1) <= step and "evaluation/accuracy" in row]


def _table(head: Sequence[str], rows: Rows) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _code(value: Any, mark: str = "`") -> str:
    text = " ".join(show(value).split())
    return f"{mark}{text}{mark}" if text else ""
