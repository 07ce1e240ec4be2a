"""The copies of a run's checkpoints, where `checkpoint.copy_to` asks for them."""

from __future__ import annotations

from gpt2_ds.checkpoint.manifest import step_name
from gpt2_ds.checkpoint.remote import RemoteCheckpoints
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.parallel.agreement import by_rank_0


def remote_of(plan: RunPlan, heartbeat: Heartbeat = UNHEARD) -> RemoteCheckpoints:
    """The copies of a run; its recipe must ask for them.

    Args:
        plan: the run.
        heartbeat: of what is done with them.
    """
    return RemoteCheckpoints(
        f"{(plan.recipe.checkpoint.copy_to or '').rstrip('/')}/{plan.run_dir.resolve().name}",
        heartbeat=heartbeat,
    )


def copying(plan: RunPlan, heartbeat: Heartbeat) -> Heartbeat:
    """The heartbeat of sending copies."""
    return heartbeat.during(f"copying checkpoints to {plan.recipe.checkpoint.copy_to}")


def finish_copy(plan: RunPlan, step: int, heartbeat: Heartbeat) -> None:
    """Send the last checkpoint, or what is missing of its copy, before the job ends. Collective.

    Raises:
        RunError: it could not be sent. The same command tries again.
    """
    if plan.recipe.checkpoint.copy_to is not None:
        checkpoint = plan.run_dir / "checkpoints" / step_name(step)
        sending = copying(plan, heartbeat)
        by_rank_0(lambda: remote_of(plan, sending).upload(checkpoint), sending)
