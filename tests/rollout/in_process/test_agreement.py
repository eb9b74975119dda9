"""Model types against plain transformers: every measured type, and what becomes of one that was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bench.models import MIXED, MODELS, made, measured
from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy import supported
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.supported import MEASURED, WINDOWED, unsupported
from luspo_cli.rollout.in_process.agreement import measure, require_agreement
from luspo_cli.rollout.in_process.packed import bfloat16_copy
from luspo_cli.training.made.build import made_tokenizer

GEMMA2 = next(changes for family, _, changes in MODELS if family == "Gemma2")


def kind_of(family: str) -> str:
    import transformers

    return str(getattr(transformers, f"{family}Config").model_type)


def loaded(folder: Path, family: str, **changes: Any) -> Any:
    made(family, changes).save_pretrained(folder)
    made_tokenizer(64).save_pretrained(folder)
    return load_model(ModelConfig(path=str(folder))).model.eval()


TYPES = [pytest.param(family, changes, id=known) for family, known, changes in MODELS if kind_of(family) in MEASURED]


@pytest.mark.parametrize(("family", "changes"), TYPES)
def test_log_probs_of_a_measured_type_are_those_of_transformers(family: str, changes: dict[str, Any]) -> None:
    found = measured(family, changes)
    assert max(found.policy, found.sampler) < 1e-4


def test_every_type_that_is_taken_unasked_is_measured() -> None:
    windows = {kind_of(family) for family, _, changes in MODELS if changes.get("sliding_window")}
    assert {kind_of(family) for family, _, _ in MODELS} >= set(MEASURED)
    assert windows >= set(WINDOWED)
    assert set(WINDOWED) <= set(MEASURED)
    told = (Path(__file__).parents[3] / "docs" / "models.md").read_text()
    assert all(f"| `{kind}` | " in told for kind in MEASURED)


@pytest.mark.parametrize(
    ("entry", "value"), [("sliding_window", 64), ("attn_logit_softcapping", None), ("final_logit_softcapping", None)]
)
def test_the_measurement_sees_a_window_and_both_caps(tmp_path: Path, entry: str, value: int | None) -> None:
    """The same weights without one of the three give other log-probs, so ignoring it could not be measured as agreement."""
    model = loaded(tmp_path, "Gemma2", **GEMMA2)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        whole = model(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
        made("Gemma2", GEMMA2 | {entry: value}).save_pretrained(tmp_path)
        without = load_model(ModelConfig(path=str(tmp_path))).model.eval()
        without.load_state_dict(model.state_dict())
        other = without(input_ids=tokens, use_cache=False).logits.log_softmax(-1)
    assert (whole - other).abs().max() > 0.01


@pytest.mark.parametrize("family", ["Gemma", "Gemma2"])
def test_the_bfloat16_sampler_keeps_the_factor_on_gemmas_embeddings(tmp_path: Path, family: str) -> None:
    changes = GEMMA2 if family == "Gemma2" else {"head_dim": 8, "tie_word_embeddings": True}
    model = loaded(tmp_path, family, **changes)
    tokens = torch.arange(3, 20)[None]
    with torch.no_grad():
        exact, rounded = (
            one(input_ids=tokens, use_cache=False).logits.float() for one in (model, bfloat16_copy(model))
        )
    assert torch.nn.functional.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.99


def test_a_type_that_was_not_measured_is_measured_with_its_own_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supported, "MEASURED", ())
    model = loaded(tmp_path, "Llama")
    require_agreement(model, "folder")
    assert model.config._attn_implementation == "luspo"


def test_a_type_whose_attention_does_more_is_refused_by_the_difference(tmp_path: Path) -> None:
    """gpt-oss adds a learnt sink to the softmax of every head, which no entry of its configuration names."""
    sizes = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "layer_types": ["full_attention"] * 2}
    model = loaded(tmp_path, "GptOss", **sizes)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("sinks"):
                weight.fill_(2.0)
    assert measure(model).policy > 0.05
    with pytest.raises(
        UsageError, match=r"'m' is of type gpt_oss, and its log-probs here differ from plain transformers' by"
    ):
        require_agreement(model, "m")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"model_type": "qwen2_moe"} | MIXED, "uses sliding-window attention, which is computed for the types"),
        ({"model_type": "qwen3_5_text", "layer_types": ["linear_attention"]}, "has layers of type linear_attention"),
        ({"model_type": "llama4_text", "layer_types": ["chunked_attention"]}, "has layers of type chunked_attention"),
        ({"model_type": "gemma3_text", "use_bidirectional_attention": True}, "attends to later tokens"),
        ({"model_type": "llama", "final_logit_softcapping": 30.0}, "computes with final_logit_softcapping = 30.0"),
        ({"model_type": "gemma2", "logit_scale": 0.5}, "computes with logit_scale = 0.5"),
    ],
)
def test_what_is_not_computed_is_refused_from_the_configuration(config: dict[str, Any], sentence: str) -> None:
    reason = unsupported(config, "m")
    assert reason is not None
    assert sentence in reason
    assert supported.unsupported({"model_type": "gemma2", "final_logit_softcapping": 30.0}, "m") is None
