"""Which checkpoints the recipe keeps, and how the others are deleted."""

from __future__ import annotations

import shutil
from pathlib import Path

from gpt2_ds.config.recipe import CheckpointSection
from gpt2_ds.record.metrics_file import read_metrics


def to_delete(
    complete: list[int], checkpoint: CheckpointSection, validation_losses: dict[int, float]
) -> list[int]:
    """The steps that no rule of the recipe keeps, oldest first. The newest is always kept.

    Args:
        complete: steps of the complete checkpoints, newest first.
        checkpoint: the recipe's rules.
        validation_losses: nats per token, by step.
    """
    kept = set(complete[: checkpoint.keep_last])
    if checkpoint.keep_every_steps:
        kept |= {step for step in complete if step % checkpoint.keep_every_steps == 0}
    if checkpoint.keep_best and (best := best_step(complete, validation_losses)) is not None:
        kept.add(best)
    return sorted(set(complete) - kept)


def best_step(complete: list[int], validation_losses: dict[int, float]) -> int | None:
    """The step with the lowest validation loss, the newest of equal ones; None: no step has one."""
    validated = [step for step in complete if step in validation_losses]
    return min(validated, key=lambda step: (validation_losses[step], -step), default=None)


def validation_losses(run_dir: Path) -> dict[int, float]:
    """Nats per token by step, out of metrics.jsonl; losses that are not finite are skipped."""
    lines = read_metrics(run_dir, "validation_loss")
    losses = {step: values["validation_loss"] for step, values in lines}  # the last of each step
    return {step: loss for step, loss in losses.items() if loss is not None}


def delete(path: Path) -> None:
    """Delete a folder, a file, or a link, not its target; nothing when there is none.

    A checkpoint first gets the name of an unfinished one: if this is interrupted, what is left of
    it does not pass for complete.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.suffix:
        partial = path.with_name(f"{path.name}.tmp")
        delete(partial)
        path = path.rename(partial)
    shutil.rmtree(path)
