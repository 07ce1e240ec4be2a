"""Save a run while it trains: a step directory is complete, or it is not there."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed

from gpt2_ds.checkpoint.file import done_now, save_state, trouble, write
from gpt2_ds.checkpoint.folder import layout_of, quarantine, remove_partial
from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    RECIPE,
    CheckpointManifest,
    FileRecord,
    complete_checkpoints,
    seal,
    step_name,
)
from gpt2_ds.checkpoint.probe import PROBE_FILE
from gpt2_ds.checkpoint.remote import Uploader
from gpt2_ds.checkpoint.retention import delete, to_delete, validation_losses
from gpt2_ds.config.errors import RunError, on_all_ranks, warn
from gpt2_ds.config.recipe_file import dump_recipe
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.config.same_run import fingerprint
from gpt2_ds.files.durable_file import sync
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.files.trouble import file_trouble
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.parallel.agreement import all_agree, by_rank_0, gathered, until_all
from gpt2_ds.parallel.states.captured_state import Buffers, catch_state, copy_state, fits_in_memory
from gpt2_ds.record.metrics_file import metrics_path
from gpt2_ds.record.run_directory import RUN_FILES, package_versions, write_text


@dataclass(frozen=True)
class Progress:
    """How far a run has come; the same on every rank.

    Args:
        step: optimizer steps done.
        samples_seen: training sequences consumed.
        skipped_updates: steps whose update was skipped.
    """

    step: int
    samples_seen: int
    skipped_updates: int = 0


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint says of its run besides the engine's state.

    Args:
        data_fingerprint: of the corpus.
        tokenizer_dir: copied into the checkpoint.
        skipped_samples: ranges of the training order that are skipped.
        probe: tokens whose loss is saved.
        probe_loss: gives their loss now; collective.
        uploader: copies complete checkpoints; on rank 0, where `checkpoint.copy_to` is set.
    """

    data_fingerprint: str
    tokenizer_dir: Path
    skipped_samples: list[tuple[int, int]]
    probe: np.ndarray[Any, Any]
    probe_loss: Callable[[], float]
    uploader: Uploader | None = None


@dataclass(frozen=True)
class _Writing:
    """A checkpoint on its way to the disk."""

    progress: Progress
    partial: Path
    probe_loss: float
    records: Future[dict[str, FileRecord]]
    heartbeat: Heartbeat


