"""Updates on a device against float64 on the CPU: all weights, adapters, all kinds of moments, noise floor, other kernels."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch

from luspo_cli.config.kernels import KernelsConfig
from luspo_cli.config.model import ModelConfig
from luspo_cli.config.update import UpdateConfig
from luspo_cli.errors import UsageError
from luspo_cli.policy.attention import attention
from luspo_cli.policy.joined_rows import join_rows
from luspo_cli.policy.kernels import check_kernels
from luspo_cli.policy.packing import policy_batch, rows_of
from luspo_cli.policy.policy import Policy
from luspo_cli.policy.ragged_attention import ragged_rows
from luspo_cli.records import ScoredGroup
from luspo_cli.training.noise_floor import noise_floor

LENGTHS = [[3, 9, 1, 6], [5, 0, 12, 4]]
ADVANTAGES = [[1.0, -0.5, -1.0, 0.5], [0.5, 0.2, -1.2, 0.5]]


@pytest.fixture
def groups(make_groups: Callable[..., list[ScoredGroup]]) -> list[ScoredGroup]:
    return make_groups(LENGTHS, ADVANTAGES)


def gradients(
    model: Any, groups: list[ScoredGroup], device: Any, kernels: KernelsConfig | None = None, low: bool = False
) -> dict[str, torch.Tensor]:
    """Of a weighted sum of log-probs, in float64 on the host, by the name of the weight."""
    model.to(device).zero_grad()
    policy = Policy(model, 0.9, kernels or KernelsConfig()).train()
    policy.wrapped = False
    batch = policy_batch([row for group in groups for row in rows_of(group)], device)
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        logprobs, _, _ = policy(batch, with_entropy=True, with_collision=True)
    (logprobs * batch.advantages[:, None]).sum().backward()
    return {name: weight.grad.double().cpu() for name, weight in model.named_parameters() if weight.grad is not None}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> None:
    scale = max(float(gradient.norm()) for gradient in expected.values())
    assert scale > 0.1
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() < tolerance * scale, name


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("rows", ["padded", "varlen"])
def test_gradients_are_float64s(
    device: Any, make_model: Callable[..., Any], groups: list[ScoredGroup], rows: str, low: bool
) -> None:
    expected = gradients(make_model(dtype="float64"), groups, torch.device("cpu"))
    kernels = KernelsConfig.model_validate({"attention": rows})
    close(gradients(make_model(), groups, device, kernels, low), expected, 0.05 if low else 2e-6)


@pytest.mark.parametrize("window", [None, 3, 64])
@pytest.mark.parametrize("softcap", [None, 5.0])
def test_rows_without_padding_are_attended_as_blocks_are(
    device: Any, window: int | None, softcap: float | None
) -> None:
    """Rows that share a prompt, grouped heads, a window and bounded scores; on CUDA in bfloat16, which the kernel computes."""
    low = device.type == "cuda"
    joined = join_rows([("p", 9), ("p", 9), ("q", 2), ("q", 2)], [12, 3, 30, 1], device=device)
    number = len(joined.tokens)
    assert number == 9 + 12 + 3 + 2 + 30 + 1
    torch.manual_seed(0)
    states = [torch.randn(1, heads, number, 8, device=device, requires_grad=True) for heads in (4, 2, 2)]
    weights = torch.randn(1, number, 4, 8, device=device)
    found = []
    for ragged in (None, ragged_rows(joined, torch.tensor([21, 12, 32, 3], device=device))):
        joined.ragged = ragged
        given = [state.bfloat16() if low else state for state in states]
        out, _ = attention(torch.nn.Module(), *given, None, 0.3, 0.0, window, softcap, joined)
        found.append([out, *torch.autograd.grad((out * weights).sum(), states)])
    for blocks, ragged_result in zip(*found, strict=True):
        assert torch.allclose(blocks.float(), ragged_result.float(), atol=0.1 if low else 1e-5)
        assert blocks.abs().max() > 0.5


@pytest.mark.parametrize("rows", ["padded", "varlen"])
def test_gradients_of_adapters_are_float64s(
    device: Any, make_model: Callable[..., Any], groups: list[ScoredGroup], rows: str
) -> None:
    pytest.importorskip("peft", reason="adapters need the extra lora: pip install 'luspo[lora]'")
    from luspo_cli.policy.lora import adapter_parameters, add_adapters

    def adapted(dtype: str) -> Any:
        model = make_model(dtype=dtype)
        add_adapters(model, ModelConfig.model_validate({"path": "x/y", "lora": {"rank": 4, "alpha": 8.0}}), 0, "x/y")
        generator = torch.Generator().manual_seed(3)
        for name, weight in adapter_parameters(model).items():
            if "lora_B" in name:  # zero at first
                weight.data.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
        return model.double() if dtype == "float64" else model

    expected = gradients(adapted("float64"), groups, torch.device("cpu"))
    assert all("lora_" in name for name in expected)
    kernels = KernelsConfig.model_validate({"attention": rows})
    close(gradients(adapted("float32"), groups, device, kernels), expected, 2e-5)


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "8bit", "adamw-8bit", "offloaded"])
def test_an_optimizer_ends_near_the_hosts_float64(device: Any, kind: str) -> None:
    """Fifty steps of AdamW, as a share of the way that float64's weights went; what is offloaded leaves the device nothing."""
    from luspo_cli.training.optimizer import OffloadedAdamW, make_optimizer

    tolerance = {"float32": 1e-4, "bfloat16": 0.02, "8bit": 0.05, "adamw-8bit": 0.05, "offloaded": 1e-4}[kind]
    chosen = {"adamw-8bit": {"optimizer": kind}, "offloaded": {"offload_optimizer": True}, "float32": {}}
    if kind == "adamw-8bit":
        pytest.importorskip("bitsandbytes", reason="8-bit moments need: pip install 'luspo[adamw-8bit]'")

    def network(dtype: torch.dtype) -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 80)).to(dtype)

    settings = {"learning_rate": 1e-3, "weight_decay": 0.1}
    start, exact, own = network(torch.float64), network(torch.float64), network(torch.float32).to(device)
    host = network(torch.float32)
    _, plain = make_optimizer(host, UpdateConfig.model_validate(settings))
    _, reference = make_optimizer(exact, UpdateConfig.model_validate(settings))
    _, optimizer = make_optimizer(own, UpdateConfig.model_validate(settings | chosen.get(kind, {"moments": kind})))
    before = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    for step in range(50):
        generator = torch.Generator().manual_seed(step)
        for weight, beside, twin in zip(exact.parameters(), host.parameters(), own.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64) + 0.5
            beside.grad = weight.grad.float()
            twin.grad = beside.grad.to(device)
        reference.step()
        plain.step()
        optimizer.step()
    for begin, there, weight in zip(start.parameters(), exact.parameters(), own.parameters(), strict=True):
        weight.grad = None
        assert (weight.double().cpu() - there).norm() < tolerance * (there - begin).norm()
    if kind == "offloaded":
        pairs = zip(host.parameters(), own.parameters(), strict=True)
        assert all(torch.equal(weight, twin.cpu()) for weight, twin in pairs)  # the host's own steps
        assert isinstance(optimizer, OffloadedAdamW)
        state = optimizer.state_dict()["state"]
        assert {value.device.type for entry in state.values() for value in entry.values()} == {"cpu"}
        if device.type == "cuda":
            assert torch.cuda.memory_allocated() <= before


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_the_noise_floor_is_rounding(
    device: Any, make_model: Callable[..., Any], groups: list[ScoredGroup], low: bool
) -> None:
    policy = Policy(make_model().to(device), 1.0)
    with torch.autocast(device.type, torch.bfloat16, enabled=low):
        found = noise_floor(policy, groups, 64)
    assert found is not None
    assert found < (0.02 if low else 1e-5)


