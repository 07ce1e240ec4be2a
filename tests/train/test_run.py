"""Whole runs on real ranks: resume, world sizes, stages, damage, metrics."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gpt2_ds.config.errors import RunError, UserError
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan

STAGES = ("zero0", "zero1", "zero2", "zero3")
NUMBERS = ("step", "loss", "learning_rate", "gradient_norm", "tokens_seen")
DROPOUT = ("model.resid_pdrop=0.1", "model.embd_pdrop=0.1", "model.attn_pdrop=0.1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    (folder / "x.txt").write_text("some text")
    return small_dataset(folder)


def unbroken_and_resumed(data: Path, folder: Path, world_size: int) -> None:
    """Each stage twice, with dropout: eight steps in one go, and stopped after four."""
    from gpt2_ds.train.run import train

    dataset = small_corpus(data)
    for stage in STAGES:
        for name, limits in (("unbroken", (None,)), ("resumed", (4, None))):
            for max_steps in limits:
                plan = small_plan(
                    data,
                    folder / f"{stage}_{name}",
                    *DROPOUT,
                    template=stage,
                    world_size=world_size,
                    max_steps=max_steps,
                )
                train(plan, dataset)


@pytest.mark.heavy
@pytest.mark.parametrize("world_size", [1, 2])
def test_resumed_losses_are_bit_equal(world_size: int, data: Path, tmp_path: Path) -> None:
    run_ranks(unbroken_and_resumed, world_size, tmp_path, data, tmp_path, world_size)
    for stage in STAGES:
        unbroken, resumed = tmp_path / f"{stage}_unbroken", tmp_path / f"{stage}_resumed"
        steps = metrics_of(unbroken, *NUMBERS)
        assert [step for step, *_ in steps] == list(range(1, 9)), stage
        assert metrics_of(resumed, *NUMBERS) == steps, stage
        validations = metrics_of(unbroken, "step", "validation_loss", "validation_perplexity")
        assert [step for step, *_ in validations] == [4, 8]
        assert (
            metrics_of(resumed, "step", "validation_loss", "validation_perplexity") == validations
        )
        kept = sorted(p.name for p in (resumed / "checkpoints").glob("step_*"))
        # keep_last: 2; and step 4 where the last was complete before its validation was known.
        assert kept[-2:] == ["step_00000006", "step_00000008"]
        assert kept[:-2] in ([], ["step_00000004"])
        assert (resumed / "checkpoints/latest").read_text() == "step_00000008"


def files_of(run_dir: Path) -> list[str]:
    """What a run that was refused has left; folders alone are none."""
    return [path.name for path in run_dir.rglob("*") if path.is_file()]


def refused_on_a_cpu_then_seeds(data: Path, folder: Path) -> tuple[list[str], int]:
    """What a format and a template for GPUs say; and a rank's seed of dropout after a run began."""
    from gpt2_ds.train.run import train
    from gpt2_ds.train.start import first_checks

    first_checks.supports = lambda dtype: dtype != "fp16"  # as most CPUs; newer ones have it
    dataset, messages = small_corpus(data), []
    half = small_plan(data, folder / "half", "precision.dtype=fp16", template="zero1", world_size=2)
    quantized = small_plan(data, folder / "half", template="zero3_hpz_quantized", world_size=2)
    for plan in (half, quantized):
        try:
            train(plan, dataset)
        except UserError as error:
            messages.append(str(error))
    csv = folder / "csv.json"
    csv.write_text('{"zero_optimization": {"stage": 1}, "csv_monitor": {"enabled": true}}')
    train(small_plan(data, folder / "run", template=csv, world_size=2, max_steps=2), dataset)
    return messages, torch.initial_seed()


@pytest.mark.heavy
def test_what_needs_gpus_dropout_seeds_and_csv_files(data: Path, tmp_path: Path) -> None:
    (messages, seed), (other_messages, other_seed) = run_ranks(
        refused_on_a_cpu_then_seeds, 2, tmp_path, data, tmp_path
    )
    assert messages == other_messages
    assert messages[0] == (
        "--set: precision.dtype: fp16 cannot be trained on cpu. Set it to fp32 or bf16."
    )
    assert "zero_quantized_weights: needs GPUs" in messages[1]
    assert files_of(tmp_path / "half") == []
    assert seed != other_seed
    written = (tmp_path / "run/csv/train_loss.csv").read_text().splitlines()
    losses = metrics_of(tmp_path / "run", "step", "loss")
    assert [line.split(",")[0] for line in written[1:]] == [str(step) for step, _ in losses]


