"""Resuming: what is refused, what is fetched, and what each rank draws from."""

from __future__ import annotations

import io
import os
import shutil
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.order.skipped import Ranges
from gpt2_ds.record.ledger import read_ledger
from gpt2_ds.train.start.arguments import StartOptions
from tests.checkpoint.saved_files import flip
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


class Payload:
    """What must never run."""

    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (self.marker,)


def refusals(data: Path, folder: Path) -> dict[str, str]:
    from gpt2_ds.checkpoint.manifest import MANIFEST, hash_file, read_manifest, seal
    from gpt2_ds.train.run import replay_step, train

    corpus, said = small_corpus(data), {}

    def attempt(run: Path, skip_samples: Ranges = (), replayed_step: int | None = None) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            try:
                plan = small_plan(data, run, template="zero1")
                if replayed_step is None:
                    train(plan, corpus, StartOptions(skip_samples=skip_samples))
                else:
                    replay_step(plan, corpus, replayed_step)
            except (UserError, RunError) as error:
                return f"{type(error).__name__}: {error}"
        return printed.getvalue()

    def resealed(checkpoint: Path, **changes: object) -> None:
        """As an attacker would: every hash is right."""
        manifest = read_manifest(checkpoint)
        assert manifest is not None
        files = {name: hash_file(checkpoint / name) for name in manifest.files}
        changed = manifest.model_copy(update={"files": files, **changes})
        (checkpoint / MANIFEST).write_text(seal(changed))

    run = folder / "run"
    with redirect_stdout(io.StringIO()):
        train(small_plan(data, run, template="zero1", max_steps=6), corpus)
    newest = run / "checkpoints/step_00000006"
    shutil.copytree(run, folder / "probe")
    resealed(folder / "probe/checkpoints/step_00000006", probe_loss=9.0)
    said["probe"] = attempt(folder / "probe")

    shutil.copytree(run, folder / "payload")
    model = folder / "payload/checkpoints/step_00000006/mp_rank_00_model_states.pt"
    state = torch.load(model, weights_only=False)
    torch.save(state | {"x": Payload(str(folder / "ran"))}, model)
    resealed(model.parent)
    said["payload"] = attempt(folder / "payload")

    said["no such step"] = attempt(run, replayed_step=2)
    said["skip behind"] = attempt(run, ((8, 16),))
    said["skip"] = attempt(run, ((56, 64),))
    shutil.rmtree(newest, ignore_errors=True)
    return said


@pytest.mark.heavy
def test_refusals(data: Path, tmp_path: Path) -> None:
    (said,) = run_ranks(refusals, 1, tmp_path, data, tmp_path)
    checkpoint = tmp_path / "probe/checkpoints/step_00000006"
    assert said["probe"].startswith(f"RunError: {checkpoint}/probe.npy: its loss is ")
    assert "after loading and was 9.000000 when saved" in said["probe"]
    assert said["payload"].startswith(f"UserError: {tmp_path}/payload/checkpoints/step_00000006/mp")
    assert "mkdir" in said["payload"]
    assert not (tmp_path / "ran").exists()
    assert said["no such step"] == (
        "UserError: --replay 2: no checkpoint before this step is left. Steps that can be "
        "replayed: 4 and later."
    )
    assert said["skip behind"].startswith("UserError: --skip-samples 8:16: the run stands at")
    assert "resuming from step 6" in said["skip"]
    (event,) = [
        e for e in read_ledger(tmp_path / "run/ledger.jsonl") if e["event"] == "skip_samples"
    ]
    assert event["reason"] == "--skip-samples 56:64"


def fetched(data: Path, folder: Path, address: str) -> str:
    """A run with copies elsewhere, and the same command where its own folder is lost."""
    from gpt2_ds.checkpoint.remote import Uploader
    from gpt2_ds.train.run import train

    submit = Uploader.submit

    def in_turn(uploader: Uploader, *args: Any) -> None:
        while not uploader.idle:  # the newest alone waits: a slow bucket would miss one
            time.sleep(0.01)
        submit(uploader, *args)

    Uploader.submit = in_turn  # type: ignore[method-assign]
    corpus, copies = small_corpus(data), f"checkpoint.copy_to={address}"
    for until in (5, 8):
        printed = io.StringIO()
        with redirect_stdout(printed):
            train(
                small_plan(data, folder / "run", copies, template="zero1", max_steps=until), corpus
            )
        if until == 5:
            (folder / "run").rename(folder / "lost")
            (folder / "run").mkdir()
    return printed.getvalue()


@pytest.mark.heavy
def test_copies_elsewhere_are_gone_on_from(data: Path, tmp_path: Path) -> None:
    (said,) = run_ranks(fetched, 1, tmp_path, data, tmp_path, str(tmp_path / "copies"))
    assert "resuming from step 5" in said
    assert [step for step, _ in metrics_of(tmp_path / "run", "step", "loss")] == [6, 7, 8]
    copies = sorted(path.name for path in (tmp_path / "copies/run").iterdir())
    # The recipe keeps two; what this disk had lost before stays among the copies.
    assert copies == ["step_00000003", "step_00000006", "step_00000008"]


