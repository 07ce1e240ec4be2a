"""Saving behind the steps: what reaches the disk, what does not, and what every rank then knows."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import complete_checkpoints, damaged_files
from tests.checkpoint.saved_files import contents
from tests.checkpoint.saving_scenarios import Found, one_rank, two_ranks
from tests.ranks import run_ranks
from tests.small_run import small_dataset

pytestmark = pytest.mark.heavy  # two sets of ranks, started once for all tests


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Found]:
    folder = tmp_path_factory.mktemp("alone")
    (found,) = run_ranks(one_rank, 1, folder, data, folder)
    return dict(found, folder={"path": folder})


@pytest.fixture(scope="module")
def both(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Found]]:
    folder = tmp_path_factory.mktemp("both")
    (folder / "tokenizer").mkdir()
    return run_ranks(two_ranks, 2, folder, data, folder)


def test_behind_and_at_once_give_the_same_files(
    alone: dict[str, Found], both: list[dict[str, Found]]
) -> None:
    for found, ranks in ((alone["both_ways"], 1), (both[0]["both_ways"], 2)):
        assert found["true"] == found["false"]
        names = set(found["true"])
        assert {f"random_rank_{i:05d}.pt" for i in range(ranks)} <= names
        assert {"mp_rank_00_model_states.pt", "tokenizer/words", "probe.npy"} <= names
        assert (found["true saved at once"], found["false saved at once"]) == (False, True)


def test_the_manifest_tells_all_of_it(alone: dict[str, Found]) -> None:
    run = alone["folder"]["path"] / "true"
    ((path, manifest),) = complete_checkpoints(run)
    assert (manifest.step, manifest.samples_seen, manifest.tokens_seen) == (3, 24, 24 * 32)
    assert (manifest.skipped_updates, manifest.skipped_samples) == (2, [(3, 5)])
    assert (manifest.world_size, manifest.zero_stage, manifest.probe_loss) == (1, 1, 1.0)
    assert damaged_files(path, manifest) == []
    on_disk = set(contents(path)) - {"manifest.json"}
    assert set(manifest.files) == on_disk  # what is not in it would not be checked


def test_training_goes_on_while_it_is_written(alone: dict[str, Found]) -> None:
    found = alone["while_it_writes"]
    assert not found["written before"]
    assert not found["written meanwhile"]
    assert not found["complete meanwhile"]
    assert found["waited"]  # in the second begin
    assert found["complete then"]
    assert not found["written after"]
    assert found["last_saved"] == 2
    assert found["threads"] == {"checkpoint-writer"}


def test_what_changes_after_begin_does_not_reach_the_file(alone: dict[str, Found]) -> None:
    found = alone["while_it_writes"]
    assert found["first is of before"]
    assert found["second is of after"]
    assert found["recipe is what trained"]


@pytest.mark.parametrize("behind", ["true", "false"])
@pytest.mark.parametrize("name", ["full", "odd"])
def test_a_rank_that_cannot_write_is_named_on_every_rank(
    name: str, behind: str, both: list[dict[str, Found]]
) -> None:
    (message, untouched, names, last), other = (
        of_rank["failures"][f"{name} {behind}"] for of_rank in both
    )
    assert other[0] == message
    if name == "full":
        assert message == (
            "rank 1: runs/x/step_2.tmp/a.pt: No space left on device. Make room on this disk, then "
            "give the same command again."
        )
    else:
        begin = f"rank 1: /failing_odd_{behind}/checkpoints/step_00000002.tmp: could not be written"
        assert message.startswith(f"{begin}: unexpected pos 64 vs 0 (")
        assert " bytes are free there). The checkpoints before it are untouched." in message
        assert "\n" not in message
    assert untouched
    assert names == ["step_00000001", "step_00000002.tmp"]
    assert last == 1


def test_without_memory_for_a_copy_it_is_written_at_once(alone: dict[str, Found]) -> None:
    found = alone["little_memory"]
    assert found["enough"] == []
    assert "mp_rank_00_model_states.pt" in found["little"]
    assert any(name.endswith("optim_states.pt") for name in found["little"])
    assert found["same"]


def test_lost_weights_are_not_saved(alone: dict[str, Found]) -> None:
    found = alone["lost_weights"]
    assert found["message"] == (
        "/lost: after step 2 the loss of the probe batch is nan: these weights are lost, and are "
        "not saved. The last checkpoint is untouched; lower optimizer.lr, or look at the samples "
        "of the last steps."
    )
    assert not found["pending"]
    assert found["before"].items() <= found["after"].items()
    assert not any("step_00000002" in name for name in found["after"])


def test_what_the_rules_keep(alone: dict[str, Found]) -> None:
    found = alone["kept"]
    assert found["last"] == [10, 9, 8]
    assert found["every"] == [10, 9, 8, 4]
    assert found["best"] == [10, 4]
    assert [found[f"{name} latest"] for name in ("last", "every", "best")] == [True] * 3


def test_all_is_on_the_disk_before_it_has_its_name(alone: dict[str, Found]) -> None:
    """Files, the folders that hold their names, and the curve up to here; then the name itself."""
    seen, names = alone["synced"]["seen"], alone["synced"]["names"]
    named = seen.index("-> checkpoints/step_00000001")
    partial = "checkpoints/step_00000001.tmp"
    before, after = seen[:named], seen[named + 1 :]
    manifest = before.index(f"-> {partial}/manifest.json")
    wanted = {f"{partial}/{name}" for name in names} - {f"{partial}/manifest.json"}
    assert {"tokenizer", "tokenizer/words", "probe.npy"} <= set(names)
    assert "offloaded_tensors/rank00/0_1.tensor.swp" in names
    assert wanted | {partial, ".", "metrics.jsonl"} <= set(before[:manifest])
    assert before[manifest:] == [f"-> {partial}/manifest.json", partial]
    assert after[0] == "checkpoints"
    assert "-> checkpoints/latest" in after


def test_latest_is_written_after_all_else(alone: dict[str, Found]) -> None:
    assert "/latest/checkpoints/latest.tmp: Is a directory" in alone["latest"]["message"]
    assert alone["latest"]["steps"] == [1]
