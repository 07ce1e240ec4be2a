"""Going on: what is refused, what is fetched, and what each rank draws from."""

from __future__ import annotations

import io
import os
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.train.arguments import StartOptions
from gpt2_ds.train.ledger import read_ledger
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
    from gpt2_ds.train.checkpoint_manifest import MANIFEST, hash_file, read_manifest, seal
    from gpt2_ds.train.run import train

    corpus, said = small_corpus(data), {}

    def attempt(run: Path, options: StartOptions, *overrides: str) -> str:
        printed = io.StringIO()
        with redirect_stdout(printed):
            try:
                train(small_plan(data, run, *overrides, template="zero1"), corpus, options)
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
    said["probe"] = attempt(folder / "probe", StartOptions())

    shutil.copytree(run, folder / "payload")
    model = folder / "payload/checkpoints/step_00000006/mp_rank_00_model_states.pt"
    state = torch.load(model, weights_only=False)
    torch.save(state | {"x": Payload(str(folder / "ran"))}, model)
    resealed(model.parent)
    said["payload"] = attempt(folder / "payload", StartOptions())

    said["no such step"] = attempt(run, StartOptions(replay_step=2))
    said["skip behind"] = attempt(run, StartOptions(skip_samples=["8:16"]))
    said["skip"] = attempt(run, StartOptions(skip_samples=["56:64"]))
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
        "UserError: --replay 2: no checkpoint before it is left. From one: 4, 7, and the steps "
        "after it."
    )
    assert said["skip behind"].startswith("UserError: --skip-samples 8:16: the run stands at")
    assert "going on after step 6" in said["skip"]
    (event,) = [
        e for e in read_ledger(tmp_path / "run/ledger.jsonl") if e["event"] == "skip_samples"
    ]
    assert event["reason"] == "--skip-samples 56:64"


def fetched(data: Path, folder: Path) -> str:
    """A run with copies elsewhere, and the same command where its own folder is lost."""
    from gpt2_ds.train.run import train

    corpus, copies = small_corpus(data), f"checkpoint.copy_to={folder / 'copies'}"
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
    (said,) = run_ranks(fetched, 1, tmp_path, data, tmp_path)
    assert "going on after step 5" in said
    assert [step for step, _ in metrics_of(tmp_path / "run", "step", "loss")] == [6, 7, 8]
    copies = sorted(path.name for path in (tmp_path / "copies/run").iterdir())
    # The recipe keeps two; what this disk had lost before stays among the copies.
    assert copies == ["step_00000003", "step_00000006", "step_00000008"]


def test_a_rank_that_the_saved_job_had_not_draws_its_own(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2_ds.train.restore import _load_random_states

    plan, draws = small_plan(data, tmp_path / "run"), []
    manifest = SimpleNamespace(world_size=1, samples_seen=24)
    for rank in ("1", "2"):
        monkeypatch.setenv("RANK", rank)
        _load_random_states(plan, tmp_path, manifest)  # type: ignore[arg-type]
        draws.append(torch.initial_seed())
    assert draws == [plan.recipe.seed + 1 + 1 + 24, plan.recipe.seed + 1 + 2 + 24]