LIGER = """
import os, sys
os.environ["TRITON_INTERPRET"] = "{interpreted:d}"
import torch
from luspo_cli.policy.logprobs import token_logprobs
torch.manual_seed(0)
device = "{device}"
hidden, head = torch.randn(13, 16), torch.randn(70, 16)
targets, weights = torch.randint(70, (13,)), torch.randn(13)
for temperature, cap in ((1.0, None), (0.7, None), *[(1.0, 3.0)] * {capped:d}):
    for asked in ((False, False), (True, True)):
        found = []
        for kernel in ("blocks", "liger"):
            of = [tensor.clone().to(device).requires_grad_() for tensor in (hidden, head)]
            of[1].grad = torch.ones_like(of[1])
            on = targets.to(device)
            logprobs, entropy = token_logprobs(*of, on, temperature, *asked, cap, in_place=True, kernel=kernel)[:2]
            (logprobs * weights.to(device)).sum().backward()
            found.append((logprobs.detach(), entropy.detach(), of[0].grad, of[1].grad))
        for one, other in zip(*found, strict=True):
            assert torch.allclose(one, other, atol=2e-5), (temperature, cap, asked, (one - other).abs().max())
        assert found[0][3].sub(1).abs().max() > 0.1
print("the same")
"""


def test_ligers_head_computes_what_the_blocks_compute(device: Any) -> None:
    """On the CPU by Triton's interpreter, which takes no cap; in a process of its own: Triton decides when it is imported."""
    pytest.importorskip("liger_kernel", reason="needs: pip install 'luspo[liger]' triton")
    pytest.importorskip("triton", reason="needs: pip install triton")
    program = LIGER.format(interpreted=device.type == "cpu", capped=device.type == "cuda", device=device)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
    assert done.stdout.strip() == "the same", done.stderr


def test_liger_is_refused_where_it_cannot_compute(
    make_model: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luspo_cli.policy import liger_head, model_files

    liger = KernelsConfig(head="liger")
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'luspo\[liger\]'"):
        check_kernels(liger, make_model(), 1.0)
    monkeypatch.setattr(model_files, "find_spec", lambda name: name)
    if not torch.cuda.is_available():
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(UsageError, match="needs a CUDA device"):
            check_kernels(liger, make_model(), 1.0)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(liger_head, "_fused", lambda: lambda hidden, token_grad_output, chunk_mem_const: None)
    capped = make_model()
    capped.config.final_logit_softcapping = 3.0
    with pytest.raises(UsageError, match="caps logits only at temperature 1"):
        check_kernels(liger, capped, 0.7)
    check_kernels(liger, capped, 1.0)
    monkeypatch.setattr(liger_head, "_fused", lambda: lambda hidden, head: None)
    with pytest.raises(UsageError, match="weights tokens one by one"):
        check_kernels(liger, make_model(), 1.0)
