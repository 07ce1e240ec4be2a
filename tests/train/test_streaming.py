"""Training from an address: the same losses as from the disk, stopped and resumed too."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.preflight.inputs import open_inputs
from tests.conftest import REPOSITORY
from tests.files.fault_server import serving
from tests.ranks import run_ranks
from tests.small_run import metrics_of, small_plan

LANES = "data.lanes=3"


def run_to(data: str, folder: Path, max_steps: int | None) -> None:
    from gpt2_ds.train.run import train

    cache = [f"data.cache_path={folder / 'cache'}", "data.cache_gigabytes=0.002"]
    plan = small_plan(
        data, folder / "run", LANES, *cache, template="zero1", world_size=2, max_steps=max_steps
    )
    train(plan, open_inputs(plan))


@pytest.mark.heavy
def test_two_ranks_train_on_streamed_shards_as_on_local_ones(tmp_path: Path) -> None:
    files = sorted((REPOSITORY / "gpt2_ds").rglob("*.py"))
    local = tmp_path / "data"
    prepare(
        Request(
            inputs=files, out=local, tokenizer="bytes", validation_fraction=0.1, shard_tokens=20_000
        )
    )
    content = {
        f"/{path.relative_to(local).as_posix()}": path.read_bytes()
        for path in local.rglob("*")
        if path.is_file()
    }
    run_ranks(run_to, 2, tmp_path, str(local), tmp_path / "local", None)
    with serving(content, latency_seconds=0.002) as server:
        server.fail("/train/shard-00003.bin", "503", 1)
        server.fail("/train/shard-00005.bin", "flip", 1)
        run_ranks(run_to, 2, tmp_path, server.address, tmp_path / "streamed", 4)
        asked = dict(server.requests)
        shutil.rmtree(tmp_path / "streamed/cache")  # as on another machine
        run_ranks(run_to, 2, tmp_path, server.address, tmp_path / "streamed", None)
    names = ("step", "loss", "gradient_norm")
    assert metrics_of(tmp_path / "streamed/run", *names) == metrics_of(
        tmp_path / "local/run", *names
    )
    validation = ("step", "validation_loss")
    assert metrics_of(tmp_path / "streamed/run", *validation) == metrics_of(
        tmp_path / "local/run", *validation
    )
    # Once a machine, whatever the number of its ranks; the two that went wrong once more.
    shards = {name: n for name, n in asked.items() if name.startswith("/train/")}
    for name in ("/train/shard-00003.bin", "/train/shard-00005.bin"):
        assert shards.pop(name, 1) <= 2
    assert len(shards) > 8
    assert set(shards.values()) == {1}
