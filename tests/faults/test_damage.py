"""Damage of every kind to a checkpoint: found before use, and the one before it is taken."""

from __future__ import annotations

import io
import random
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.config.run_plan import RunPlan
from gpt2_ds.record.ledger import read_ledger
from tests.checkpoint.saved_files import flip
from tests.faults.jobs import job
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_plan

NEWEST, BEFORE = "step_00000006", "step_00000003"


def loaded(plan: RunPlan, engine: Any, fingerprint: str, strict: bool = False) -> tuple[int, str]:
    """The step that was loaded, and what was said; or -1 and the error."""
    from gpt2_ds.checkpoint.restore import load_newest

    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
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


def damaged_in_every_way(
    data: Path, folder: Path, flips: int, seed: int, template: str = "zero1"
) -> list[str]:
    """What went wrong with the ways in which damage was found; empty when nothing did.

    Bits are flipped at any template and number of ranks; other damage is done on one rank alone.
    """
    global probe
    from gpt2_ds.checkpoint.manifest import read_manifest
    from gpt2_ds.config.derive import model_fields
    from gpt2_ds.hosts.launcher import rank, world_size
    from gpt2_ds.model import GPT2Config
    from gpt2_ds.parallel.agreement import by_rank_0
    from gpt2_ds.parallel.engine import build_engine
    from gpt2_ds.train.run import train

    corpus = small_corpus(data)
    plan = small_plan(data, folder / "run", template=template, world_size=world_size(), max_steps=6)
    with redirect_stdout(io.StringIO()):
        train(plan, corpus)
    checkpoints = plan.run_dir / "checkpoints"
    whole = folder / "whole"
    by_rank_0(lambda: shutil.copytree(checkpoints, whole))
    config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
    engine = build_engine(
        GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size)), config, seed=1
    )
    wrong = []

    def damage(name: str, act: Any, *, named: str | None, strict: bool = False) -> None:
        """Damage one file of the newest checkpoint, and load."""
        global probe

        def do() -> None:
            shutil.rmtree(checkpoints)
            shutil.copytree(whole, checkpoints)
            act(checkpoints / NEWEST / name)

        by_rank_0(do)
        manifest = read_manifest(whole / (BEFORE if named else NEWEST))
        assert manifest is not None
        probe = manifest.probe_loss
        step, said = loaded(plan, engine, corpus.fingerprint, strict)
        expected = (-1 if strict else 3) if named else 6
        heard = named is None or named in said or (rank() > 0 and not strict)
        if step != expected or not heard:
            wrong.append(f"{name}: step {step}, said {said!r}")

    chance = random.Random(seed)
    files = sorted(p for p in (whole / NEWEST).rglob("*") if p.is_file())
    sizes = [p.stat().st_size for p in files]
    for _ in range(flips):
        # Half of them anywhere by size, half in any file alike: small ones get their share.
        (path,) = chance.choices(files, sizes if chance.random() < 0.5 else None)
        bit = chance.randrange(8 * path.stat().st_size)
        name = str(path.relative_to(whole / NEWEST))

        def flip_it(file: Path, bit: int = bit) -> None:
            content = bytearray(file.read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            file.write_bytes(content)

        damage(name, flip_it, named=f"{NEWEST}/{name}: not what was saved")
    if world_size() > 1:
        return wrong
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


@pytest.mark.heavy
def test_flipped_bits_are_found_by_several_ranks_together(data: Path, tmp_path: Path) -> None:
    found = run_ranks(damaged_in_every_way, 2, tmp_path, data, tmp_path, 12, 11, "zero3")
    assert found == [[], []]


@pytest.mark.heavy
def test_strict_ends_with_1(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with job(run, data, words=("--max-steps", "6"), ranks=1) as first:
        assert first.wait() == [0], first.text()
    flip(run / "checkpoints" / NEWEST / "probe.npy")
    with job(run, data, words=("--strict",), ranks=1) as strict:
        assert strict.wait() == [1], strict.text()
    said = strict.text().splitlines()[-1]
    assert said == (
        f"error: {run}/checkpoints/{NEWEST}/probe.npy: not what was saved. Restore a copy of it, "
        "or start without --strict to resume from the checkpoint before."
    )
    assert "Traceback" not in strict.text()
    with job(run, data, ranks=1) as again:
        assert again.wait() == [0], again.text()
    events = read_ledger(run / "ledger.jsonl")
    assert [event["event"] for event in events] == ["start", "stop", "fall_back", "resume", "done"]
    assert events[2]["reason"] == f"{run}/checkpoints/{NEWEST}/probe.npy: not what was saved"


@pytest.mark.heavy
def test_a_run_that_has_lost_all_does_not_begin_again(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with job(run, data, words=("--max-steps", "6"), ranks=1) as first:
        assert first.wait() == [0], first.text()
    shutil.rmtree(run / "checkpoints")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 7, "loss": 4.0}\n')  # two of its saves were complete by then
    before = (run / "metrics.jsonl").read_bytes()
    with job(run, data, ranks=1) as lost:
        assert lost.wait() == [1], lost.text()
    assert f"error: {run}/checkpoints: holds no checkpoint, but there were some: " in lost.text()
    assert (run / "metrics.jsonl").read_bytes() == before


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
    with redirect_stdout(said), redirect_stderr(said):
        train(small_plan(data, folder / "own", max_steps=7), corpus)
    found.append((7, said.getvalue()))
    return found


@pytest.mark.heavy
def test_a_link_is_not_followed(data: Path, tmp_path: Path) -> None:
    ((_, said),) = run_ranks(a_link_in_place_of_a_checkpoint, 1, tmp_path, data, tmp_path)[0:1][0]
    assert f"{NEWEST}/manifest.json: not what was saved; going back one checkpoint" in said
    assert "resuming from step 3" in said
    assert (tmp_path / "other/checkpoints" / NEWEST / "manifest.json").exists()