class Checkpoints:
    """Saves a run, one checkpoint at a time.

    `begin` copies the state and returns; a thread writes it while training continues. All ranks
    agree at each step whether all have written, and then commit: the manifest, one rename. Every
    method but `written` is collective.

    Args:
        plan: the run.
        engine: whose state is saved.
        facts: of the run.
        heartbeat: of every part that is written, and of waiting for other ranks.
    """

    def __init__(
        self,
        plan: RunPlan,
        engine: Any,
        facts: RunFacts,
        heartbeat: Heartbeat = UNHEARD,
    ) -> None:
        self._plan, self._engine, self._facts = plan, engine, facts
        self._folder = plan.run_dir / "checkpoints"
        self._heartbeat = heartbeat
        self._thread = ThreadPoolExecutor(1, "checkpoint-writer")
        self._buffers = Buffers()  # of the checkpoint before; it is written by then
        self._writing: _Writing | None = None
        self.last_saved: int | None = None  # the step of the newest commit of this process

    @property
    def written(self) -> bool:
        """This rank's part of the pending checkpoint is on the disk, or could not be written."""
        return self._writing is not None and self._writing.records.done()

    def begin(self, progress: Progress) -> None:
        """Save the run as it is now; waits first for a checkpoint that is still being written.

        Raises:
            RunError: the checkpoint before could not be written, this one cannot be begun, or the
                loss of the probe batch is not finite.
        """
        self.finish()
        partial = self._folder / f"{step_name(progress.step)}.tmp"

        def fresh_folder() -> None:
            remove_partial(self._folder, needed=partial)
            partial.mkdir(parents=True)
            sync(self._folder.parent)

        probe_loss = self._facts.probe_loss()
        if broken := [loss for loss in gathered(probe_loss) if not math.isfinite(loss)]:
            raise on_all_ranks(
                RunError(
                    f"{self._plan.run_dir}: after step {progress.step} the loss of the probe batch "
                    f"is {broken[0]}: these weights are lost, and are not saved. The last "
                    "checkpoint is untouched; lower optimizer.lr, or look at the samples of the "
                    "last steps."
                )
            )
        by_rank_0(fresh_folder, self._heartbeat.during(f"making {partial}"))
        saving = self._heartbeat.of_main_thread("saving")
        saving.beat()
        behind = self._plan.recipe.checkpoint.write_behind
        work: list[Callable[[], list[Path]]] = []
        writing = self._heartbeat.during(f"writing {partial}")

        def keep(state: Any, path: Path) -> None:
            if behind and fits_in_memory(state, self._buffers):
                copied = copy_state(state, self._buffers)
                work.append(lambda: save_state(copied, path, writing))
            else:
                # Ranks write different numbers of files.
                now = self._heartbeat.of_main_thread(f"writing {path}", alone=True)
                now.beat()
                work.append(done_now(lambda: save_state(state, path, now)))
                saving.beat()

        self._buffers.reuse()
        catch_state(self._engine, partial, keep)
        random = copy_state(_random_states())
        path = partial / f"random_rank_{rank():05d}.pt"
        work.append(lambda: save_state(random, path, writing))
        # DeepSpeed copies each rank's rows on NVMe there: the rank that wrote a file syncs it.
        swapped = partial / "offloaded_tensors" / f"rank{rank():02d}"
        work.append(lambda: [file for file in swapped.rglob("*") if file.is_file()])
        if rank() == 0:
            work.append(lambda: self._small_files(partial))
        records = self._thread.submit(write, partial, work, writing)
        self._writing = _Writing(progress, partial, probe_loss, records, writing)
        if not behind:
            self.finish()

    def finish(self) -> None:
        """Wait until the pending checkpoint is complete; nothing when there is none.

        Raises:
            RunError: a rank could not write its part. What was there before is untouched.
        """
        if self._writing is None:
            return
        until_all(lambda: self.written, self._writing.heartbeat)
        self.commit()

    def commit(self) -> None:
        """Make the pending checkpoint the newest; every rank has `written` it.

        Raises:
            RunError: as `finish`.
        """
        writing = self._writing
        assert writing is not None
        self._writing = None
        error = writing.records.exception()
        all_agree(trouble(error, writing.partial) if error else None)
        mine = writing.records.result()
        files = {name: record for part in gathered(mine) for name, record in part.items()}
        completing = self._heartbeat.during(f"completing {writing.partial.with_suffix('')}")
        by_rank_0(lambda: self._complete(writing, files, completing), completing)
        self.last_saved = writing.progress.step

    def close(self) -> None:
        """End the thread; a checkpoint that is not committed stays without a manifest."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _small_files(self, partial: Path) -> list[Path]:
        shutil.copytree(self._facts.tokenizer_dir, partial / "tokenizer")
        for name in RUN_FILES:
            shutil.copyfile(self._plan.run_dir / name, partial / name)
        # What trained, even if somebody changed the file since: a job that resumes compares it.
        write_text(partial / RECIPE, dump_recipe(self._plan.recipe))
        np.save(partial / PROBE_FILE, self._facts.probe)
        tokenizer = [file for file in (partial / "tokenizer").rglob("*") if file.is_file()]
        return [*tokenizer, *(partial / name for name in (*RUN_FILES, PROBE_FILE))]

    def _complete(
        self, writing: _Writing, files: dict[str, FileRecord], heartbeat: Heartbeat
    ) -> None:
        plan, progress = self._plan, writing.progress
        tokens_seen = progress.samples_seen * plan.recipe.data.seq_length
        manifest = CheckpointManifest(
            step=progress.step,
            samples_seen=progress.samples_seen,
            tokens_seen=tokens_seen,
            world_size=world_size(),
            zero_stage=plan.template.zero_optimization.stage,
            dtype=plan.recipe.precision.dtype,
            recipe_fingerprint=fingerprint(plan.recipe, tokens_seen),
            data_fingerprint=self._facts.data_fingerprint,
            versions=package_versions(),
            files=files,
            layout=layout_of(plan, self._engine),
            probe_loss=writing.probe_loss,
            skipped_samples=self._facts.skipped_samples,
            skipped_updates=progress.skipped_updates,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        metrics = metrics_path(plan.run_dir)
        if metrics.exists():  # a power cut must not leave the curve behind the checkpoint
            sync(metrics)
        write_text(writing.partial / MANIFEST, seal(manifest))
        final = self._folder / step_name(progress.step)
        quarantine(final)  # only an unfinished or damaged one can be there
        writing.partial.rename(final)
        sync(self._folder)
        write_text(self._folder / "latest", final.name)  # for DeepSpeed's own tools
        gone = self._prune(heartbeat)
        if self._facts.uploader is not None:
            self._facts.uploader.submit(final, gone)

    def _prune(self, heartbeat: Heartbeat) -> set[int]:
        """Delete the checkpoints that the recipe does not keep; returns their steps."""
        try:
            found = complete_checkpoints(self._plan.run_dir)
        except RunError as error:  # the new one is complete: the run need not end
            warn(str(error))
            return set()
        complete = {manifest.step: path for path, manifest in found}
        losses = validation_losses(self._plan.run_dir)
        uploading = self._facts.uploader.busy if self._facts.uploader else None
        gone = set(to_delete(sorted(complete, reverse=True), self._plan.recipe.checkpoint, losses))
        for step in gone:
            try:
                if complete[step] != uploading:
                    delete(complete[step])
                    heartbeat.beat()
            except OSError as error:
                warn(file_trouble(error))
        return gone


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states
