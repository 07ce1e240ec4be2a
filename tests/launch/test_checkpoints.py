"""launch/checkpoints.py as a user types it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gpt2_ds.checkpoint.manifest import MANIFEST, hash_file, seal, step_name
from gpt2_ds.config.derive import model_fields
from gpt2_ds.config.recipe_file import dump_recipe
from gpt2_ds.model import GPT2Config
from tests.checkpoint.saved_files import flip, manifest_of, save
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import small_plan


def checkpoints(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "launch/checkpoints.py"), *map(str, words)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)


def test_each_command_runs(tmp_path: Path) -> None:
    plan = small_plan(tmp_path / "data", tmp_path / "run")
    for step in (1, 2, 3, 4):
        save(plan.run_dir, step)
    (plan.run_dir / "recipe.yaml").write_text(dump_recipe(plan.recipe))
    done = checkpoints("list", "--run", plan.run_dir)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 5)
    done = checkpoints("prune", "--run", plan.run_dir, "--keep-last", 1, "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("would stay: 4\n")
    done = checkpoints("prune", "--run", plan.run_dir, "--keep-last", 1, "--keep-every", 2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("kept: 4, 2\n")
    done = checkpoints("verify", "--run", plan.run_dir, "--step", 2)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (0, "", 1)
    flip(plan.run_dir / "checkpoints" / step_name(4) / "a.pt")
    done = checkpoints("verify", "--run", plan.run_dir)
    assert (done.returncode, done.stderr, len(done.stdout.splitlines())) == (1, "", 2)
    done = checkpoints("reshard", "--run", plan.run_dir, "--step", 4, "--out", tmp_path / "out")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(
        "error: --step 4: its checkpoint is damaged. Choose another step.\n"
    )


def test_a_mistake_has_no_traceback(tmp_path: Path) -> None:
    for words in (["list"], ["verify"], ["prune"], ["reshard", "--out", tmp_path / "out"]):
        done = checkpoints(*words, "--run", tmp_path / "no")
        assert (done.returncode, done.stdout) == (2, ""), words
        assert done.stderr == (
            f"error: --run {tmp_path}/no: holds no complete checkpoint. "
            "Train first: deepspeed launch/train.py --recipe recipes/quickstart.yaml.\n"
        )
    done = checkpoints("prun", "--run", tmp_path)
    assert (done.returncode, "invalid choice" in done.stderr) == (2, True)


def save_stage_1(run: Path) -> None:
    """A real checkpoint, after one update."""
    from gpt2_ds.evaluation.loss import window_loss
    from gpt2_ds.parallel.engine import build_engine

    plan = small_plan(run.parent / "data", run, template="zero1")
    config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
    fields = model_fields(plan.recipe, plan.derived.vocab_size)
    engine = build_engine(GPT2Config(**fields), config, seed=3)
    for _ in range(plan.derived.gradient_accumulation_steps):
        engine.backward(window_loss(engine, torch.randint(0, 257, (2, 33))))
        engine.step()
    engine.save_checkpoint(str(run / "checkpoints"), tag=step_name(1), save_latest=False)


@pytest.mark.heavy
def test_a_checkpoint_in_universal_form(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "universal"
    run_ranks(save_stage_1, 1, tmp_path, run)
    folder = run / "checkpoints" / step_name(1)
    files = [path for path in folder.rglob("*") if path.is_file()]
    records = {str(path.relative_to(folder)): hash_file(path) for path in files}
    manifest = manifest_of(1, records, zero_stage=1, dtype="fp32", world_size=1)
    (folder / MANIFEST).write_text(seal(manifest))
    done = checkpoints("reshard", "--run", run, "--out", out)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{out}: step 1 of {run}, in DeepSpeed's universal form\n"
    weight = torch.load(out / "zero/transformer.ln_f.weight/fp32.pt", weights_only=True)["param"]
    saved = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    assert torch.equal(weight.flatten(), saved["transformer.ln_f.weight"].float().flatten())
    done = checkpoints("reshard", "--run", run, "--out", out)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {out}: ")
