"""The configuration of `luspo eval`, and the options that are shorthands for its keys.

Defaults → configuration file → options → `--set`, the later one wins. Every option sets one key (`OPTIONS`), so a key that has
no option is set in the file or with `--set`.
"""

from __future__ import annotations

import os.path
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from luspo_cli.config.base import Section
from luspo_cli.config.evaluation import Blind
from luspo_cli.config.layers import merge, nested, parse_set, read_toml, validated
from luspo_cli.config.rollout import TemplateArguments
from luspo_cli.errors import UsageError

Mode = Literal["rule", "official"]
"""`rule`: our extraction and a comparison that never guesses; `official`: the benchmark's own script."""
JudgeTask = Literal["extract", "verdict"]
PathText = Annotated[str, AfterValidator(os.path.expanduser)]
"""A path as text; `~` is the home folder."""


class WeightsConfig(Section):
    """Which model is evaluated."""

    path: str = ""
    """A run, a folder of a model or adapter, or a hub id."""
    step: int | None = Field(default=None, ge=1)
    """The run's checkpoint of this step; left out: the newest whole one."""
    revision: str = ""
    """Branch, tag or commit of a hub id; empty: main."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless you have read that code."""


class BenchmarkConfig(Section):
    """What is asked, and how answers are scored."""

    names: tuple[str, ...] = Field(default=(), strict=False)
    """Benchmarks by name, or files that describe one's own; one text may hold several with commas between them."""
    suite: str = ""
    """A named set of benchmarks in the place of `names`."""
    data: PathText = ""
    """Folder with the benchmark's files; of several benchmarks, with a folder each. Empty: the hub."""
    prompt: str = ""
    """Prompt variant, which also says where the answer is looked for; empty: the benchmark's own."""
    mode: Mode = "rule"

    @field_validator("names", mode="before")
    @classmethod
    def _split(cls, names: Any) -> Any:
        if isinstance(names, str):
            written = [name.strip() for name in names.split(",") if name.strip()]
            return tuple(name if name.endswith(".toml") else name.lower() for name in written)
        return names


