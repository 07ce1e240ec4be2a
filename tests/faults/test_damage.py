"""Damage of every kind to a checkpoint: found before use, and the one before it is taken."""

from __future__ import annotations

import io
import random
import shutil
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.run_plan import RunPlan
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_plan

NEWEST, BEFORE = "step_00000006", "step_00000003"


def loaded(plan: RunPlan, engine: Any, fingerprint: str, strict: bool = False) -> tuple[int, str]:
    """The step that was loaded, and what was said; or -1 and the error."""
    from gpt2_ds.train.restore import load_newest

    said = io.StringIO()
    with redirect_stdout(said):
        try:
            restored = load_newest(
                plan,
                engine,
                data_fingerprint=fingerprint,
                probe_loss=lambda tokens: probe,
                strict=strict,
            )
        except RunError as error:
            return -1, str(error)
    return restored.progress.step, said.getvalue()


probe = 0.0


def damaged_in_every_way(data: Path, folder: Path, flips: int, seed: int) -> list[str]:
    """What went wrong with the ways in which damage was found; empty when nothing did."""
    global probe
    from gpt2_ds.config.derive import model_fields
    from gpt2_ds.model import GPT2Config
    from gpt2_ds.parallel.engine import build_engine
    from gpt2_ds.train.checkpoint_manifest import read_manifest
    from gpt2_ds.train.run import train

    corpus = small_corpus(data)
    plan = small_plan(data, folder / "run", template="zero1", max_steps=6)
    with redirect_stdout(io.StringIO()):
        train(plan, corpus)
    checkpoints = plan.run_dir / "checkpoints"
    whole = folder / "whole"
    shutil.copytree(checkpoints, whole)
    config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
    engine = build_engine(
        GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)), config, seed=1
    )
    wrong = []

    def damage(name: str, act: Any, *, named: str | None, strict: bool = False) -> None:
        """Damage one file of the newest checkpoint, and load."""
        global probe
        shutil.rmtree(checkpoints)
        shutil.copytree(whole, checkpoints)
        act(checkpoints / NEWEST / name)
        manifest = read_manifest(whole / (BEFORE if named else NEWEST))
        assert manifest is not None
        assert manifest.probe_loss is not None
        probe = manifest.probe_loss
        step, said = loaded(plan, engine, corpus.fingerprint, strict)
        expected = (-1 if strict else 3) if named else 6
        if step != expected or (named is not None and named not in said):
            wrong.append(f"{name}: step {step}, said {said!r}")

    chance = random.Random(seed)
    files = sorted(p for p in (whole / NEWEST).rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    for _ in range(flips):
        # Half of them anywhere by size, half in any file alike: small ones get their share.
        (path,) = chance.choices(files, sizes if chance.random() < 0.5 else None)
        bit = chance.randrange(8 * path.stat().st_size)
        name = str(path.relative_to(whole / NEWEST))

        def flip(file: Path, bit: int = bit) -> None:
            content = bytearray(file.read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            file.write_bytes(content)

        damage(name, flip, named=f"{NEWEST}/{name}: not what was saved")
    for path in files:
        name = str(path.relative_to(whole / NEWEST))
        cut = path.stat().st_size // 2
        named = f"{NEWEST}/{name}: not what was saved"
        damage(name, lambda file, cut=cut: file.write_bytes(file.read_bytes()[:cut]), named=named)
        damage(name, lambda file: file.write_bytes(b""), named=named)
        damage(name, Path.unlink, named=named)
    model = "mp_rank_00_model_states.pt"
    damage(model, Path.unlink, named=f"{NEWEST}/{model}: not what was saved. Restore", strict=True)
    # DeepSpeed's own pointer is never read by us.
    for text in ("", "\0garbage", "step_99999999", "../../x", "/etc"):
        damage("../latest", lambda file, text=text: file.write_text(text), named=None)
    damage("../latest", Path.unlink, named=None)
    damage("../latest", lambda file: (file.unlink(), file.symlink_to("/etc")), named=None)
    return wrong


@pytest.mark.heavy
@pytest.mark.matrix
def test_damage_is_found_and_the_checkpoint_before_taken(data: Path, tmp_path: Path) -> None:
    (wrong,) = run_ranks(damaged_in_every_way, 1, tmp_path, data, tmp_path, 100, 7)
    assert wrong == []


def a_link_in_place_of_a_checkpoint(data: Path, folder: Path) -> list[tuple[int, str]]:
    """Two runs: the newest checkpoint of one is a link to the other's."""
    from gpt2_ds.train.run import train

    corpus, found = small_corpus(data), []
    for name in ("own", "other"):
        with redirect_stdout(io.StringIO()):
            train(small_plan(data, folder / name, max_steps=6), corpus)
    linked = folder / "own/checkpoints" / NEWEST
    shutil.rmtree(linked)
    linked.symlink_to(folder / "other/checkpoints" / NEWEST)
    said = io.StringIO()
    with redirect_stdout(said):
        train(small_plan(data, folder / "own", max_steps=7), corpus)
    found.append((7, said.getvalue()))
    return found


@pytest.mark.heavy
def test_a_link_is_not_followed(data: Path, tmp_path: Path) -> None:
    ((_, said),) = run_ranks(a_link_in_place_of_a_checkpoint, 1, tmp_path, data, tmp_path)[0:1][0]
    assert f"{NEWEST}/manifest.json: not what was saved; going back one checkpoint" in said
    assert "going on after step 3" in said
    assert (tmp_path / "other/checkpoints" / NEWEST / "manifest.json").exists()
