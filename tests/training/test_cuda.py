"""What runs on CUDA alone: offloaded moments, the bfloat16 copy that samples, and a whole step. `make test-gpu`.

Products of matrices differ from the CPU's in their last bits, so what passes through them is compared within a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from doubles.runs import records, stored_weights, train
from luspo_cli.config.run import TrainRun
from luspo_cli.config.update import UpdateConfig

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def device() -> Any:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def test_offloaded_moments_take_the_steps_of_the_host_and_leave_the_device_none(device: Any) -> None:
    """The weights live on the device and step as AdamW on the CPU steps them; the state stays in the host's memory."""
    import torch

    from luspo_cli.training.optimizer import OffloadedAdamW, make_optimizer

    def network() -> Any:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.Linear(96, 8))

    settings = {"learning_rate": 1e-2, "weight_decay": 0.1}
    plain, away = network(), network().to(device)
    _, reference = make_optimizer(plain, UpdateConfig.model_validate(settings))
    _, offloaded = make_optimizer(away, UpdateConfig.model_validate({**settings, "offload_optimizer": True}))
    assert isinstance(offloaded, OffloadedAdamW)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for weight, twin in zip(plain.parameters(), away.parameters(), strict=True):
            weight.grad = torch.randn(weight.shape, generator=generator)
            twin.grad = weight.grad.to(device)
        reference.step()
        offloaded.step()
    for weight, twin in zip(plain.parameters(), away.parameters(), strict=True):
        assert torch.equal(weight, twin.cpu())
        twin.grad = None
    state = offloaded.state_dict()["state"]
    assert {value.device.type for entry in state.values() for value in entry.values()} == {"cpu"}
    assert torch.cuda.memory_allocated() <= before


def test_the_sampling_copy_is_the_policy_rounded_to_bfloat16(device: Any, make_model: Callable[..., Any]) -> None:
    """Drawn with the copy on the device, greedily, and in step with the policy after new weights."""
    import torch

    from luspo_cli.rollout.in_process.sampler import InProcessSampler
    from luspo_cli.rollout.sampler import Prompt, SamplingOptions

    policy, other = make_model(0).to(device), make_model(1).to(device)
    copy = make_model(1, dtype="bfloat16").to(device)
    from luspo_cli.training.made.build import made_tokenizer

    sampler = InProcessSampler(copy, made_tokenizer(26), [1], max_rows=8)
    options = SamplingOptions(4, 12, seed=0)
    for source in (policy, other):
        sampler.load_weights(source)
        expected = {name: weight.to(torch.bfloat16) for name, weight in source.named_parameters()}
        assert all(torch.equal(weight, expected[name]) for name, weight in copy.named_parameters())
        (group,) = sampler.sample_groups([Prompt("p", (2, 3, 4))], options)
        for rollout in group:
            ids = torch.tensor([rollout.prompt_tokens + rollout.response_tokens], device=device)
            with torch.no_grad():
                logits = copy(ids).logits.float()[0, 2:-1]
            own = logits.log_softmax(-1).gather(-1, ids[0, 3:, None])[:, 0].cpu()
            assert (own - torch.tensor(rollout.rollout_logprobs)).abs().max() < 0.05  # bfloat16


@pytest.mark.parametrize(
    "sets",
    [(), ("model.compute_dtype=bfloat16",), ("update.offload_optimizer=true",)],
    ids=["float32", "bfloat16", "offloaded"],
)
def test_a_tiny_run_on_the_device_trains_and_resumes(
    device: Any, small_run: Callable[..., TrainRun], tmp_path: Path, sets: tuple[str, ...]
) -> None:
    import torch

    torch.cuda.reset_peak_memory_stats()
    config = small_run("run.steps=3", "run.checkpoint_every=1", "rollout.sampler=in-process", *sets)
    with pytest.raises(ZeroDivisionError):
        train(config, tmp_path / "run", crash_after=2)
    assert torch.cuda.max_memory_allocated() > 0  # the device was used, not the CPU beside it
    assert "going on after step 2" in train(config, tmp_path / "run", "resume")
    found = records(tmp_path / "run")
    assert [record["step"] for record in found] == [1, 2, 3]
    assert all(record["update/grad_norm"] > 0 and record["update/skipped_steps"] == 0 for record in found)
    # In bfloat16 sampler and policy round in other places.
    assert max(record["sampler/logprob_difference_mean"] for record in found) < (
        0.05 if "bfloat16" in "".join(sets) else 1e-3
    )
    before, after = stored_weights(tmp_path / "run", 2), stored_weights(tmp_path / "run", 3)
    assert any(not torch.equal(before[name], weight) for name, weight in after.items())
