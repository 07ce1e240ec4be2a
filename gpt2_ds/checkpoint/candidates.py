"""Which checkpoints a run may resume from: on this disk and elsewhere, newest first."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2_ds.checkpoint.manifest import CheckpointManifest, step_folders, step_name
from gpt2_ds.checkpoint.remote import remote_of
from gpt2_ds.config.errors import RunError, warn
from gpt2_ds.config.numbers import counted
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.heartbeat import Heartbeat
from gpt2_ds.record.ledger import read_ledger
from gpt2_ds.record.metrics_file import read_metrics


@dataclass(frozen=True)
class Candidate:
    """A checkpoint that a run may resume from.

    Args:
        step: its step.
        is_copy: it lies at checkpoint.copy_to, and must be fetched.
        manifest: of a checkpoint on this disk; None: the manifest is damaged.
    """

    step: int
    is_copy: bool = False
    manifest: CheckpointManifest | None = None

    @property
    def folder(self) -> str:
        """Its name under checkpoints/, here as there."""
        return step_name(self.step)


def find_candidates(
    plan: RunPlan, *, until_step: int | None, heartbeat: Heartbeat
) -> list[Candidate]:
    """All candidates, newest first; of equal steps, the one on this disk before its copy.

    Args:
        plan: the run.
        until_step: look only at this disk, and only at checkpoints up to this step.
        heartbeat: of listing the copies.

    Raises:
        UserError: there is no checkpoint on this disk, and the copies cannot be listed.
        RunError: the same; or there is no checkpoint anywhere, and the run had saved some.
    """
    folders = step_folders(plan.run_dir)
    here = [
        Candidate(int(path.name.partition("_")[2]), False, manifest) for path, manifest in folders
    ]
    if until_step is not None:
        return [candidate for candidate in here if candidate.step <= until_step]
    found = [*here, *_copies(plan, heartbeat, any(manifest for _, manifest in folders))]
    if not found:
        _refuse_lost(plan)
    return sorted(found, key=lambda candidate: (-candidate.step, candidate.is_copy))


def _copies(plan: RunPlan, heartbeat: Heartbeat, can_do_without: bool) -> list[Candidate]:
    if plan.recipe.checkpoint.copy_to is None:
        return []
    try:
        return [Candidate(step, is_copy=True) for step in remote_of(plan, heartbeat).complete()]
    except RunError as error:
        if not can_do_without:
            raise
        warn(f"{error} Resuming from this disk; whether there are newer copies is not known.")
        return []


def _refuse_lost(plan: RunPlan) -> None:
    """A run that has saved must not begin again at step 0 and overwrite its own curve.

    Raises:
        RunError: something in the run directory says that it has saved.
    """
    saved = ""
    interval = plan.recipe.checkpoint.interval_steps  # or an earlier job's, if that was larger
    for line in read_ledger(plan.run_dir / "ledger.jsonl"):
        interval = max(interval, line.get("checkpoint_interval_steps", 0))
        if line.get("event") in ("resume", "done") or (
            line.get("event") == "stop" and line["step"]
        ):
            saved = f"ledger.jsonl shows that step {line['step']} or a later one was saved"
    if (plan.run_dir / "checkpoints/latest").exists():
        saved = saved or "checkpoints/latest names one"
    # The first checkpoint is complete before the second one begins.
    last = max((step for step, _ in read_metrics(plan.run_dir)), default=0)
    if last > 2 * interval:
        steps = counted(interval, "step")
        saved = saved or f"metrics.jsonl has step {last}, and one was saved every {steps}"
    if saved:
        raise RunError(
            f"{plan.run_dir / 'checkpoints'}: holds no checkpoint, but there were some: {saved}. "
            "Restore them from a copy; to begin at step 0, use another --run-dir, or move this one "
            "away."
        )
