"""Adam's state on an NVMe disk: such a run resumes with that state on the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.config.errors import UserError
from tests.conftest import REPOSITORY
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_corpus, small_dataset, small_plan


def train_to(step: int, template: str | Path, run: Path, data: Path) -> str:
    from gpt2_ds.train.run import train

    wide = "model.n_embd=256"  # nothing below 1 MiB goes to the disk
    plan = small_plan(data, run, wide, template=template, world_size=2, max_steps=step)
    try:
        train(plan, small_corpus(data))
    except UserError as error:
        return str(error)
    return ""


def in_turn(nvme: Path, folder: Path, data: Path) -> list[str]:
    stopped, whole = folder / "stopped", folder / "whole"
    return [
        train_to(3, nvme, stopped, data),
        train_to(5, nvme, stopped, data),
        train_to(5, "zero3_offload", stopped, data),
        train_to(5, "zero3_offload", whole, data),
    ]


@pytest.mark.heavy
@pytest.mark.usefixtures("async_io")
def test_it_goes_on_on_the_host_and_nowhere_else(tmp_path: Path) -> None:
    from gpt2_ds.parallel.states.parameter_states import load_fp32_weights

    data, disk, nvme = small_dataset(tmp_path), tmp_path / "disk", tmp_path / "nvme.json"
    disk.mkdir()
    text = (REPOSITORY / "ds_configs/zero3_nvme.json").read_text()
    text = text.replace('threshold": 100000,', 'threshold": 1000,')  # so that matrices are cut
    nvme.write_text(text.replace("/local_nvme", str(disk)))
    first, refused, *others = run_ranks(in_turn, 2, tmp_path, nvme, tmp_path, data)[0]
    assert [first, *others] == ["", "", ""]
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    assert refused == (
        f"{nvme}: zero_optimization.offload_optimizer.device: is nvme, and {stopped} holds "
        "checkpoints, from which DeepSpeed 0.19.8 then loads neither Adam's step counters nor "
        "parts below 1 MiB. Set it to cpu, as ds_configs/zero3_offload.json does, to resume "
        "from them; or begin a new run with --run-dir runs/NAME."
    )
    losses = [metrics_of(run, "step", "loss") for run in (stopped, whole)]
    assert [step for step, _ in losses[0]] == [1, 2, 3, 4, 5]
    assert losses[0] == losses[1]  # to the last bit
    checkpoint = stopped / "checkpoints/step_00000003"
    swapped = {path.name for path in checkpoint.rglob("*.swp")}
    assert swapped == {"0_24.tensor.swp", "exp_avg-0_24.tensor.swp", "exp_avg_sq-0_24.tensor.swp"}
    assert load_fp32_weights(checkpoint)["transformer.wte.weight"].shape == (320, 256)


def test_a_missing_row_is_named(tmp_path: Path) -> None:
    import torch

    from gpt2_ds.config.errors import RunError
    from gpt2_ds.parallel.states.parameter_layouts import CutParameters

    empty = {"fp32_flat_groups": [torch.zeros(0)]}
    layout = CutParameters([{"b": torch.Size([3])}], [empty, empty], ["a", "b"], tmp_path)
    with pytest.raises(RunError) as caught:
        list(layout.pieces("b", "weight"))
    assert str(caught.value) == (
        f"{tmp_path}/rank00/1_1.tensor.swp: not there. Restore it from a copy, or remove this "
        "checkpoint to resume from the one before."
    )
    for rank in (0, 1):
        (tmp_path / f"rank{rank:02d}").mkdir()
        row = torch.tensor([7.0 + rank, 8.0, 0.0, 0.0])  # padded to what a disk reads at a time
        row.numpy().tofile(tmp_path / f"rank{rank:02d}/1_1.tensor.swp")
    assert torch.cat(list(layout.pieces("b", "weight"))).tolist() == [7.0, 8.0, 8.0]
