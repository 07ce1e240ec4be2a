"""What launch/checkpoints.py does: list a run's checkpoints, check, prune or convert them."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    asked_folders,
    choose_checkpoint,
    complete_checkpoints,
    damaged_files,
    is_whole,
    read_manifest,
    step_folders,
    step_name,
)
from gpt2_ds.checkpoint.retention import best_step, delete, to_delete, validation_losses
from gpt2_ds.config.errors import EXIT_DONE, EXIT_RUN_FAILED, RunError, user_error
from gpt2_ds.config.numbers import counted
from gpt2_ds.config.recipe import CheckpointSection
from gpt2_ds.config.recipe_file import load_stored
from gpt2_ds.files.progress_bar import ProgressBar
from gpt2_ds.record.run_lock import RunLock


def list_checkpoints(run: Path) -> int:
    """Print a line for each checkpoint of a run, newest first, and what is left over.

    Raises:
        UserError: there is nothing.
    """
    folders, left = step_folders(run), leftovers(run)
    if not left:
        asked_folders(run, None)
    losses = validation_losses(run)
    complete = [manifest.step for _, manifest in folders if manifest is not None]
    best = best_step(complete, losses)
    print(
        f"{'step':>9} {'tokens':>17} {'ranks':>6} {'stage':>6} {'dtype':>6} {'GB':>9}  "
        f"{'created':25}  validation loss"
    )
    for path, manifest in folders:
        if manifest is None:
            print(f"{path.name}: damaged: {MANIFEST} is not what was saved")
            continue
        loss = f"{losses[manifest.step]:.4f}" if manifest.step in losses else ""
        marks = ["newest"] * (manifest.step == complete[0]) + ["best"] * (manifest.step == best)
        line = (
            f"{manifest.step:>9} {manifest.tokens_seen:>17,} {manifest.world_size:>6} "
            f"{manifest.zero_stage:>6} {manifest.dtype:>6} {_n_bytes(manifest) / 1e9:>9.3f}  "
            f"{manifest.created:25}  {loss:7} {', '.join(marks)}"
        )
        print(line.rstrip())
    for path in left:
        print(f"{path.name}: left over; launch/checkpoints.py prune deletes it")
    return EXIT_DONE


def verify(run: Path, step: int | None) -> int:
    """Read every file of a run's checkpoints, and name each that is not what was saved.

    Args:
        run: folder of the run.
        step: look at this one alone.

    Returns:
        The exit code: 1 when anything is damaged.

    Raises:
        UserError: there is no checkpoint, or none of this step.
    """
    is_fine = True
    for path, manifest in asked_folders(run, step):
        damaged = [MANIFEST] if manifest is None else _damaged(path, manifest)
        for name in damaged:
            print(f"{path / name}: damaged")
        if manifest is not None and not damaged:
            files, gigabytes = counted(len(manifest.files), "file"), _n_bytes(manifest) / 1e9
            print(f"{path}: {files}, {gigabytes:.3f} GB, as they were saved")
        is_fine = is_fine and not damaged
    return EXIT_DONE if is_fine else EXIT_RUN_FAILED


def prune(run: Path, keep_last: int | None, keep_every: int | None, *, dry_run: bool) -> int:
    """Delete what the recipe's rules do not keep, and what killed jobs left over.

    The newest complete checkpoint stays, whatever the rules; it is read first.

    Args:
        run: folder of the run.
        keep_last: instead of checkpoint.keep_last.
        keep_every: instead of checkpoint.keep_every_steps.
        dry_run: say what would be deleted, and delete nothing.

    Raises:
        UserError: a number is out of its range; nothing is complete, or the newest is damaged; a
            job is writing to the run.
        RunError: something cannot be deleted.
    """
    rules = _rules(run, keep_last, keep_every)
    if dry_run:
        return _prune(run, rules, dry_run=True)
    with RunLock(run):  # a job that saves now has an unfinished checkpoint there
        return _prune(run, rules, dry_run=False)


def _rules(run: Path, keep_last: int | None, keep_every: int | None) -> CheckpointSection:
    asked_folders(run, None)  # before a lock is put where no run is
    rules = load_stored(run / "recipe.yaml").recipe.checkpoint
    changes = {}
    for key, option, value, least in (
        ("keep_last", "--keep-last", keep_last, 1),
        ("keep_every_steps", "--keep-every", keep_every, 0),
    ):
        if value is None:
            continue
        if value < least:
            raise user_error(option, f"{value} is below {least}", f"Give {least} or more.")
        changes[key] = value
    return rules.model_copy(update=changes)


def _prune(run: Path, rules: CheckpointSection, *, dry_run: bool) -> int:
    complete = {found.step: (path, found) for path, found in complete_checkpoints(run)}
    if not complete:
        raise user_error(
            f"--run {run}", "holds no complete checkpoint", "Nothing is deleted: restore a copy."
        )
    newest, manifest = next(iter(complete.values()))
    gone = to_delete(list(complete), rules, validation_losses(run))
    if gone and (damaged := damaged_files(newest, manifest)):
        raise user_error(
            str(newest / damaged[0]),
            "damaged, and this checkpoint is the newest",
            "Nothing is deleted: older ones may be needed. Restore it, or delete its folder.",
        )
    word = "would be deleted" if dry_run else "deleted"
    for path in [*(complete[step][0] for step in gone), *leftovers(run)]:
        if (whole := _whole_after_all(path)) is not None:
            print(f"{path}: stays: every file is what was saved. Rename it to {whole} to resume")
            continue
        if not dry_run:
            try:
                delete(path)
            except OSError as error:
                raise RunError(f"{path}: cannot be deleted: {error.strerror}.") from error
        print(f"{path}: {word}")
    kept = [str(step) for step in complete if step not in gone]
    print(f"{'would stay' if dry_run else 'kept'}: {', '.join(kept)}")
    return EXIT_DONE


def reshard(run: Path, step: int | None, out: Path) -> int:
    """Write a checkpoint in DeepSpeed's universal form, which any number of ranks can load.

    Args:
        run: folder of the run.
        step: of the checkpoint; None: the newest.
        out: folder to make.

    Raises:
        UserError: there is no such checkpoint, or it is damaged, or it holds what it must not;
            `out` is there already.
    """
    checkpoint, manifest = choose_checkpoint(run, step)

    from gpt2_ds.parallel.states.pickles import (  # torch: after the check
        check_pickles,
        pickle_names,
    )
    from gpt2_ds.parallel.states.universal import write_universal

    check_pickles(checkpoint, pickle_names(checkpoint))
    write_universal(checkpoint, out)
    print(f"{out}: step {manifest.step} of {run}, in DeepSpeed's universal form")
    return EXIT_DONE


def _whole_after_all(path: Path) -> str | None:
    """The name of a quarantined checkpoint that is right: its disk may have failed then."""
    if ".damaged" not in path.name or (manifest := read_manifest(path)) is None:
        return None
    return None if damaged_files(path, manifest) else step_name(manifest.step)


def leftovers(run: Path) -> list[Path]:
    """What killed jobs did not finish, and quarantined checkpoints."""
    found = (run / "checkpoints").glob("step_*")
    return sorted(path for path in found if re.fullmatch(r"step_[0-9]{8,}\..+", path.name))


def _damaged(path: Path, manifest: CheckpointManifest) -> list[str]:
    """As `damaged_files`, with a progress bar."""
    damaged = []
    with ProgressBar(_n_bytes(manifest), title=f"{path.name}: ") as bar:
        for name, record in sorted(manifest.files.items()):
            if not is_whole(path, name, record):
                damaged.append(name)
            bar.advance(record.bytes)
    return damaged


def _n_bytes(manifest: CheckpointManifest) -> int:
    return sum(record.bytes for record in manifest.files.values())
