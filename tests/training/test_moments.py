"""AdamW with bfloat16 and 8-bit moments, against a float64 AdamW over hundreds of steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from luspo_cli.config.update import UpdateConfig
from luspo_cli.errors import UsageError
from luspo_cli.training import moments as module
from luspo_cli.training.optimizer import load_optimizer, make_optimizer, save_optimizer

KINDS = ("bfloat16", "8bit")
STEPS, RATE = 300, 1e-3
DISTANCE = {"float32": 1e-4, "bfloat16": 0.005, "8bit": 0.03}
"""From float64's weights after `STEPS` steps, as a share of the way that these went."""


class Weights(torch.nn.Module):
    """A matrix whose rows' gradients differ in size by up to 1e4, one that ends in the middle of a block, and a vector."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.even = torch.nn.Parameter(torch.randn(32, 256, generator=generator).to(dtype))
        self.odd = torch.nn.Parameter(torch.randn(61, 73, generator=generator).to(dtype))
        self.vector = torch.nn.Parameter(torch.randn(16, generator=generator).to(dtype))

    def get_gradients(self, step: int) -> None:
        """Noise around a mean, as gradients of small batches are; in the first 50 steps ten times as large."""
        generator = torch.Generator().manual_seed(step)
        for weight in self.parameters():
            size = torch.logspace(-2, 2, len(weight)).view(-1, *[1] * (weight.dim() - 1)) * (10 if step < 50 else 1)
            mean = torch.randn(weight.shape, generator=torch.Generator().manual_seed(7))
            noise = torch.randn(weight.shape, generator=generator)
            weight.grad = (size * (noise + 0.3 * mean)).to(weight.dtype)


def settings(**changes: Any) -> UpdateConfig:
    return UpdateConfig.model_validate({"learning_rate": RATE, "weight_decay": 0.1, **changes})


def learn(weights: Weights, optimizer: Any, steps: range) -> None:
    for step in steps:
        weights.get_gradients(step)
        for group in optimizer.param_groups:
            group["lr"] = RATE / (1 + step / 100)
        optimizer.step()


@pytest.fixture(scope="module")
def exact() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Weights and mean squares of a float64 AdamW."""
    weights = Weights(torch.float64)
    groups = [
        {"params": [weights.even, weights.odd], "weight_decay": 0.1},
        {"params": [weights.vector], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, foreach=False)
    learn(weights, optimizer, range(STEPS))
    squares = [optimizer.state[weight]["exp_avg_sq"].view(-1) for weight in weights.parameters()]
    return [weight.detach() for weight in weights.parameters()], squares


@torch.no_grad()
def compare(kind: str, exact: tuple[list[torch.Tensor], list[torch.Tensor]]) -> tuple[float, float]:
    """The largest distance from float64's weights as a share of the way that these went, and the mean square's mean share."""
    weights = Weights()
    optimizer = make_optimizer(weights, settings(moments=kind))[1]
    with torch.enable_grad():
        learn(weights, optimizer, range(STEPS))
    ways, squares = [], []
    start = Weights(torch.float64).parameters()
    for own, begin, there, square in zip(weights.parameters(), start, *exact, strict=True):
        ways.append(float((own.double() - there).norm() / (there - begin).norm()))
        mine = module._read(optimizer.state[own], "exp_avg_sq", slice(0, own.numel()))
        squares.append(float((mine.double() / square).mean()))
    return max(ways), squares[0]


@pytest.mark.parametrize("kind", DISTANCE)
def test_hundreds_of_steps_end_near_float64s(exact: Any, kind: str) -> None:
    distance, square = compare(kind, exact)
    assert distance < DISTANCE[kind]
    assert square == pytest.approx(1, abs=0.003)


def test_rounding_to_the_nearest_number_would_not(exact: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for the dither: the mean square stays at the large gradients of the beginning."""
    monkeypatch.setattr(module, "_places", lambda device: torch.full((module.CHUNK,), 2**15, dtype=torch.int32))
    monkeypatch.setattr(module, "_STRIDES", {"exp_avg": 0, "exp_avg_sq": 0})
    assert compare("bfloat16", exact)[1] > 1.15


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_of_the_state(kind: str) -> None:
    weights = Weights()
    optimizer = make_optimizer(weights, settings(moments=kind))[1]
    learn(weights, optimizer, range(1))
    state = optimizer.state_dict()["state"][0]  # of 8,192 numbers
    assert sum(value.nbytes for key, value in state.items() if key != "step") == {
        "bfloat16": 4 * 8192, "8bit": 2 * 8192 + 2 * 4 * 32
    }[kind]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prepared", [False, True])
def test_the_state_comes_back_bit_for_bit(tmp_path: Path, kind: str, prepared: bool) -> None:
    from accelerate import Accelerator

    def ready(weights: Weights, stored: Path | None = None) -> tuple[list[str], Any]:
        names, optimizer = make_optimizer(weights, settings(moments=kind))
        if stored:
            load_optimizer(stored, optimizer, names)
        return names, Accelerator(cpu=True).prepare(optimizer) if prepared else optimizer

    whole, again = Weights(), Weights()
    names, optimizer = ready(whole)
    learn(whole, optimizer, range(3))
    save_optimizer(tmp_path, optimizer.state_dict()["state"], names)
    again.load_state_dict(whole.state_dict())
    resumed = ready(again, tmp_path)[1]
    learn(whole, optimizer, range(3, 6))
    learn(again, resumed, range(3, 6))
    assert all(map(torch.equal, whole.parameters(), again.parameters()))


@pytest.mark.parametrize(("written", "read"), [("float32", "bfloat16"), ("bfloat16", "8bit"), ("8bit", "float32")])
def test_moments_of_another_kind_are_refused(tmp_path: Path, written: str, read: str) -> None:
    weights = Weights()
    names, optimizer = make_optimizer(weights, settings(moments=written))
    learn(weights, optimizer, range(1))
    save_optimizer(tmp_path, optimizer.state_dict()["state"], names)
    other = make_optimizer(weights, settings(moments=read))[1]
    with pytest.raises(
        UsageError, match=f"written with update.moments = '{written}' and this run has update.moments = '{read}'"
    ):
        load_optimizer(tmp_path, other, names)


def test_a_chunk_is_a_part_of_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another size of chunks gives the same bits where it is a multiple of the dither's period."""
    found = []
    for chunk in (2**20, 2**16):
        monkeypatch.setattr(module, "CHUNK", chunk)
        large = torch.nn.Module()
        large.weight = torch.nn.Parameter(torch.linspace(-1, 1, 2**16 + 300))
        optimizer = make_optimizer(large, settings(moments="8bit"))[1]
        for step in range(2):
            large.weight.grad = torch.sin(large.weight.detach() * (9 + step))
            optimizer.step()
        found.append(large.weight.detach())
    assert torch.equal(*found)


def test_the_256_values() -> None:
    """Of the paper's figure: nearly 1 at the ends, a seventh of a decade's number each, 0 among them."""
    for signed in (True, False):
        values = module._values(signed)
        assert (len(values), len(values.unique())) == (256, 256)
        assert 0.0 in values
        assert values[-1] == 1.0
        assert int(((values > 0.1) & (values < 1)).sum()) == (64 if signed else 128)
        assert values[0] == (pytest.approx(-0.99296875) if signed else 0.0)


def test_sharing_out_and_other_optimizers_are_refused() -> None:
    from luspo_cli.config.layers import resolve_train

    with pytest.raises(UsageError, match=r"update.moments = 'bfloat16' goes with update.optimizer = 'adamw' alone"):
        resolve_train(preset="tiny", sets=["update.moments=bfloat16", "update.optimizer=adamw-8bit"])
    with pytest.raises(UsageError, match=r"leave out update.optimizer, update.moments"):
        resolve_train(preset="qwen2.5-7b", sets=["update.moments=8bit", "model.sharding=full"])
