"""Which models the engine trains, told from a model's configuration alone; without torch, so the dry run asks this too.

What a model type does is read in the source of the installed transformers, which is not imported for it: whether there is such
a type, and whether its attention can be replaced by ours.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier", "output_multiplier")
"""Configuration entries by which some models multiply or divide their logits; 1 changes nothing."""
CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap", "attn_logit_softcapping")
"""Entries by which some models bound their logits or attention scores through a tanh."""
COMPUTED_CAPS = ("final_logit_softcapping", "attn_logit_softcapping")
"""Those of them that the engine computes, for the model types of `CAPPED`."""
CAPPED = ("gemma2", "gemma3_text", "vaultgemma")
WINDOWED = (
    "exaone4", "gemma2", "gemma3_text", "ministral", "mistral", "mixtral", "olmo3", "phi3", "qwen2", "qwen3", "smollm3",
    "starcoder2", "vaultgemma",
)  # fmt: skip
"""Model types that hand their window to the attention function, measured against transformers with rows longer than it."""
MEASURED = (
    "apertus", "arcee", "cohere", "deepseek_v2", "deepseek_v3", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text",
    "glm", "glm4", "granite", "helium", "hunyuan_v1_dense", "llama", "ministral", "mistral", "mixtral", "nemotron", "olmo",
    "olmo2", "olmo3", "opt", "phi3", "phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "seed_oss", "smollm3", "stablelm",
    "starcoder2", "vaultgemma",
)  # fmt: skip
"""Model types whose log-probs were compared with transformers' own (docs/models.md); of another one each model is, when it is
loaded (rollout/in_process/agreement.py)."""
POSITIVE = ("rope_theta", "rope_local_base_freq", "rotary_emb_base", "factor")
"""Entries that the positions of tokens are divided by or raised to."""
VISION_MODELS = {
    "qwen2_vl": "Qwen2VLProcessor",
    "qwen2_5_vl": "Qwen2_5_VLProcessor",
    "qwen3_vl": "Qwen3VLProcessor",
}
"""Model types whose image tokens and rotary positions the engine knows, with their processors in transformers."""
IMAGE_TOKEN_ENTRIES = (
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
)
"""Entries of a vision model's configuration that name tokens which are never drawn."""
EXPERT_MODELS = ("qwen2_moe", "qwen3_moe")
"""Model types with experts whose routers the engine reads, and whose experts it computes."""
DENSE = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers are norms, products and gated feed-forwards of the plain form, and do the same with every number."""
SCALED_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of positions that depend on how long a row is."""
OTHER_TASKS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
"""Ends of the names of architectures that do not write text."""


def unsupported(config: Mapping[str, Any], path: str) -> str | None:
    """One sentence why the model at `path` with this config.json cannot be trained here; None where nothing is known.

    An entry of another kind than it should be is left to whoever reads the model.
    """
    text = config.get("text_config")
    if not (isinstance(text, dict) and text):
        text = config
    stored = [part.get(name) for part in (config, text) for name in ("quantization_config", "compression_config")]
    for quantised in (entry for entry in stored if entry is not None):
        entries = quantised if isinstance(quantised, dict) else {}
        method = entries.get("quant_method") or entries.get("quantization_type") or "an unnamed method"
        return f"the weights of model '{path}' are quantised ({method}), which cannot be trained; take the unquantised model"
    for name in FACTORS + CAPS:
        value = text.get(name)
        computed = value == 1 if name in FACTORS else name in COMPUTED_CAPS and text.get("model_type") in CAPPED
        if value is not None and not computed:
            return (
                f"model '{path}' computes with {name} = {value}, which log-probs and rollouts here would leave out;"
                " choose another model"
            )
    if bad := _no_number(config):
        return f"the config.json of model '{path}' has {bad}, which no model can compute with; mend it, or take a complete copy"
    kinds = text.get("layer_types")
    for kind in kinds if isinstance(kinds, list | tuple) else ():
        if kind not in ("full_attention", "sliding_attention"):
            return (
                f"model '{path}' has layers of type {kind}, and only full and sliding-window attention can be computed here;"
                " choose another model"
            )
    if text.get("use_bidirectional_attention"):
        return (
            f"model '{path}' attends to later tokens (use_bidirectional_attention), so it does not write text; choose"
            " another model"
        )
    if not causal_only(text) and text.get("model_type") not in WINDOWED:
        return (
            f"model '{path}' uses sliding-window attention, which is computed for the types {', '.join(WINDOWED)} alone;"
            " choose one of those, or a model without a window"
        )
    return _of_its_type(config, path)


