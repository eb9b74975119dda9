"""LoRA on the policy: what is trained, what the passes compute, the peft folder, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luspo_cli.config.model import LoraConfig, ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.packing import PolicyBatch, Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import ScoredGroup
from luspo_cli.training.dry_run import unfit_model

pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
from luspo_cli.policy.lora import (
    BasePolicy,
    Float32Embedding,
    adapter_parameters,
    add_adapters,
    load_adapter,
    save_adapter,
)

TOKENS = torch.arange(2, 22)[None]
TARGETS = LoraConfig(rank=1).targets


def lora(rank: int = 4, dtype: str = "float32", **settings: Any) -> ModelConfig:
    return ModelConfig.model_validate(
        {"path": "x/y", "compute_dtype": dtype, "lora": {"rank": rank, "alpha": 8.0, **settings}}
    )


def stir(model: Any, seed: int = 3) -> None:
    """Give the adapters' second matrices, zero at first, values that matter."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in adapter_parameters(model).items():
            if "lora_B" in name:
                weight.normal_(0.0, 0.1, generator=generator)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return found


@pytest.fixture
def batch(make_groups: Callable[..., list[ScoredGroup]]) -> PolicyBatch:
    (group,) = make_groups([[3, 9, 5]], [[1.0, -1.0, 0.5]])
    return policy_batch([Row(rollout, 1.0) for rollout in group.rollouts])


