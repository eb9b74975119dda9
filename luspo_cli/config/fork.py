"""The [fork] section: a run that begins at a checkpoint of another one, its parent, in the place of a model's first weights."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from luspo_cli.config.base import Section


class ForkConfig(Section):
    """Weights and optimizer state come from the checkpoint; problems, draws and learning rate go on from its step."""

    checkpoint: str = ""
    """Folder of the parent's checkpoint, RUN/checkpoints/step-NNNNNN; empty: the run is no fork."""
    sha256: str = ""
    """Of that checkpoint's checkpoint.json, which lists the sums of all its files."""
    step: int = Field(default=0, ge=0)
    """Training steps behind the checkpoint."""
    schedule_steps: int = Field(default=0, ge=0)
    """`run.steps` of the parent: the length that its learning rate's schedule has."""

    def faults(self) -> Iterator[str]:
        values = [self.checkpoint, self.sha256, self.step, self.schedule_steps]
        if any(values) and not all(values):
            yield (
                "fork.checkpoint, fork.sha256, fork.step and fork.schedule_steps belong together: luspo fork writes them,"
                " leave all of them out of another run"
            )