class SamplingConfig(Section):
    """How responses are drawn. Everything here can change a sample, so it is stored with the result and compared."""

    samples: int = Field(default=1, ge=1)
    """Responses a problem."""
    temperature: float = Field(default=1.0, ge=0)
    """With top_p 1 the policy itself, as it trains; 0: greedy."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus: sample from the smallest set of tokens with this probability."""
    max_response_tokens: int = Field(default=0, ge=0)
    """Response limit; 0: the run's, and 2,048 for a model that is no run's."""
    seed: int = Field(default=0, ge=0)
    limit: int = Field(default=0, ge=0)
    """The first so many problems; 0: all."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. auto: the run's; else bfloat16 where the machine computes it in hardware, else float32."""
    max_rows: int = Field(default=64, ge=1)
    """Responses in flight: on a CPU more of them cost memory and bring little, and a kill costs about so many."""
    sampler: Literal["auto", "in-process", "vllm"] = "auto"
    """auto: vLLM where there is a CUDA device and vllm is installed, in-process otherwise."""
    chat_template: TemplateArguments | None = None
    """Arguments for the model's chat template, such as { enable_thinking = false }; left out: the run's own."""

    blind: Blind = "none"
    """Draw a second time with other images, to tell what the text alone gives: noise, or another problem's images."""

    @property
    def chunk_problems(self) -> int:
        """Problems in one call of the sampler."""
        return max(1, self.max_rows // self.samples)


class JudgeConfig(Section):
    """A language model as a second reader, beside the rule; off while there is no `url`."""

    url: str = ""
    """Base address of an OpenAI-compatible endpoint, such as http://localhost:8000/v1."""
    model: str = ""
    """The judge's name at the endpoint."""
    key_env: str = ""
    """Environment variable that holds the endpoint's key."""
    task: JudgeTask = "extract"
    """extract: the judge reads the answer and our comparison decides; verdict: the judge decides."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds that one request may take."""
    workers: int = Field(default=8, ge=1)
    """Requests in flight."""

    def faults(self) -> Iterator[str]:
        if bool(self.url) != bool(self.model):
            yield "a judge needs both judge.url and judge.model (--judge-url, --judge-model): give the other one too"


class ResponsesConfig(Section):
    """Responses made elsewhere, scored without a model."""

    file: PathText = ""
    """JSON lines, one problem each."""


class OutputConfig(Section):
    """Where results go."""

    path: PathText = ""
    """A folder (empty: RUN/evals or evals/MODEL); with `responses.file` the JSON file (empty: none)."""
    replace: bool = False
    """Draw anew where results with other settings stand."""


class EvalRun(Section):
    """Everything that an evaluation depends on; a result holds it, resolved and without `output`, as `config`."""

    model: WeightsConfig = WeightsConfig()
    benchmark: BenchmarkConfig = BenchmarkConfig()
    sampling: SamplingConfig = SamplingConfig()
    judge: JudgeConfig = JudgeConfig()
    responses: ResponsesConfig = ResponsesConfig()
    output: OutputConfig = OutputConfig()

    def stored(self) -> dict[str, Any]:
        """What a result keeps of it: without the place of the result, which changes no number."""
        return self.model_dump(mode="json", exclude={"output"})

    def unread(self) -> dict[str, str]:
        """The keys that were given and that nothing reads in this evaluation, each with the reason as the end of a sentence."""
        reasons: dict[str, str] = {}
        if self.responses.file:
            drawing = "is for drawing responses; leave it out with --responses."
            reasons |= {f"model.{key}": drawing for key in self.model.model_fields_set}
            reasons |= {f"sampling.{key}": drawing for key in self.sampling.model_fields_set}
            if self.output.replace:
                what = "is for drawing responses; with --responses the file of --out is always replaced."
                reasons["output.replace"] = what
            if self.model.path:
                reasons["model.path"] = "is not read: --responses needs no model; leave one of the two out."
        if not self.judge.url and not self.judge.model:
            what = "goes with --judge-url and --judge-model; add them or leave it out."
            reasons |= {f"judge.{key}": what for key in self.judge.model_fields_set}
        return reasons


OPTIONS: Mapping[str, str] = {
    "model": "model.path",
    **{key: f"model.{key}" for key in ("step", "revision", "trust_remote_code")},
    "benchmark": "benchmark.names",
    **{key: f"benchmark.{key}" for key in ("suite", "data", "prompt", "mode")},
    **{key: f"sampling.{key}" for key in SamplingConfig.model_fields if key not in ("chat_template", "blind")},
    **{f"judge_{key.removesuffix('_s')}": f"judge.{key}" for key in JudgeConfig.model_fields},
    "responses": "responses.file",
    "out": "output.path",
    "replace": "output.replace",
}
"""Option of `luspo eval`, by the name of its parameter → the key that it sets."""


def resolve_eval(
    options: Mapping[str, Any] | None = None, *, sets: Sequence[str] = (), config_file: Path | None = None
) -> EvalRun:
    """Merge the layers and validate the result; `options` that are None are not given.

    Raises:
        UsageError: one sentence for the first thing that is wrong.
    """
    layers: list[tuple[Mapping[str, Any], str]] = []
    if config_file is not None:
        layers.append((read_toml(config_file), str(config_file)))
    for option, value in (options or {}).items():
        if value is not None:
            origin = "MODEL_OR_RUN" if option == "model" else f"--{option.replace('_', '-')}"
            layers.append((nested(OPTIONS[option], value), origin))
    by_option = {origin for _, origin in layers[config_file is not None :]}
    layers += [(parse_set(assignment, "sampling.samples=4"), "--set") for assignment in sets]
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for layer, origin in layers:
        merge(merged, origins, layer, origin, root=EvalRun)
    config = validated(EvalRun, merged, origins)
    for key, reason in config.unread().items():
        origin = origins[key]
        raise UsageError(f"{origin} {reason}" if origin in by_option else f"{origin}: {key} {reason}")
    return config
