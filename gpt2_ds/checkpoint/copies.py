"""The copies of a run's checkpoints, where `checkpoint.copy_to` asks for them."""

from __future__ import annotations

from collections.abc import Callable

from gpt2_ds.checkpoint.manifest import step_name
from gpt2_ds.checkpoint.remote import RemoteCheckpoints
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.parallel.agreement import GoesOn, Pulse, by_rank_0


def remote_of(plan: RunPlan, moved: Callable[[], None] = lambda: None) -> RemoteCheckpoints:
    """Where the copies of this run are; the recipe asks for some.

    Args:
        plan: the run.
        moved: called whenever what takes long has come further.
    """
    return RemoteCheckpoints(
        f"{(plan.recipe.checkpoint.copy_to or '').rstrip('/')}/{plan.run_dir.resolve().name}",
        moved=moved,
    )


def copying(plan: RunPlan, goes_on: GoesOn) -> Pulse:
    """Of sending copies."""
    return Pulse(goes_on, f"copying checkpoints to {plan.recipe.checkpoint.copy_to}")


def finish_copy(plan: RunPlan, step: int, goes_on: GoesOn) -> None:
    """Send the last checkpoint, or what is missing of its copy, before the job ends. Collective.

    Raises:
        RunError: it could not be sent. The same command tries again.
    """
    if plan.recipe.checkpoint.copy_to is not None:
        checkpoint, pulse = plan.run_dir / "checkpoints" / step_name(step), copying(plan, goes_on)
        by_rank_0(lambda: remote_of(plan, pulse.beat).upload(checkpoint), pulse)