def one_run(data: Path, run_dir: Path, world_size: int, overrides: tuple[str, ...]) -> str:
    from gpt2_ds.train.run import train

    printed = io.StringIO()
    with redirect_stdout(printed):
        train(
            small_plan(data, run_dir, *overrides, template="zero1", world_size=world_size),
            small_corpus(data),
        )
    return printed.getvalue()


@pytest.mark.heavy
def test_world_size_and_micro_batch_do_not_change_the_run(data: Path, tmp_path: Path) -> None:
    one, two, micro = tmp_path / "one", tmp_path / "two", tmp_path / "micro"
    run_ranks(one_run, 1, tmp_path, data, one, 1, ())
    printed = run_ranks(one_run, 2, tmp_path, data, two, 2, ())
    run_ranks(one_run, 1, tmp_path, data, micro, 1, ("batch.micro_batch_size=8",))
    for other in (two, micro):
        for name in ("loss", "gradient_norm", "validation_loss"):
            a = [value for (value,) in metrics_of(one, name)]
            b = [value for (value,) in metrics_of(other, name)]
            assert len(a) == len(b) > 1
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-6)
    assert "step 8/8" in printed[0]
    assert f"tensorboard --logdir {tmp_path}" in printed[0]
    assert f"python launch/generate.py --run {two} --prompt" in printed[0]
    assert "sample after step 8" in printed[0]
    assert printed[1] == ""  # rank 0 alone speaks


