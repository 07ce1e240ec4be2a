"""Take one past step again, for looking into it; nothing of the run is changed."""

from __future__ import annotations

from pathlib import Path

from gpt2_ds.checkpoint.checkpoint import Progress
from gpt2_ds.checkpoint.manifest import complete_checkpoints
from gpt2_ds.config.errors import RunError, user_error
from gpt2_ds.record.metrics_file import metrics_path, read_metrics
from gpt2_ds.record.terminal import say
from gpt2_ds.train.loop import take_step
from gpt2_ds.train.ready_run import Run


def replay(run: Run, start: Progress, step: int) -> float:
    """Go from the checkpoint that was loaded to `step`, and say what that step gives.

    Args:
        run: ready to step, from a checkpoint before `step`, or from the first weights.
        start: where it stands.
        step: the one that is looked into.

    Returns:
        Its loss, nats per token.

    Raises:
        UserError: no checkpoint before it is left.
        RunError: some rank was asked to stop.
    """
    plan, batches = run.plan, run.plan.derived.batches
    if start.step == 0 and step > 1:
        steps = [manifest.step + 1 for _, manifest in complete_checkpoints(plan.run_dir)]
        raise user_error(
            f"--replay {step}",
            "no checkpoint before this step is left",
            f"Steps that can be replayed: {min(steps)} and later."
            if steps
            else "No step of this run can be replayed.",
        )
    progress = start
    while progress.step < step:
        taken = take_step(run, progress)
        if taken.stop:
            raise RunError(f"--replay {step}: stopped by a signal at step {progress.step + 1}.")
        progress = Progress(progress.step + 1, batches.samples_after(progress.step + 1))
    first, end = run.samples.numbers(batches.samples_after(step - 1), batches.samples_after(step))
    norm, applied = taken.update.gradient_norm, taken.update.applied
    say(
        f"step {step} again, from step {start.step}: loss {taken.loss:.17g}  gradient norm "
        f"{norm:.17g}  learning rate {taken.learning_rate:.17g}  samples {first}:{end}"
        f"{'' if applied else '  (the update was skipped)'}"
    )
    say(f"then, in {metrics_path(plan.run_dir)}: {logged_then(plan.run_dir, step)}")
    say(f"python launch/inspect_data.py where --recipe {plan.loaded.file} --step {step}")
    return taken.loss


def logged_then(run_dir: Path, step: int) -> str:
    """The line that the run wrote for a step."""
    for found, values in read_metrics(run_dir, "loss"):
        if found == step:
            return f"loss {values['loss']}  gradient norm {values.get('gradient_norm')}"
    return "no line of this step"