@pytest.fixture
def base(make_model: Callable[..., Any], made_tokenizer: Any, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    make_model(tied=True).save_pretrained(folder)
    made_tokenizer.save_pretrained(folder)
    return folder


def test_new_adapters_change_nothing_and_are_all_that_is_trained(make_model: Callable[..., Any]) -> None:
    model = make_model()
    number = add_adapters(model, lora(), 0, "x/y")
    assert torch.equal(logits(model), logits(make_model()))
    # Width 32, keys and values 16, feed-forward 48; rank 4, two layers: 4 * (in + out) for each of the seven matrices.
    assert number == 2 * 4 * ((32 + 32) + 2 * (32 + 16) + (32 + 32) + 2 * (32 + 48) + (48 + 32))
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(trained) == 2 * 2 * 7
    assert all("lora_" in name for name in trained)


def test_the_seed_fixes_the_first_matrices_and_nothing_else(make_model: Callable[..., Any]) -> None:
    found = []
    for seed, disturbance in ((5, 1), (5, 2), (6, 1)):
        model = make_model()
        torch.manual_seed(disturbance)
        add_adapters(model, lora(), seed, "x/y")
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(disturbance))  # left alone
        found.append(torch.cat([weight.flatten() for weight in adapter_parameters(model).values()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def passes(model: Any, batch: PolicyBatch, dtype: torch.dtype | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Log-probs and the gradients of what is trained, under autocast to `dtype`."""
    policy = Policy(model, 0.9).train()
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        logprobs, entropy = policy(batch, with_entropy=True)
    (logprobs.sum() + 0.3 * entropy.sum()).backward()
    return logprobs.detach(), {name: w.grad for name, w in model.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("tied", [False, True])
def test_a_base_in_bfloat16_computes_what_autocast_of_float32_computes(
    make_model: Callable[..., Any], batch: PolicyBatch, tied: bool
) -> None:
    """Bit for bit, log-probs and gradients, where the published weights are bfloat16."""

    def published() -> Any:
        model = make_model(tied=tied)
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().float()
        return model

    one, other = published(), published()
    add_adapters(one, lora(dtype="bfloat16"), 0, "x/y")
    add_adapters(other, lora(dtype="float32"), 0, "x/y")
    held = {name: weight.dtype for name, weight in one.named_parameters()}
    for name, dtype in held.items():
        assert dtype == (torch.float32 if "lora_" in name or "norm" in name else torch.bfloat16), name
    assert isinstance(one.model.embed_tokens, Float32Embedding)
    assert (one.lm_head.weight is one.model.embed_tokens.weight) is tied
    stir(one)
    stir(other)
    results = [passes(model, batch, torch.bfloat16) for model in (one, other)]
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1].keys() == results[1][1].keys()
    assert all(torch.equal(gradient, results[1][1][name]) for name, gradient in results[0][1].items())
    assert not torch.equal(results[0][0], passes(other, batch, None)[0])  # bfloat16 did round


@pytest.mark.parametrize("adapters", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradient_checkpointing_changes_no_bit(
    make_model: Callable[..., Any], batch: PolicyBatch, adapters: bool, dtype: str
) -> None:
    found = []
    for checkpointing in (False, True):
        model = make_model()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()  # as load_model does
        if adapters:
            add_adapters(model, lora(dtype=dtype), 0, "x/y")
            stir(model)
        calls: list[int] = []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        found.append(passes(model, batch, torch.bfloat16 if dtype == "bfloat16" else None))
        assert len(calls) == 1 + checkpointing  # computed again in the backward pass
    assert torch.equal(found[0][0], found[1][0])
    assert found[0][1].keys() == found[1][1].keys()
    assert len(found[0][1]) == (28 if adapters else 27)
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


def test_the_reference_is_the_policy_without_adapters(make_model: Callable[..., Any], batch: PolicyBatch) -> None:
    model = make_model()
    add_adapters(model, lora(), 0, "x/y")
    stir(model)
    policy = Policy(model, 0.9)
    with torch.no_grad():
        reference, plain = BasePolicy(policy, model)(batch)[0], Policy(make_model(), 0.9)(batch)[0]
        assert torch.equal(reference, plain)
        assert not torch.allclose(policy(batch)[0], plain, atol=0.1)


def test_peft_reads_the_folder(base: Path, tmp_path: Path) -> None:
    """peft's own loader, on transformers' own model, computes what the trained policy computes."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = load_model(ModelConfig(path=str(base))).model
    add_adapters(model, lora(), 0, str(base))
    stir(model)
    save_adapter(model, tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == str(base)
    assert (stored["r"], stored["lora_alpha"], tuple(stored["target_modules"])) == (4, 8.0, tuple(sorted(TARGETS)))
    stock = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert torch.allclose(logits(PeftModel.from_pretrained(stock, tmp_path)), logits(model), atol=1e-5)


def test_adapters_come_back_bit_for_bit_and_fold_into_their_base(
    base: Path, made_tokenizer: Any, tmp_path: Path
) -> None:
    model = load_model(ModelConfig(path=str(base))).model
    add_adapters(model, lora(), 0, str(base))
    stir(model)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, folder)
    again = load_model(ModelConfig(path=str(base))).model
    add_adapters(again, lora(), 1, str(base))
    load_adapter(again, folder)
    assert torch.equal(logits(again), logits(model))
    folded = load_model(ModelConfig(path=str(folder))).model
    assert [name for name, _ in folded.named_parameters()] == [
        name for name, _ in load_model(ModelConfig(path=str(base))).model.named_parameters()
    ]
    assert torch.allclose(logits(folded), logits(model), atol=1e-4)
    assert not torch.allclose(logits(folded), logits(load_model(ModelConfig(path=str(base))).model), atol=0.1)
    add_adapters(other := load_model(ModelConfig(path=str(base))).model, lora(rank=2), 0, str(base))
    with pytest.raises(UsageError, match="does not fit the model"):
        load_adapter(other, folder)
    with pytest.raises(UsageError, match=r"is an adapter; make a model of it first \(luspo merge"):
        load_model(lora().model_copy(update={"path": str(folder)}))


def test_an_adapter_whose_base_is_gone(base: Path, tmp_path: Path) -> None:
    model = load_model(ModelConfig(path=str(base))).model
    add_adapters(model, lora(), 0, str(base))
    save_adapter(model, tmp_path)
    base.rename(tmp_path / "elsewhere")
    with pytest.raises(
        UsageError, match=r"base model of the adapter in .* cannot be loaded: .* is not a folder"
    ) as caught:
        load_model(ModelConfig(path=str(tmp_path)))
    assert "\n" not in str(caught.value)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(UsageError, match="is no adapter's configuration"):
        load_model(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_prj"])
def test_a_target_that_carries_no_adapter(make_model: Callable[..., Any], target: str) -> None:
    with pytest.raises(UsageError, match=f"names '{target}', which is no linear layer inside .* there are down_proj"):
        add_adapters(make_model(), lora(targets=["q_proj", target]), 0, "x/y")


def test_a_published_bfloat16_base_is_read_as_it_is(
    make_model: Callable[..., Any], made_tokenizer: Any, tmp_path: Path
) -> None:
    """Read in its own type or through float32: the same weights in the same types, and rotary frequencies in float32."""
    model = make_model(tied=True)
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
    model.config.dtype = torch.bfloat16
    model.save_pretrained(tmp_path)
    made_tokenizer.save_pretrained(tmp_path)
    config = lora(dtype="bfloat16").model_copy(update={"path": str(tmp_path)})
    direct, through_float32 = load_model(config).model, load_model(ModelConfig(path=str(tmp_path))).model
    assert {weight.dtype for weight in direct.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in through_float32.parameters()} == {torch.float32}
    for read in (direct, through_float32):
        add_adapters(read, config, 0, str(tmp_path))
    for one, other in (
        (direct.named_parameters(), through_float32.named_parameters()),
        (direct.named_buffers(), through_float32.named_buffers()),
    ):
        for (name, value), (_, expected) in zip(one, other, strict=True):
            assert value.dtype == expected.dtype, name
            assert torch.equal(value, expected), name
    assert direct.model.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 7}},
        {"use_dora": True},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": "all-linear"},
        {"modules_to_save": ["lm_head", "norm"]},
        {"bias": "all"},
        {"layers_to_transform": [0]},
        {"init_lora_weights": "pissa"},
    ],
)
def test_adapters_of_any_kind_fold_into_what_peft_computes(
    make_model: Callable[..., Any], made_tokenizer: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    import peft

    base, folder = tmp_path / "base", tmp_path / "adapter"
    make_model().save_pretrained(base)
    made_tokenizer.save_pretrained(base)
    options = {"r": 4, "lora_alpha": 16, "target_modules": ["q_proj", "up_proj"]} | settings
    torch.manual_seed(1)
    loaded = load_model(ModelConfig(path=str(base))).model
    loaded.config.name_or_path = loaded.name_or_path = str(base)
    model = peft.get_peft_model(loaded, peft.LoraConfig(task_type="CAUSAL_LM", **options)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    wanted = logits(model)
    model.save_pretrained(folder)
    folded = load_model(ModelConfig(path=str(folder))).model
    assert not any("lora" in name for name, _ in folded.named_modules())
    assert torch.allclose(logits(folded), wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layer_replication": [[0, 2], [1, 2]]}, "has layer_replication in its adapter_config.json"),
        ({"peft_type": "IA3"}, "holds a IA3 adapter"),
        ({"modules_to_save": ["lm_head"]}, "changes lm_head .* one matrix for embedding and head"),
    ],
)
def test_an_adapter_that_no_plain_model_can_hold(
    base: Path, tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    """`base` is a tied model."""
    model = load_model(ModelConfig(path=str(base))).model
    add_adapters(model, lora(), 0, str(base))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_adapter(model, folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UsageError, match=sentence):
        load_model(ModelConfig(path=str(folder)))


@pytest.mark.parametrize(
    ("change_of", "sentence"),
    [
        (lambda base, folder: None, None),
        (lambda base, folder: base.rename(base.with_name("away")), "base model of the adapter in .* is not a folder"),
        (lambda base, folder: (base / "config.json").write_text("{"), "base model of the adapter .* one JSON object"),
        (lambda base, folder: (base / "chat_template.jinja").write_text("{{ a"), "base model of the adapter .* is broken"),
        (lambda base, folder: (folder / "adapter_model.safetensors").unlink(), r"no adapter_model\.safetensors"),
        (lambda base, folder: change(folder, target_modules=5), "is no adapter's configuration: 'int' object"),
        (lambda base, folder: change(folder, base_model_name_or_path=5), "base_model_name_or_path = 5"),
        (lambda base, folder: change(folder, base_model_name_or_path=str(folder)), "is an adapter itself"),
        (lambda base, folder: (folder / "adapter_config.json").write_text("[]"), "adapter_config.json .* no JSON object"),
    ],
)  # fmt: skip
def test_the_dry_run_knows_what_loading_refuses_of_an_adapter(
    base: Path, tmp_path: Path, change_of: Callable[[Path, Path], Any], sentence: str | None
) -> None:
    folder = tmp_path / "adapter"
    add_adapters(model := load_model(ModelConfig(path=str(base))).model, lora(), 0, str(base))
    folder.mkdir()
    save_adapter(model, folder)
    change_of(base, folder)
    config = ModelConfig(path=str(folder))
    told = unfit_model(config, {})
    if sentence is None:
        assert told is None
        assert load_model(config).end_tokens
        again = lora().model_copy(update={"path": str(folder)})
        assert "is an adapter; make a model of it first (luspo merge" in str(unfit_model(again, {}))
        return
    assert re.search(sentence, str(told))
    with pytest.raises(UsageError, match=sentence) as caught:
        load_model(config)
    assert str(caught.value) == told


def change(folder: Path, **entries: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
