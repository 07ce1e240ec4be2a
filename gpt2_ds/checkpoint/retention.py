"""Which checkpoints have done their work."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from gpt2_ds.config.recipe import CheckpointSection


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
    """The step with the lowest validation loss, of equal ones the newest; None: none has one."""
    validated = [step for step in complete if step in validation_losses]
    return min(validated, key=lambda step: (validation_losses[step], -step), default=None)


def validation_losses(run_dir: Path) -> dict[int, float]:
    """Nats per token by step, out of metrics.jsonl; what is no finite number is left out."""
    path = run_dir / "metrics.jsonl"
    losses: dict[int, float] = {}
    if not path.is_file():
        return losses
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
            step, loss = values["step"], values["validation_loss"]
        except (ValueError, KeyError, TypeError):
            continue  # of a training step, or unfinished
        if isinstance(step, int):
            finite = isinstance(loss, int | float) and math.isfinite(loss)
            losses[step] = float(loss) if finite else math.nan  # of a step done twice, the second
    return {step: loss for step, loss in losses.items() if not math.isnan(loss)}


def delete(path: Path) -> None:
    """Delete a folder, a file, or a link alone; nothing when there is none.

    A checkpoint first gets the name of an unfinished one: if this is broken off, the half of it
    that is left does not pass for complete.
    """
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.suffix:
        partial = path.with_name(f"{path.name}.tmp")
        delete(partial)
        path = path.rename(partial)
    shutil.rmtree(path)