def from_both_places(data: Path, folder: Path) -> dict[str, str]:
    """A run of six steps and its copies, damaged here, there, or older here than there."""
    from gpt2_ds.train.run import train

    corpus, said = small_corpus(data), {}
    newest, before = "checkpoints/step_00000006", "checkpoints/step_00000003"

    def attempt(name: str, *overrides: str, strict: bool = False) -> None:
        printed = io.StringIO()
        copies = f"checkpoint.copy_to={folder / f'{name}_copies'}"
        plan = small_plan(data, folder / name, copies, *overrides, template="zero1", max_steps=6)
        with redirect_stdout(printed), redirect_stderr(printed):
            try:
                train(plan, corpus, StartOptions(strict=strict))
                said[name] = printed.getvalue()
            except (RunError, UserError) as error:
                said[name] = f"{type(error).__name__}: {error}"

    attempt("run")
    for name in ("here", "strict", "older", "there", "nowhere", "foreign"):
        shutil.copytree(folder / "run", folder / name)
        shutil.copytree(folder / "run_copies/run", folder / f"{name}_copies" / name)
    for name in ("here", "strict", "there", "nowhere"):
        flip(folder / name / newest / "probe.npy")
    for name in ("older", "foreign"):
        shutil.rmtree(folder / name / newest)
    for name in ("there", "nowhere"):
        flip(folder / f"{name}_copies" / name / "step_00000006/probe.npy")
    flip(folder / "nowhere" / before / "probe.npy")
    flip(folder / "nowhere_copies/nowhere/step_00000003/manifest.json")
    shutil.rmtree(folder / "foreign" / before)
    for name in ("here", "older", "there", "nowhere"):
        attempt(name)
    attempt("strict", strict=True)
    attempt("foreign", "optimizer.lr=2e-3")
    return said


@pytest.mark.heavy
def test_the_newest_that_is_right_is_taken_wherever_it_is(data: Path, tmp_path: Path) -> None:
    (said,) = run_ranks(from_both_places, 1, tmp_path, data, tmp_path)
    bad = "step_00000006/probe.npy: not what was saved"
    for name in ("here", "older"):
        assert f"{tmp_path}/{name}_copies/{name}/step_00000006: fetching this copy" in said[name]
        assert f"{tmp_path}/{name} is stopped after step 6" in said[name]
        assert (tmp_path / name / "checkpoints/step_00000006/manifest.json").exists()
    assert f"warning: {tmp_path}/here/checkpoints/{bad}; going back one checkpoint" in said["here"]
    (event,) = [e for e in read_ledger(tmp_path / "here/ledger.jsonl") if e["event"] == "fall_back"]
    assert event["reason"] == f"{tmp_path}/here/checkpoints/{bad}"
    names = sorted(path.name for path in (tmp_path / "here/checkpoints").glob("step_*"))
    assert names == ["step_00000003", "step_00000006", "step_00000006.damaged"]
    there = f"{tmp_path}/there_copies/there/step_00000006/probe.npy: sha256 "
    assert f"warning: {there}" in said["there"]
    assert "resuming from step 3" in said["there"]
    assert said["nowhere"] == (
        f"RunError: {tmp_path}/nowhere/checkpoints: all 2 checkpoints here, and 2 copies at "
        f"{tmp_path}/nowhere_copies are damaged. Restore a copy; to begin at step 0, use another "
        "--run-dir."
    )
    assert said["strict"] == (
        f"RunError: {tmp_path}/strict/checkpoints/{bad}. Restore a copy of it, or start without "
        "--strict to resume from the checkpoint before."
    )
    assert said["foreign"].startswith(
        f"UserError: {tmp_path}/foreign_copies/foreign/step_00000006/recipe.yaml: optimizer.lr: "
        "this run began with 0.003, and "
    )
    assert list((tmp_path / "foreign/checkpoints").glob("step_*")) == []  # nothing was fetched


def another_host_sees_less(data: Path, folder: Path) -> dict[str, str]:
    """Rank 1 finds a file damaged, then cannot read it; rank 0 finds it right."""
    from gpt2_ds.checkpoint import manifest as checkpoint_manifest
    from gpt2_ds.checkpoint import restore
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.train.run import train

    corpus, said = small_corpus(data), {}
    plan = small_plan(data, folder / "run", template="zero1", world_size=2, max_steps=6)
    with redirect_stdout(io.StringIO()):
        train(plan, corpus)
    error: OSError | None = None
    whole = checkpoint_manifest.hash_file

    def other(path: Path, heartbeat: Any) -> Any:
        if path.name == "random_rank_00001.pt" and rank() == 1:
            if error is not None:
                raise error
            return None
        return whole(path, heartbeat)

    checkpoint_manifest.hash_file = other
    for name, error in (("less", None), ("none", OSError(116, "Stale file handle"))):  # noqa: B007
        with redirect_stdout(io.StringIO()):
            try:
                restore.load_newest(plan, None, data_fingerprint="", probe_loss=lambda _: 0.0)
            except RunError as refused:
                said[name] = str(refused)
    return said


@pytest.mark.heavy
def test_what_one_host_cannot_read_is_no_damage(data: Path, tmp_path: Path) -> None:
    zero, one = run_ranks(another_host_sees_less, 2, tmp_path, data, tmp_path)
    file = f"{tmp_path}/run/checkpoints/step_00000006/random_rank_00001.pt"
    assert zero == one
    assert zero["less"] == (
        f"{file}: rank 0 reads what was saved, and rank 1 does not. Check that all hosts see the "
        "same folder there, then give the same command again; nothing was changed."
    )
    assert zero["none"] == (
        f"rank 1: {file}: cannot be read: Stale file handle. That is not damage, and nothing was "
        "changed. Check this disk and who may read it, then give the same command again."
    )
    names = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("step_*"))
    assert names == ["step_00000003", "step_00000006"]


def test_a_rank_that_the_saved_job_had_not_draws_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2_ds.checkpoint.restore import _load_random_states

    draws = []
    manifest = SimpleNamespace(world_size=1, samples_seen=24)
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)
        _load_random_states(5, tmp_path, manifest)  # type: ignore[arg-type]
        draws.append(torch.initial_seed())
    assert draws == [5 + 1 + 1 + 24, 5 + 1 + 2 + 24]
