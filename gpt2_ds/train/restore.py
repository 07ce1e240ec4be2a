"""Go on with a run: the newest checkpoint that is what was saved, on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2_ds.config.errors import Fault, RunError, UserError, agreed, user_error
from gpt2_ds.config.fingerprint import fingerprint
from gpt2_ds.config.launcher import rank, world_size
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.parallel.agreement import by_rank_0, gathered
from gpt2_ds.parallel.elastic import load_elastic
from gpt2_ds.parallel.parameter_states import ParameterStates
from gpt2_ds.parallel.pickles import check_pickles, pickle_names
from gpt2_ds.train.checkpoint import Progress
from gpt2_ds.train.checkpoint_folder import layout_of, put_aside, remove_partial
from gpt2_ds.train.checkpoint_manifest import (
    MANIFEST,
    CheckpointManifest,
    check_resumable,
    damaged_files,
    step_folders,
)
from gpt2_ds.train.probe import PROBE_FILE, Tokens, check_probe
from gpt2_ds.train.remote_checkpoints import RemoteCheckpoints
from gpt2_ds.train.terminal import say


@dataclass(frozen=True)
class Restored:
    """What was loaded.

    Args:
        progress: where the run stands; step 0 when there was nothing.
        manifest: of the checkpoint; None when there was nothing.
        passed_over: newer checkpoints that are damaged, with the file that says so.
    """

    progress: Progress
    manifest: CheckpointManifest | None = None
    passed_over: list[Path] = field(default_factory=list)


def load_newest(
    plan: RunPlan,
    engine: Any,
    *,
    data_fingerprint: str,
    probe_loss: Callable[[Tokens], float],
    strict: bool = False,
    until_step: int | None = None,
    mark: Callable[[], None] | None = None,
) -> Restored:
    """Put the engine and the random states where the newest undamaged checkpoint left them.

    Collective. Every file is hashed, and every pickle looked through, before one is loaded.

    Args:
        plan: the run.
        engine: freshly built.
        data_fingerprint: of the corpus.
        probe_loss: the loss of stored tokens, with what is loaded.
        strict: a damaged checkpoint is an error; otherwise the one before it is taken.
        mark: called on every rank while a copy is fetched.
        until_step: look only at checkpoints up to this step, and leave the run directory alone.

    Raises:
        UserError: the checkpoint is of another recipe or other data, or holds what it must not; or
            DeepSpeed cannot load it with this template, or on so many ranks.
        RunError: there are checkpoints and all are damaged; or what was loaded is not what was
            saved.
    """
    looking = until_step is not None
    folders = by_rank_0(lambda: _candidates(plan, looking), mark)
    if until_step is not None:
        folders = [each for each in folders if int(each[0].name.partition("_")[2]) <= until_step]
    if folders:
        _refuse_disk(plan)
    passed_over: list[Path] = []
    for path, manifest in folders:
        bad = _damage(path, manifest)
        if bad is not None or manifest is None:
            found = path / (bad or MANIFEST)
            if strict:
                raise RunError(
                    f"{found}: not what was saved. Restore a copy of it, or start without --strict "
                    "to go on from the checkpoint before."
                )
            say(f"warning: {found}: not what was saved; going back one checkpoint")
            passed_over.append(found)
            continue
        _check_together(plan, path, manifest, data_fingerprint)
        _load(plan, engine, path, manifest)
        if manifest.probe_loss is not None:
            tokens = np.load(path / PROBE_FILE, allow_pickle=False)
            check_probe(path, manifest.probe_loss, probe_loss(tokens))
        _load_random_states(plan, path, manifest)
        if not looking:
            by_rank_0(lambda: _put_all_aside(plan, passed_over))
        progress = Progress(manifest.step, manifest.samples_seen, manifest.skipped_updates)
        return Restored(progress, manifest, passed_over)
    if folders:
        raise RunError(
            f"{plan.run_dir / 'checkpoints'}: all {len(folders)} checkpoints are damaged, or not "
            "every host can read them. Restore a copy; to begin at step 0, move them away."
        )
    return Restored(Progress(0, 0))


def _candidates(plan: RunPlan, looking: bool) -> list[tuple[Path, CheckpointManifest | None]]:
    """All step folders, newest first; from the copies elsewhere when this disk holds none."""
    folders = step_folders(plan.run_dir)
    empty = not any(manifest for _, manifest in folders)
    if empty and not looking and plan.recipe.checkpoint.copy_to is not None:
        remote_of(plan).fetch_newest(plan.run_dir)
        folders = step_folders(plan.run_dir)
    if not looking:  # after a fetch, which goes on with what is left of an earlier one
        remove_partial(plan.run_dir / "checkpoints")
    return folders


def remote_of(plan: RunPlan) -> RemoteCheckpoints:
    """Where `checkpoint.copy_to` keeps the copies of this run."""
    return RemoteCheckpoints(
        f"{(plan.recipe.checkpoint.copy_to or '').rstrip('/')}/{plan.run_dir.resolve().name}"
    )


def _damage(path: Path, manifest: CheckpointManifest | None) -> str | None:
    """The first file that is not what was saved, as any rank sees it. Collective."""
    if manifest is None:
        return MANIFEST
    found = gathered(damaged_files(path, manifest, part=rank(), parts=world_size()))
    return next((name for part in found for name in part), None)


def _check_together(
    plan: RunPlan, path: Path, manifest: CheckpointManifest, data_fingerprint: str
) -> None:
    """Refuse, on every rank, what one rank refuses. Collective."""
    faults: tuple[Fault, ...] = ()
    try:
        check_resumable(
            path,
            manifest,
            dtype=plan.recipe.precision.dtype,
            recipe_fingerprint=fingerprint(plan.recipe, manifest.tokens_seen),
            data_fingerprint=data_fingerprint,
        )
        check_pickles(path, pickle_names(path)[rank() :: world_size()])
    except UserError as error:
        faults = error.faults
    if any(found := gathered(faults)):
        raise UserError(*dict.fromkeys(fault for part in found for fault in part))


def _refuse_disk(plan: RunPlan) -> None:
    """The engine leaves out _load_zero_checkpoint, and copies the swapped files alone (0.19.8)."""
    offload = plan.template.zero_optimization.offload_optimizer
    if offload is not None and offload.device == "nvme":
        raise agreed(
            user_error(
                f"{plan.template_file}: zero_optimization.offload_optimizer.device",
                f"is nvme, and {plan.run_dir} holds checkpoints, from which DeepSpeed 0.19.8 then "
                "loads neither Adam's step counters nor parts below 1 MiB",
                "Set it to cpu, as ds_configs/zero3_offload.json does, to go on from them; or begin"
                " a new run with --run-dir runs/NAME.",
            )
        )


def _load(plan: RunPlan, engine: Any, path: Path, manifest: CheckpointManifest) -> None:
    same_form = (manifest.world_size, manifest.zero_stage) == (
        world_size(),
        plan.template.zero_optimization.stage,
    )
    same_layout = manifest.layout in ("", layout_of(plan, engine))
    if plan.recipe.optimizer.name == "muon" and not (same_form and same_layout):
        raise _cannot_cut_anew(plan, path, manifest, layout_of(plan, engine))
    if same_form and same_layout:
        loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
        if loaded is None:
            raise RunError(f"{path}: DeepSpeed could not load it. Restore a copy of it.")
        return
    say(
        f"{path}: written by {manifest.world_size} ranks at ZeRO stage {manifest.zero_stage}; "
        f"loading it into {world_size()} at stage {plan.template.zero_optimization.stage}"
    )
    load_elastic(engine, ParameterStates(path))


def _cannot_cut_anew(
    plan: RunPlan, path: Path, manifest: CheckpointManifest, layout: str
) -> UserError:
    """Muon's momentum lies otherwise at each stage, and `load_elastic` reads Adam's state alone."""
    stage = manifest.zero_stage
    there, here = json.loads(manifest.layout or "{}"), json.loads(layout)
    before, now = there.get("zero_optimization", {}), here["zero_optimization"]
    names = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    other = f" and another {', '.join(names)}" if names and stage == now["stage"] else ""
    ranks = [f"{n} rank{'s' * (n > 1)}" for n in (manifest.world_size, world_size())]
    return agreed(
        user_error(
            str(path),
            f"a run with Muon goes on only as it was saved, by {ranks[0]} at ZeRO stage {stage}; "
            f"this job has {ranks[1]} at stage {now['stage']} with {plan.template_file}{other}",
            f"Go on with {ranks[0]} and the template of stage {stage} that it was saved with, or "
            "begin a new run with --run-dir runs/NAME.",
        )
    )


def _load_random_states(plan: RunPlan, path: Path, manifest: CheckpointManifest) -> None:
    """Those of this rank; a rank that the saved job did not have gets its own of this step."""
    file = path / f"random_rank_{rank():05d}.pt"
    if rank() >= manifest.world_size:
        torch.manual_seed(plan.recipe.seed + 1 + rank() + manifest.samples_seen)
        return
    states = torch.load(file, weights_only=True)  # plain tensors: nothing in it is executed
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _put_all_aside(plan: RunPlan, passed_over: list[Path]) -> None:
    """Damaged checkpoints must not count as the newest again; nothing is deleted."""
    checkpoints = plan.run_dir / "checkpoints"
    for name in {found.relative_to(checkpoints).parts[0] for found in passed_over}:
        put_aside(checkpoints / name)
