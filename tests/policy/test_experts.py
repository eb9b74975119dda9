"""Models with experts: loaded whole, computed as transformers computes them, and published under the names of their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from doubles.models import own_experts, random_experts, save
from luspo_cli.config.model import ModelConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy import experts
from luspo_cli.policy.loading import load_model
from luspo_cli.policy.lora import add_adapters, merged_weights
from luspo_cli.policy.packing import Row, policy_batch
from luspo_cli.policy.policy import Policy
from luspo_cli.records import Prompt, ScoredGroup
from luspo_cli.rollout.in_process.packed import bfloat16_copy, copy_weights
from luspo_cli.rollout.in_process.sampler import InProcessSampler
from luspo_cli.rollout.sampler import SamplingOptions
from luspo_cli.rollout.vllm.weight_stream import checkpoint_weights, describe
from luspo_cli.training.dry_run import unfit_model

FAMILIES = ("Qwen3Moe", "Qwen2Moe")
DENSE_BELOW = {"mlp_only_layers": [0]}
LENGTHS = [[3, 9, 1], [5, 5, 12], [2, 7, 4], [6, 2, 8]]
ADVANTAGES = [[1.0, -0.5, -0.5], [0.0, 0.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.2, -0.7]]


def loaded(folder: Path, tokenizer: Any, family: str, **changes: Any) -> tuple[Any, Any]:
    """The same weights as transformers' own model, and as the engine reads them from its folder."""
    own = random_experts(26, family, **changes)
    save(folder, own, tokenizer)
    return own.eval(), load_model(ModelConfig(path=str(folder))).model


@pytest.fixture
def rows(make_groups: Callable[..., list[ScoredGroup]]) -> list[Row]:
    groups = make_groups(LENGTHS, ADVANTAGES)
    return [Row(r, a) for group in groups for r, a in zip(group.rollouts, group.advantages, strict=True)]


@pytest.mark.parametrize("changes", [{}, DENSE_BELOW], ids=["all", "one dense layer"])
@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_and_gradients_are_those_of_transformers(
    tmp_path: Path, made_tokenizer: Any, rows: list[Row], family: str, normed: bool, changes: dict[str, Any]
) -> None:
    """Its eager experts, row by row, against joined rows through grouped products."""
    plain, model = loaded(tmp_path, made_tokenizer, family, norm_topk_prob=normed, **changes)
    plain.set_experts_implementation("eager")
    assert model.config._experts_implementation == experts.NAME
    found, _ = Policy(model, 1.0)(policy_batch(rows))
    (found.sum(-1) * torch.tensor([row.width for row in rows])).sum().backward()
    for own, row in zip(found, rows, strict=True):
        start = len(row.rollout.prompt_tokens)
        ids = torch.tensor([row.rollout.prompt_tokens + row.rollout.response_tokens])
        logprobs = plain(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)[start - 1 : -1]
        expected = logprobs.gather(1, ids[0, start:, None])[:, 0]
        assert torch.allclose(own[: len(expected)], expected, atol=2e-6, rtol=2e-6)
        (expected.sum() * row.width).backward()
    for (name, weight), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert float((weight.grad - other.grad).norm()) <= 1e-5 * float(other.grad.norm()) + 1e-6, name


