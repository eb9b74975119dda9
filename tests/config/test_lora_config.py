"""[model.lora] and the optimizer's keys: what cannot have an effect is refused in one sentence."""

from __future__ import annotations

import pytest

from luspo_cli.config.layers import resolve_train
from luspo_cli.errors import UsageError


@pytest.mark.parametrize(
    ("sets", "sentence"),
    [
        (["model.lora.alpha=8"], "model.lora.alpha needs model.lora.rank"),
        (["model.lora.targets=['q_proj']"], "model.lora.targets needs model.lora.rank"),
        (["model.lora.rank=4", "model.lora.targets=[]"], "model.lora.targets"),
        (["model.lora.rank=4", "model.lora.targets=['q_proj', 'q_proj']"], "names a layer twice"),
        (["model.lora.rank=-1"], "greater than or equal to 0"),
        (["model.lora.rank=4", "model.lora.alpha=0"], "greater than 0"),
        (["model.lora.rank=4", "model.freeze_vision=true"], "model.freeze_vision changes nothing with model.lora"),
        (["model.lora.dropout=0.1"], "unknown key 'model.lora.dropout'"),
        (["update.offload_optimizer=true", "update.optimizer=adamw-8bit"], "8-bit moments stay on the GPU"),
        (["update.optimizer=adam"], "'adamw' or 'adamw-8bit'"),
    ],
)
def test_refused(sets: list[str], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_train(preset="tiny", sets=sets)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rank_turns_the_adapters_on() -> None:
    lora = resolve_train(preset="tiny", sets=["model.lora.rank=4", "model.lora.targets=['q_proj','o_proj']"]).model.lora
    assert (lora.rank, lora.alpha, lora.targets) == (4, 32.0, ("q_proj", "o_proj"))
    assert resolve_train(preset="tiny").model.lora.rank == 0