def _no_number(entries: Mapping[str, Any]) -> str | None:
    """The first entry, in whichever part, that is no finite number, or a factor or small constant of the wrong sign."""
    for name, value in entries.items():
        if isinstance(value, dict) and (inner := _no_number(value)):
            return inner
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        low = 0 if str(name).endswith(("_eps", "_epsilon")) else math.ulp(0.0) if name in POSITIVE else -math.inf
        if not math.isfinite(value) or value < low:
            return f"{name} = {value}"
    return None


def causal_only(text: Mapping[str, Any]) -> bool:
    """Whether every layer attends to all earlier positions.

    `text`: the configuration of the language model.
    """
    kinds = text.get("layer_types")
    if kinds and isinstance(kinds, list | tuple):
        return all(kind == "full_attention" for kind in kinds)
    # Mistral, Phi-3 and Starcoder2 list no layers: one window, where it is set, holds for all of them.
    return not (text.get("sliding_window") and text.get("use_sliding_window", True))


def steps_are_plain(config: Mapping[str, Any]) -> bool:
    """Whether a decode step's operations depend on no number and each row reads all of its columns, by config.json."""
    positions = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = str(positions.get("rope_type", positions.get("type", "")))
    return (
        config.get("model_type") in DENSE
        and causal_only(config)
        and not any(scaled in kind for scaled in SCALED_BY_LENGTH)
    )


def graph_unfit(config: Mapping[str, Any]) -> str | None:
    """Say why a decode step of the model with this config.json is no graph; None where it is one."""
    if steps_are_plain(config):
        return None
    return (
        f"model.kernels.decode = graph computes plain decoders ({', '.join(DENSE)}) that see every earlier token, and this"
        f" model ({config.get('model_type')}) is none: set it to layers"
    )


def is_measured(kind: object) -> bool:
    """Whether log-probs of this model type were compared with transformers', so that its models are taken as they are."""
    return kind in MEASURED or kind in VISION_MODELS


def image_token_ids(config: Any) -> tuple[int, ...]:
    """A vision model's image tokens by its configuration, sorted; empty for a model that reads text only."""
    ids = {getattr(config, name, None) for name in IMAGE_TOKEN_ENTRIES}
    return tuple(sorted(number for number in ids if isinstance(number, int)))


def _of_its_type(config: Mapping[str, Any], path: str) -> str | None:
    kind, named = config.get("model_type"), config.get("architectures")
    architectures = [str(name) for name in named] if isinstance(named, list | tuple) else []
    if config.get("is_encoder_decoder"):
        return f"model '{path}' is an encoder-decoder model, which is not supported; choose a causal language model"
    if architectures and all(name.endswith(OTHER_TASKS) for name in architectures):
        return f"model '{path}' is a {architectures[0]}, which does not write text; choose a causal language model"
    if not (kind and isinstance(kind, str)):
        return f"the config.json of model '{path}' names no model_type; take a folder that transformers can load"
    if isinstance(config.get("vision_config"), dict) and kind not in VISION_MODELS:
        *others, last = sorted(VISION_MODELS)
        known = f"{', '.join(others)} and {last}"
        return f"model '{path}' is a vision model of type {kind}; supported are {known}"
    if config.get("auto_map"):  # its code comes with the model and is not read here
        return None
    entry = f'("{kind}", '
    if entry not in _source("auto/configuration_auto.py") + _source("auto/auto_mappings.py"):
        return f"model '{path}' is of type {kind}, which the installed transformers does not know; choose another model"
    if entry in _listed("MASKED_LM"):
        return (
            f"model '{path}' is of type {kind}, an encoder, which does not write text; choose a causal language model"
        )
    if entry not in _listed("CAUSAL_LM") and kind not in VISION_MODELS:
        return f"model '{path}' is of type {kind}, which is no causal language model; choose another one"
    folder = str(kind).replace("-", "_")
    source = _source(f"{folder}/modeling_{folder}.py")
    if source and "ALL_ATTENTION_FUNCTIONS" not in source:
        return (
            f"model '{path}' is of type {kind}, whose attention cannot be replaced by the engine's and is not supported;"
            " choose a model of the Llama or Qwen kind"
        )
    return None


def _listed(task: str) -> str:
    """The part of transformers' table of models that lists those for `task`."""
    found = re.search(rf"MODEL_FOR_{task}_MAPPING_NAMES = .*?\n\)", _source("auto/modeling_auto.py"), re.DOTALL)
    return found[0] if found else ""


@cache
def _source(file: str) -> str:
    """The text of a file of transformers' models; empty where it is not there."""
    spec = find_spec("transformers")
    if spec is None or spec.origin is None:
        return ""
    place = Path(spec.origin).parent / "models" / file
    return place.read_text(encoding="utf-8") if place.is_file() else ""
