"""Resume a run from its newest undamaged checkpoint, on any number of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2_ds.checkpoint.candidates import find_candidates
from gpt2_ds.checkpoint.checkpoint import Progress
from gpt2_ds.checkpoint.folder import layout_of, quarantine, remove_partial
from gpt2_ds.checkpoint.manifest import (
    MANIFEST,
    CheckpointManifest,
    check_resumable,
    damaged_files,
    is_whole,
    saved_recipe,
    step_name,
)
from gpt2_ds.checkpoint.probe import PROBE_FILE, Tokens, check_probe
from gpt2_ds.checkpoint.remote import Damaged, remote_of
from gpt2_ds.config.errors import Fault, RunError, UserError, on_all_ranks, user_error
from gpt2_ds.config.numbers import counted
from gpt2_ds.config.optimizers import optimizer_named
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.files.heartbeat import UNHEARD, Heartbeat
from gpt2_ds.hosts.launcher import rank, world_size
from gpt2_ds.parallel.agreement import all_agree, by_all, by_rank_0, gathered
from gpt2_ds.parallel.states.elastic import load_elastic
from gpt2_ds.parallel.states.parameter_states import ParameterStates
from gpt2_ds.parallel.states.pickles import check_pickles, pickle_names
from gpt2_ds.record.terminal import say, warn_on_rank_0


@dataclass(frozen=True)
class Restored:
    """What was loaded.

    Args:
        progress: where the run stands; step 0 when there was nothing.
        manifest: of the checkpoint; None when there was nothing.
        passed_over: why each newer checkpoint was skipped: the damaged file.
    """

    progress: Progress
    manifest: CheckpointManifest | None = None
    passed_over: list[str] = field(default_factory=list)


def load_newest(
    plan: RunPlan,
    engine: Any,
    *,
    data_fingerprint: str,
    probe_loss: Callable[[Tokens], float],
    strict: bool = False,
    until_step: int | None = None,
    heartbeat: Heartbeat = UNHEARD,
) -> Restored:
    """Load the newest undamaged checkpoint into the engine and the random generators. Collective.

    Every file is hashed, and every pickle checked, before anything is loaded. A copy is fetched
    where it is newer than what this disk has, or whole where this disk's is damaged.

    Args:
        plan: the run.
        engine: freshly built.
        data_fingerprint: of the corpus.
        probe_loss: the loss of stored tokens, with what is loaded.
        strict: a damaged checkpoint is an error; otherwise the one before it is taken.
        heartbeat: of what takes long.
        until_step: look only at checkpoints up to this step, and change nothing in the run
            directory.

    Raises:
        UserError: the checkpoint is of another recipe or other data, or holds what it must not; or
            DeepSpeed cannot load it with this template, or on so many ranks.
        RunError: there are checkpoints and all are damaged, or there were some and none is left; a
            file cannot be read; or what was loaded is not what was saved.
    """
    read_only = until_step is not None
    search = heartbeat.during(f"looking for checkpoints of {plan.run_dir}")
    candidates = by_rank_0(
        lambda: find_candidates(plan, until_step=until_step, heartbeat=search), search
    )
    if candidates:
        _refuse_nvme(plan)
    passed_over: list[str] = []
    for candidate in candidates:
        path = plan.run_dir / "checkpoints" / candidate.folder
        manifest, bad = candidate.manifest, None
        if candidate.is_copy:
            manifest, bad = _fetch(plan, candidate.step, data_fingerprint, heartbeat)
        if bad is None:
            bad = _damage(path, manifest, heartbeat)
        if bad is not None or manifest is None:
            if strict:
                raise on_all_ranks(
                    RunError(
                        f"{bad}. Restore a copy of it, or start without --strict to resume from "
                        "the checkpoint before."
                    )
                )
            warn_on_rank_0(f"{bad}; going back one checkpoint")
            passed_over.append(f"{bad}")
            continue
        _check_together(plan, path, manifest, data_fingerprint)
        _load(plan, engine, path, manifest, heartbeat)
        tokens = np.load(path / PROBE_FILE, allow_pickle=False)
        check_probe(path, manifest.probe_loss, probe_loss(tokens))
        _load_random_states(plan.recipe.seed, path, manifest)
        if not read_only:
            passed = {newer.folder for newer in candidates if newer.step > candidate.step}
            by_rank_0(partial(_tidy, plan.run_dir, passed))
        progress = Progress(manifest.step, manifest.samples_seen, manifest.skipped_updates)
        return Restored(progress, manifest, passed_over)
    if candidates:
        n_copies = sum(candidate.is_copy for candidate in candidates)
        here, there = len(candidates) - n_copies, plan.recipe.checkpoint.copy_to
        copies = f", and {counted(n_copies, 'copy', 'copies')} at {there}" if n_copies else ""
        raise on_all_ranks(
            RunError(
                f"{plan.run_dir / 'checkpoints'}: all {counted(here, 'checkpoint')} here{copies} "
                "are damaged. Restore a copy; to begin at step 0, use another --run-dir."
            )
        )
    if not read_only:
        by_rank_0(lambda: _tidy(plan.run_dir, set()))
    return Restored(Progress(0, 0))


def _fetch(
    plan: RunPlan, step: int, data_fingerprint: str, heartbeat: Heartbeat
) -> tuple[CheckpointManifest | None, str | None]:
    """Fetch a copy: its manifest, or how it is damaged. Collective."""
    name = f"{plan.recipe.checkpoint.copy_to}: {step_name(step)}"
    fetching = heartbeat.during(f"fetching {name}")

    def fetch() -> tuple[CheckpointManifest | None, str | None]:
        remote = remote_of(plan, fetching)
        try:
            manifest = remote.manifest(step)
            check_resumable(
                remote.files.at(step_name(step)),
                manifest,
                stored=remote.recipe(manifest),
                loaded=plan.loaded,
                data_fingerprint=data_fingerprint,
            )
            say(
                f"{remote.files.at(step_name(step))}: fetching this copy, which is not on this disk"
            )
            remote.fetch(step, plan.run_dir)
        except Damaged as damaged:
            return None, str(damaged)
        return manifest, None

    return by_rank_0(fetch, fetching)


def _damage(path: Path, manifest: CheckpointManifest | None, heartbeat: Heartbeat) -> str | None:
    """The first file that is not what was saved, as any rank sees it. Collective.

    Raises:
        RunError: a file cannot be read, or only some hosts see what was saved.
    """
    if manifest is None:
        return f"{path / MANIFEST}: not what was saved"
    checking = heartbeat.during(f"checking {path}")

    def look() -> tuple[list[str], str | None]:
        part = {"part": rank(), "parts": world_size()}
        try:
            return damaged_files(path, manifest, **part, heartbeat=checking), None
        except RunError as error:
            return [], str(error)

    names, failure = by_all(look, checking)
    all_agree(failure)
    found = [(i, name) for i, part in enumerate(gathered(names)) for name in part]
    if not found:
        return None
    other, name = found[0]
    record = manifest.files[name]
    if other != 0 and by_rank_0(lambda: is_whole(path, name, record, checking), checking):
        raise on_all_ranks(
            RunError(
                f"{path / name}: rank 0 reads what was saved, and rank {other} does not. Check "
                "that all hosts see the same folder there, then give the same command again; "
                "nothing was changed."
            )
        )
    return f"{path / name}: not what was saved"


def _check_together(
    plan: RunPlan, path: Path, manifest: CheckpointManifest, data_fingerprint: str
) -> None:
    """Refuse, on every rank, what one rank refuses. Collective."""
    stored = by_rank_0(lambda: saved_recipe(path, manifest))
    faults: tuple[Fault, ...] = ()
    try:
        check_resumable(
            path,
            manifest,
            stored=stored,
            loaded=plan.loaded,
            data_fingerprint=data_fingerprint,
        )
        check_pickles(path, pickle_names(path)[rank() :: world_size()])
    except UserError as error:
        faults = error.faults
    if any(found := gathered(faults)):
        raise on_all_ranks(UserError(*dict.fromkeys(fault for part in found for fault in part)))


def _refuse_nvme(plan: RunPlan) -> None:
    """DeepSpeed 0.19.8 skips _load_zero_checkpoint on NVMe, and copies only the swapped files."""
    offload = plan.template.zero_optimization.offload_optimizer
    if offload is not None and offload.device == "nvme":
        raise on_all_ranks(
            user_error(
                f"{plan.template_file}: zero_optimization.offload_optimizer.device",
                f"is nvme, and {plan.run_dir} holds checkpoints, from which DeepSpeed 0.19.8 then "
                "loads neither Adam's step counters nor parts below 1 MiB",
                "Set it to cpu, as ds_configs/zero3_offload.json does, to resume from them; or "
                "begin a new run with --run-dir runs/NAME.",
            )
        )


def _load(
    plan: RunPlan, engine: Any, path: Path, manifest: CheckpointManifest, heartbeat: Heartbeat
) -> None:
    loading = heartbeat.of_main_thread(f"loading {path}")
    loading.beat()
    stage, layout = plan.template.zero_optimization.stage, layout_of(plan, engine)
    now = (world_size(), stage, layout)
    optimizer = optimizer_named(plan.recipe.optimizer.name)  # refuses one that is not described
    if (manifest.world_size, manifest.zero_stage, manifest.layout) == now:
        loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
        if loaded is None:
            raise RunError(f"{path}: DeepSpeed could not load it. Restore a copy of it.")
        return
    if not optimizer.elastic:
        raise _not_elastic(optimizer.title, plan.template_file, path, manifest, layout)
    say(
        f"{path}: written by {counted(manifest.world_size, 'rank')} at ZeRO stage "
        f"{manifest.zero_stage}; loading it into {world_size()} at stage {stage}"
    )
    load_elastic(engine, ParameterStates(path), loading)


def _not_elastic(
    title: str, template_file: str, path: Path, manifest: CheckpointManifest, layout: str
) -> UserError:
    """The optimizer is not elastic: `load_elastic` reads and fills other states."""
    stage = manifest.zero_stage
    there, here = json.loads(manifest.layout), json.loads(layout)
    before, now = there.get("zero_optimization", {}), here["zero_optimization"]
    names = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    other = f" and another {', '.join(names)}" if names and stage == now["stage"] else ""
    ranks = [counted(n, "rank") for n in (manifest.world_size, world_size())]
    return on_all_ranks(
        user_error(
            str(path),
            f"a run with {title} resumes only as it was saved, by {ranks[0]} at ZeRO stage {stage};"
            f" this job has {ranks[1]} at stage {now['stage']} with {template_file}{other}",
            f"Resume with {ranks[0]} and the template of stage {stage} that it was saved with, or "
            "begin a new run with --run-dir runs/NAME.",
        )
    )


def _load_random_states(seed: int, path: Path, manifest: CheckpointManifest) -> None:
    """The states of this rank; a rank that the saved job did not have draws anew from the seed."""
    file = path / f"random_rank_{rank():05d}.pt"
    if rank() >= manifest.world_size:
        torch.manual_seed(seed + 1 + rank() + manifest.samples_seen)
        return
    states = torch.load(file, weights_only=True)  # plain tensors: nothing in it is executed
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _tidy(run_dir: Path, damaged: set[str]) -> None:
    """Quarantine damaged checkpoints, or they would count as the newest; delete unfinished ones."""
    checkpoints = run_dir / "checkpoints"
    for name in damaged:
        quarantine(checkpoints / name)
    remove_partial(checkpoints)
