"""Save and load a run: a step directory is complete, or it is not there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.fingerprint import fingerprint
from gpt2_ds.config.launcher import rank, world_size
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.data.durable_file import sync
from gpt2_ds.train.checkpoint_manifest import (
    MANIFEST,
    CheckpointManifest,
    FileRecord,
    complete_checkpoints,
    damaged_files,
    hash_file,
    step_name,
)
from gpt2_ds.train.run_directory import (
    package_versions,
    write_text,
)
from gpt2_ds.train.terminal import say


@dataclass(frozen=True)
class Progress:
    """How far a run has come; the same on every rank.

    Args:
        step: optimizer steps done.
        samples_seen: training sequences consumed.
    """

    step: int
    samples_seen: int


def save_checkpoint(
    plan: RunPlan, engine: Any, progress: Progress, *, data_fingerprint: str, tokenizer_dir: Path
) -> Path:
    """Write everything that going on bit-equal needs. Collective.

    All ranks write under a temporary name; each file is hashed and fsynced; the manifest comes
    last, then one rename. Older checkpoints go only after that.

    Returns:
        The step directory.
    """
    checkpoints = plan.run_dir / "checkpoints"
    name = step_name(progress.step)
    final, partial = checkpoints / name, checkpoints / f"{name}.tmp"
    if rank() == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    dist.barrier()
    engine.save_checkpoint(str(checkpoints), tag=partial.name, save_latest=False)
    torch.save(_random_states(), partial / f"random_rank_{rank():05d}.pt")
    if rank() == 0:
        shutil.copytree(tokenizer_dir, partial / "tokenizer")
    dist.barrier()
    files = _hash_all(partial)
    if rank() == 0:
        tokens_seen = progress.samples_seen * plan.recipe.data.seq_length
        manifest = CheckpointManifest(
            step=progress.step,
            samples_seen=progress.samples_seen,
            tokens_seen=tokens_seen,
            world_size=world_size(),
            zero_stage=plan.template.zero_optimization.stage,
            dtype=plan.recipe.precision.dtype,
            recipe_fingerprint=fingerprint(plan.recipe, tokens_seen),
            data_fingerprint=data_fingerprint,
            versions=package_versions(),
            files=files,
        )
        write_text(partial / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
        shutil.rmtree(final, ignore_errors=True)  # only an unfinished or damaged one can be there
        partial.rename(final)
        sync(checkpoints)
        write_text(checkpoints / "latest", name)  # for DeepSpeed's own tools
        _prune(plan)
    dist.barrier()
    return final


def _random_states() -> dict[str, torch.Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _hash_all(folder: Path) -> dict[str, FileRecord]:
    """Hash and fsync every file, shared among the ranks. Collective."""
    names = _of_rank_0(sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()))
    mine = {}
    for name in names[rank() :: world_size()]:
        sync(folder / name)
        mine[name] = hash_file(folder / name)
    parts: list[dict[str, FileRecord]] = [{} for _ in range(world_size())]
    dist.all_gather_object(parts, mine)
    return {name: record for part in parts for name, record in part.items()}


def _prune(plan: RunPlan) -> None:
    """Keep the newest complete checkpoints."""
    for path, _ in complete_checkpoints(plan.run_dir)[plan.recipe.checkpoint.keep_last :]:
        shutil.rmtree(path)


def load_newest(plan: RunPlan, engine: Any) -> Progress:
    """Put the engine and the random states where the newest undamaged checkpoint left them.

    Collective. A damaged checkpoint is named, and the one before it taken.

    Raises:
        RunError: there are complete checkpoints and all are damaged.
    """
    complete = _of_rank_0(complete_checkpoints(plan.run_dir))
    passed_over: list[Path] = []
    for path, manifest in complete:
        damaged = _agree(damaged_files(path, manifest, part=rank(), parts=world_size()))
        if damaged:
            say(f"warning: {path / damaged[0]}: not what was saved; going back one checkpoint")
            passed_over.append(path)
            continue
        loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
        if loaded is None:
            raise RunError(f"{path}: DeepSpeed could not load it. Restore a copy of it.")
        # Plain tensors: nothing in the file is executed.
        states = torch.load(path / f"random_rank_{rank():05d}.pt", weights_only=True)
        torch.set_rng_state(states["cpu"])
        if "cuda" in states and torch.cuda.is_available():
            torch.cuda.set_rng_state(states["cuda"])
        if rank() == 0:
            for newer in passed_over:  # out of the way: it must not count as the newest again
                newer.rename(newer.with_name(f"{newer.name}.damaged"))
        return Progress(manifest.step, manifest.samples_seen)
    if complete:
        raise RunError(
            f"{plan.run_dir / 'checkpoints'}: all {len(complete)} checkpoints are damaged. Restore "
            "a copy, or remove them to begin at step 0."
        )
    return Progress(0, 0)


Listing = TypeVar("Listing")


def _of_rank_0(listing: Listing) -> Listing:
    """What rank 0 sees in a folder: others may see it later on a network disk. Collective."""
    box = [listing]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _agree(damaged: list[str]) -> list[str]:
    """The damaged files that any rank found. Collective."""
    found: list[list[str]] = [[] for _ in range(world_size())]
    dist.all_gather_object(found, damaged)
    return [name for part in found for name in part]