@pytest.mark.parametrize("family", FAMILIES)
def test_grouped_products_are_those_of_a_loop(family: str) -> None:
    """Also with experts that no token chose; float64 has the loop."""
    layer = own_experts(26, family).model.layers[1].mlp.experts
    torch.manual_seed(1)
    hidden, weights = torch.randn(9, 32), torch.rand(9, 2)
    chosen = torch.tensor([[0, 3]] * 5 + [[3, 0]] * 4)
    grouped = layer(hidden, chosen, weights)
    looped = layer.double()(hidden.double(), chosen, weights.double())
    assert torch.allclose(grouped.double(), looped, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_under_autocast_experts_are_computed_in_bfloat16(family: str) -> None:
    layer = own_experts(26, family).model.layers[0].mlp.experts
    torch.manual_seed(1)
    hidden, chosen, weights = torch.randn(6, 32), torch.tensor([[0, 3]] * 6), torch.rand(6, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(hidden, chosen, weights)
    assert found.dtype == torch.float32
    assert torch.equal(found, layer.bfloat16()(hidden.bfloat16(), chosen, weights.bfloat16()).float())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_expert_is_named_by_the_headers_and_by_loading(
    tmp_path: Path, made_tokenizer: Any, family: str
) -> None:
    save(tmp_path, random_experts(26, family), made_tokenizer)
    file = tmp_path / "model.safetensors"
    weights, name = load_file(file), "model.layers.1.mlp.experts.2.up_proj.weight"
    assert unfit_model(ModelConfig(path=str(tmp_path)), {}) is None
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    said = f"model '{tmp_path}' lacks 1 weight ({name}); take a complete copy; what is not there would be made up at random"
    assert unfit_model(ModelConfig(path=str(tmp_path)), {}) == said
    with pytest.raises(UsageError) as caught:
        load_model(ModelConfig(path=str(tmp_path)))
    assert str(caught.value) == said


@pytest.mark.parametrize("family", FAMILIES)
def test_another_number_of_experts_than_in_the_files_is_refused(
    tmp_path: Path, made_tokenizer: Any, family: str
) -> None:
    save(tmp_path, random_experts(26, family), made_tokenizer)
    file = tmp_path / "config.json"
    stored = json.loads(file.read_text())
    for number, sentence in ((5, "lacks 6 weights"), (3, "2 weights .* of another shape")):
        entries = {key: number for key in ("num_experts", "num_local_experts") if key in stored}
        file.write_text(json.dumps(stored | entries))
        with pytest.raises(UsageError, match=sentence):
            load_model(ModelConfig(path=str(tmp_path)))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_pushed_has_the_names_shapes_and_numbers_of_the_files(
    tmp_path: Path, made_tokenizer: Any, family: str
) -> None:
    model = random_experts(26, family)
    save(tmp_path, model, made_tokenizer)
    stored, pushed = load_file(tmp_path / "model.safetensors"), dict(checkpoint_weights(model, torch.float32))
    assert pushed.keys() == stored.keys()
    assert all(torch.equal(pushed[name], weight) for name, weight in stored.items())
    told = describe(model, torch.float32)
    assert told["names"] == list(pushed)
    assert told["shapes"] == [list(weight.shape) for weight in pushed.values()]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_those_of_the_policy(made_tokenizer: Any, family: str) -> None:
    """Prompts of other lengths, rows that end early, groups that wait for places: padding goes through the experts as well."""
    model = own_experts(26, family)
    sampler = InProcessSampler(model, made_tokenizer, (1,), max_rows=6)
    prompts = [Prompt(str(i), tuple(range(2, 3 + 2 * i))) for i in range(5)]
    groups = sampler.sample_groups(prompts, SamplingOptions(3, 12, seed=4))
    rollouts = [rollout for group in groups for rollout in group]
    assert len({rollout.response_length for rollout in rollouts}) > 2
    with torch.no_grad():
        found, _ = Policy(model, 1.0)(policy_batch([Row(rollout, 1.0) for rollout in rollouts]))
    for own, rollout in zip(found, rollouts, strict=True):
        assert own[: rollout.response_length].tolist() == pytest.approx(rollout.rollout_logprobs, abs=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bfloat16_copy_follows_its_weights(made_tokenizer: Any, family: str) -> None:
    model = own_experts(26, family)
    twin = bfloat16_copy(model)
    other = own_experts(26, family, seed=1)
    copy_weights(other, twin)
    again = dict(bfloat16_copy(other).named_parameters())
    for name, weight in twin.named_parameters():
        assert weight.dtype == torch.bfloat16
        assert torch.equal(weight, again[name]), name
    assert any("experts" in name for name in again)


def lora(*targets: str, dtype: str = "float32") -> ModelConfig:
    return ModelConfig.model_validate({"compute_dtype": dtype, "lora": {"rank": 2, "targets": targets}})


def test_adapters_reach_linear_layers_and_no_routed_expert(rows: list[Row]) -> None:
    with pytest.raises(
        UsageError, match="'gate_proj', which is no linear layer inside this model, whose experts get no"
    ):
        add_adapters(own_experts(26), lora("q_proj", "gate_proj"), 0, "x/y")
    for family, targets in (("Qwen3Moe", ("q_proj", "o_proj")), ("Qwen2Moe", ("q_proj", "gate_proj", "down_proj"))):
        model = own_experts(26, family)
        before = Policy(model, 1.0)(policy_batch(rows))[0].detach()
        add_adapters(model, lora(*targets), 0, "x/y")
        adapted = {
            name.split(".lora_")[0].rpartition(".")[2] for name, w in model.named_parameters() if w.requires_grad
        }
        assert adapted == set(targets)
        assert not any(".experts." in name for name, weight in model.named_parameters() if weight.requires_grad)
        assert torch.equal(Policy(model, 1.0)(policy_batch(rows))[0], before)
        names = {name for name, _ in merged_weights(model)}
        assert names == {name for name, _ in random_experts(26, family).named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_experts_of_a_frozen_base_are_held_in_bfloat16_and_compute_the_same(rows: list[Row], family: str) -> None:
    def published() -> Any:
        model = own_experts(26, family)
        for weight in model.parameters():
            weight.data = weight.data.bfloat16().float()
        return model

    one, other = published(), published()
    add_adapters(one, lora("q_proj", dtype="bfloat16"), 0, "x/y")
    add_adapters(other, lora("q_proj", dtype="float32"), 0, "x/y")
    assert one.model.layers[0].mlp.experts.down_proj.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(Policy(one, 1.0)(policy_batch(rows))[0], Policy(other, 1.0)(policy_batch(rows))[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_no_bit(rows: list[Row], family: str) -> None:
    found = []
    for checkpointing in (False, True):
        model = own_experts(26, family)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.disable_input_require_grads()
        logprobs, _ = Policy(model, 1.0).train()(policy_batch(rows))
        logprobs.sum().backward()
        found.append([logprobs.detach(), *(weight.grad for weight in model.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
