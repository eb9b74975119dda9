"""The optimizers: the same step wherever the state lies, 8-bit moments close to the exact ones, and state back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from luspo_cli.config.update import UpdateConfig
from luspo_cli.errors import UsageError
from luspo_cli.training import optimizer as module
from luspo_cli.training.optimizer import OffloadedAdamW, check_optimizer, load_optimizer, make_optimizer, save_optimizer


class Weights(torch.nn.Module):
    """A matrix large enough for 8-bit moments (4,096 numbers or more), a small one and a vector."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.large = torch.nn.Parameter(torch.randn(96, 64, generator=generator))
        self.small = torch.nn.Parameter(torch.randn(8, 4, generator=generator))
        self.vector = torch.nn.Parameter(torch.randn(16, generator=generator))
        self.frozen = torch.nn.Parameter(torch.randn(4, 4, generator=generator), requires_grad=False)

    def learn(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for weight in (self.large, self.small, self.vector):
            weight.grad = torch.randn(weight.shape, generator=generator)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)  # as a schedule does
        optimizer.step()


def settings(**changes: Any) -> UpdateConfig:
    return UpdateConfig.model_validate({"learning_rate": 1e-2, "weight_decay": 0.1, **changes})


def needs(kind: str) -> None:
    if kind == "adamw-8bit":
        pytest.importorskip("bitsandbytes", reason="8-bit moments need: pip install 'luspo[adamw-8bit]'")


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(weight, twin) for weight, twin in zip(one.parameters(), other.parameters(), strict=True))


def test_offloading_takes_the_same_steps_bit_for_bit() -> None:
    plain, offloaded = Weights(), Weights()
    optimizers = [make_optimizer(plain, settings())[1], make_optimizer(offloaded, settings(offload_optimizer=True))[1]]
    assert isinstance(optimizers[1], OffloadedAdamW)
    for step in range(4):
        plain.learn(optimizers[0], step)
        offloaded.learn(optimizers[1], step)
    assert same(plain, offloaded)
    assert not same(plain, Weights())
    optimizers[1].zero_grad(set_to_none=False)
    assert not offloaded.large.grad.any()  # type: ignore[union-attr]


def test_eight_bit_moments_are_close_to_exact_ones_and_small() -> None:
    needs("adamw-8bit")
    exact, small = Weights(), Weights()
    optimizers = [make_optimizer(exact, settings())[1], make_optimizer(small, settings(optimizer="adamw-8bit"))[1]]
    before = exact.large.detach().clone()
    for step in range(8):
        exact.learn(optimizers[0], step)
        small.learn(optimizers[1], step)
    moved = (exact.large - before).norm()
    assert 0 < (small.large - exact.large).norm() < 0.1 * moved
    assert torch.allclose(small.small, exact.small, atol=1e-6)  # below 4,096 numbers the moments stay exact
    state = optimizers[1].state[small.large]
    assert (state["state1"].dtype, state["state2"].dtype) == (torch.uint8, torch.uint8)


@pytest.mark.parametrize("kind", ["adamw", "adamw-8bit", "offloaded"])
@pytest.mark.parametrize("prepared", [False, True])
def test_the_state_comes_back_bit_for_bit(tmp_path: Path, kind: str, prepared: bool) -> None:
    """Three steps, stored, two more: the same weights as five steps in one go, also behind accelerate's wrapper."""
    from accelerate import Accelerator

    needs(kind)
    chosen = settings(offload_optimizer=True) if kind == "offloaded" else settings(optimizer=kind)

    def ready(weights: Weights, stored: Path | None = None) -> tuple[list[str], Any]:
        names, optimizer = make_optimizer(weights, chosen)
        if stored:
            load_optimizer(stored, optimizer, names)
        return names, Accelerator(cpu=True).prepare(optimizer) if prepared else optimizer

    whole = Weights()
    names, optimizer = ready(whole)
    assert names == ["large", "small", "vector"]
    for step in range(3):
        whole.learn(optimizer, step)
    save_optimizer(tmp_path, optimizer.state_dict()["state"], names)
    again, forgetful = Weights(), Weights()
    for weights in (again, forgetful):
        weights.load_state_dict(whole.state_dict())
    resumed, fresh = ready(again, tmp_path)[1], ready(forgetful)[1]
    for step in (3, 4):
        whole.learn(optimizer, step)
        again.learn(resumed, step)
        forgetful.learn(fresh, step)
    assert same(whole, again)
    assert not same(whole, forgetful)  # the state matters


def test_what_this_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"update\.offload_optimizer needs a GPU"):
        check_optimizer(settings(offload_optimizer=True))

    def absent(name: str) -> Any:
        raise ImportError(f"No module named '{name}'")

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(UsageError, match=r"needs bitsandbytes .*: pip install 'luspo\[adamw-8bit\]'"):
        check_optimizer(settings(optimizer="adamw-8bit"))
    check_optimizer(settings())


def test_a_model_of_matrices_alone_has_one_group(make_model: Callable[..., Any]) -> None:
    weights = Weights()
    weights.vector.requires_grad_(False)
    names, optimizer = module.make_optimizer(weights, settings())
    assert (names, len(optimizer.param_groups)) == (["large", "small"], 1)