@pytest.mark.heavy
def test_tensorboard_reads_what_metrics_jsonl_holds(data: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_ranks(one_run, 1, tmp_path, data, tmp_path / "run", 1, ())
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    tags = events.Tags()["scalars"]
    for kind, names in (
        ("train", ["loss", "learning_rate", "gradient_norm", "tokens_seen", "tokens_per_second"]),
        ("train", ["global_batch_tokens"]),
        ("train", ["step_seconds", "data_wait_seconds", "peak_memory_bytes", "skipped_updates"]),
        ("validation", ["loss", "perplexity", "seconds"]),
    ):
        for name in names:
            tag = f"{kind}/{name}"
            key = name if kind == "train" else f"validation_{name}"
            written = metrics_of(tmp_path / "run", "step", key)
            read = [(event.step, event.value) for event in events.Scalars(tag)]
            assert [step for step, _ in read] == [step for step, _ in written]
            torch.testing.assert_close([v for _, v in read], [float(v) for _, v in written])
            tags.remove(tag)
    assert tags == []  # nothing that DeepSpeed added by itself
    loss = dict(metrics_of(tmp_path / "run", "step", "validation_loss"))
    perplexity = dict(metrics_of(tmp_path / "run", "step", "validation_perplexity"))
    assert perplexity[8] == pytest.approx(torch.tensor(loss[8]).exp().item(), rel=1e-5)


def damage_and_resume(data: Path, run_dir: Path) -> dict[str, str]:
    """Three runs in one process: whole, newest checkpoint damaged, all damaged."""
    from gpt2_ds.checkpoint.restore import load_newest
    from gpt2_ds.train.run import train

    dataset, plan = small_corpus(data), small_plan(data, run_dir, max_steps=6)
    train(plan, dataset)
    optimizer = torch.optim.AdamW([torch.zeros(1)])
    unloadable = SimpleNamespace(
        load_checkpoint=lambda *args, **keys: (None, None),
        optimizer=optimizer,
        basic_optimizer=optimizer,
    )
    try:
        load_newest(
            plan, unloadable, data_fingerprint=dataset.fingerprint, probe_loss=lambda tokens: 0.0
        )
    except RunError as error:
        refused = str(error)
    newest = run_dir / "checkpoints/step_00000006/mp_rank_00_model_states.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    printed = io.StringIO()
    with redirect_stdout(printed), redirect_stderr(printed):
        train(small_plan(data, run_dir), dataset)
    for path in (run_dir / "checkpoints").glob("step_*/random_rank_00000.pt"):
        path.write_bytes(b"")
    try:
        train(small_plan(data, run_dir), dataset)
    except RunError as error:
        return {"printed": printed.getvalue(), "error": str(error), "refused": refused}
    return {}


@pytest.mark.heavy
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(
    data: Path, tmp_path: Path
) -> None:
    run_ranks(one_run, 1, tmp_path, data, tmp_path / "unbroken", 1, ())
    (found,) = run_ranks(damage_and_resume, 1, tmp_path, data, tmp_path / "run")
    assert "step_00000006/mp_rank_00_model_states.pt: not what was saved" in found["printed"]
    assert "resuming from step 3" in found["printed"]
    assert found["refused"] == (
        f"{tmp_path}/run/checkpoints/step_00000006: DeepSpeed could not load it. "
        "Restore a copy of it."
    )
    assert found["error"] == (
        f"{tmp_path}/run/checkpoints: all 2 checkpoints here are damaged. Restore a copy; to begin "
        "at step 0, use another --run-dir."
    )
    # Out of the way, so that no later pruning takes it for the newest; nothing is deleted.
    names = {path.name for path in (tmp_path / "run/checkpoints").glob("step_*")}
    assert names == {"step_00000006", "step_00000006.damaged", "step_00000008"}
    expected = metrics_of(tmp_path / "unbroken", "step", "loss")
    found_losses = metrics_of(tmp_path / "run", "step", "loss")  # stage 0; expected: stage 1
    torch.testing.assert_close(found_losses, expected, rtol=1e-6, atol=0)


def not_a_number(data: Path, run_dir: Path) -> str:
    from gpt2_ds.train.run import train

    plan = small_plan(data, run_dir, "optimizer.lr=1e30", "optimizer.gradient_clipping=0")
    try:
        train(plan, small_corpus(data))
    except RunError as error:
        return str(error)
    return "no error"


@pytest.mark.heavy
def test_a_loss_that_is_no_number_ends_the_run(data: Path, tmp_path: Path) -> None:
    (message,) = run_ranks(not_a_number, 1, tmp_path, data, tmp_path / "run")
    assert "these weights are lost, and are not saved" in message
    assert "The last checkpoint is untouched" in message


def damaged_shard(data: Path, run_dir: Path) -> str:
    from gpt2_ds.train.run import train

    try:
        train(small_plan(data, run_dir, world_size=2), small_corpus(data))
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.heavy
def test_a_flipped_bit_in_a_shard_is_named_on_every_rank(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    shard = data / "train/shard-00000.bin"
    content = bytearray(shard.read_bytes())
    content[5000] ^= 1
    shard.write_bytes(content)
    for message in run_ranks(damaged_shard, 2, tmp_path, data, tmp_path / "run"):
        assert f"{shard}: sha256" in message
    assert files_of(tmp_path / "run") == []


def another_dataset(data: Path, other: Path, run_dir: Path) -> str:
    from gpt2_ds.hosts.launcher import rank
    from gpt2_ds.train.run import train

    try:
        train(small_plan(data, run_dir, world_size=2), small_corpus((data, other)[rank()]))
    except UserError as error:
        return str(error)
    return "no error"


@pytest.mark.heavy
def test_ranks_that_see_different_datasets_do_not_train(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    prepare(
        Request(
            inputs=[Path(__file__)], out=other, tokenizer="bytes", validation=[data / "../x.txt"]
        )
    )
    for message in run_ranks(another_dataset, 2, tmp_path, data, other, tmp_path / "run"):
        assert "rank 1 sees other data there than rank 0. Copy one dataset" in message
    assert files_of(tmp_path / "run") == []


@pytest.mark.heavy
def test_what_a_run_leaves(data: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_ranks(one_run, 1, tmp_path, data, run_dir, 1, ())
    config = json.loads((run_dir / "deepspeed.json").read_text())
    assert config["train_batch_size"] == 8
    assert config["zero_optimization"]["stage"] == 1
    environment = json.loads((run_dir / "environment.json").read_text())
    assert environment["packages"]["torch"] == torch.__version__.split("+")[0] or (
        environment["packages"]["torch"] == torch.__version__
    )
    assert len(environment["hosts"]) == 1
    manifest = json.loads((run_dir / "checkpoints/step_00000008/manifest.json").read_text())
    assert (manifest["step"], manifest["samples_seen"], manifest["tokens_seen"]) == (8, 64, 2048)
    assert (run_dir / "checkpoints/step_00000008/tokenizer/ranks.tiktoken").exists()
    assert not list(run_dir.rglob("*.tmp"))
