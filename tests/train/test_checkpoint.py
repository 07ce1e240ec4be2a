"""Saving behind the steps: what reaches the disk, what does not, and what every rank then knows."""

from __future__ import annotations

import errno
import hashlib
import io
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gpt2_ds.config.errors import RunError
from gpt2_ds.train import checkpoint_folder
from gpt2_ds.train.checkpoint_folder import put_aside, remove_partial
from gpt2_ds.train.checkpoint_manifest import complete_checkpoints, damaged_files
from tests.ranks import run_ranks
from tests.small_run import small_dataset, small_plan
from tests.train.saved_files import contents

pytestmark = pytest.mark.heavy  # two sets of ranks, started once for all tests

Found = dict[str, Any]
WEIGHT = "transformer.wte.weight"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))


class Bench:
    """An engine on this rank, and `Checkpoints` of it in a folder of its own."""

    def __init__(self, data: Path, folder: Path, world_size: int) -> None:
        from gpt2_ds.config.derive import model_fields
        from gpt2_ds.model import GPT2Config
        from gpt2_ds.parallel.engine import build_engine

        self.data, self.folder, self.world_size = data, folder, world_size
        self.tokenizer = folder / "tokenizer"
        self.tokenizer.mkdir(exist_ok=True)
        (self.tokenizer / "words").write_text("a b c")
        plan = self.plan("engine")
        config = plan.deepspeed(cpu_adam=False) | {"tensorboard": {"enabled": False}}
        model = GPT2Config(**model_fields(plan.recipe, plan.derived.vocab_size))
        with redirect_stdout(io.StringIO()):
            self.engine = build_engine(model, config, seed=1)

    def plan(self, name: str, *settings: str) -> Any:
        return small_plan(
            self.data, self.folder / name, *settings, template="zero1", world_size=self.world_size
        )

    def checkpoints(self, name: str, *settings: str, probe_loss: float = 1.0) -> Any:
        from gpt2_ds.parallel.agreement import by_rank_0
        from gpt2_ds.train.checkpoint import Checkpoints, RunFacts
        from gpt2_ds.train.run_directory import write_run_files

        plan = self.plan(name, *settings)
        by_rank_0(lambda: write_run_files(plan, plan.deepspeed(cpu_adam=False), []))
        probe = np.zeros((1, 3), dtype=np.int64)
        facts = RunFacts("d", self.tokenizer, [(3, 5)], probe, lambda: probe_loss)
        return Checkpoints(plan, self.engine, facts)

    def weight(self) -> torch.Tensor:
        return self.engine.module.get_parameter(WEIGHT).detach()


def saved_weight(run: Path, step: int) -> torch.Tensor:
    path = run / f"checkpoints/step_{step:08d}/mp_rank_00_model_states.pt"
    found = torch.load(path, weights_only=False)["module"][WEIGHT]
    assert isinstance(found, torch.Tensor)
    return found


@contextmanager
def saving(instead: Callable[..., None]) -> Iterator[None]:
    """What `torch.save` does meanwhile: `instead`, which gets the true one, state and target."""
    true_one = torch.save
    torch.save = partial(instead, true_one)
    try:
        yield
    finally:
        torch.save = true_one


def name_of(target: Any) -> str:
    """The file that is meant by a path, or by an open file."""
    return Path(target if isinstance(target, str | Path) else target.name).name


def progress(step: int) -> Any:
    from gpt2_ds.train.checkpoint import Progress

    return Progress(step, 8 * step, skipped_updates=2)


def raised(work: Callable[[], Any]) -> str:
    """The message of the RunError that `work` ends with."""
    try:
        work()
    except RunError as error:
        return str(error)
    return "no error"


def hashes(run: Path, step: int) -> dict[str, str]:
    """Of each file of a checkpoint, but for what names the run directory or the time.

    Of a file of torch's: of all that it holds. Its bytes differ with how much of a storage a tensor
    was cut out of.
    """
    folder, found = run / f"checkpoints/step_{step:08d}", {}
    for name, content in contents(folder).items():
        if name in ("manifest.json", "recipe.yaml", "deepspeed.json"):
            continue
        if name.endswith(".pt"):
            content = repr(plain(torch.load(folder / name, weights_only=False))).encode()
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def plain(value: Any) -> Any:
    """A saved state in words: tensors with number format, shape and every byte."""
    if isinstance(value, torch.Tensor):  # a parameter and its copy are alike
        content = value.detach().reshape(-1).view(torch.uint8).numpy().tobytes()
        return value.dtype, tuple(value.shape), hashlib.sha256(content).hexdigest()
    if isinstance(value, dict):
        return type(value).__name__, [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value).__name__, [plain(item) for item in value]
    if hasattr(value, "__dict__") and not isinstance(value, type):
        return type(value).__name__, plain(vars(value))
    return repr(value)


def both_ways(bench: Bench) -> Found:
    """The same state saved behind and at once."""
    torch.manual_seed(5)
    found = {}
    for behind in ("true", "false"):
        saver = bench.checkpoints(behind, f"checkpoint.write_behind={behind}")
        saver.begin(progress(3))
        found[f"{behind} saved at once"] = saver.last_saved == 3
        saver.finish()
        saver.finish()  # nothing is left to do
        saver.close()
        found[behind] = hashes(bench.folder / behind, 3)
    return found


def while_it_writes(bench: Bench) -> Found:
    """The writer of step 1 is held; the weights change; step 2 begins."""
    before, run = bench.weight().clone(), bench.folder / "held"
    may_write, threads = threading.Event(), set()

    def held(save: Any, state: Any, target: Any) -> None:
        threads.add(threading.current_thread().name)
        assert may_write.wait(60)
        save(state, target)

    saver = bench.checkpoints("held")
    with saving(held):
        found: Found = {"written before": saver.written}
        saver.begin(progress(1))
        found["written meanwhile"] = saver.written
        with torch.no_grad():
            bench.weight().add_(1.0)
        found["complete meanwhile"] = (run / "checkpoints/step_00000001").exists()
        threading.Timer(0.5, may_write.set).start()
        saver.begin(progress(2))
        found["waited"] = may_write.is_set()
        found["complete then"] = (run / "checkpoints/step_00000001/manifest.json").exists()
        saver.finish()
    found["written after"], found["last_saved"] = saver.written, saver.last_saved
    saver.close()
    found["threads"] = {name.rpartition("_")[0] for name in threads}
    with torch.no_grad():
        bench.weight().copy_(before)
    found["first is of before"] = torch.equal(saved_weight(run, 1), before)
    found["second is of after"] = torch.equal(saved_weight(run, 2), before + 1.0)
    return found


def failures(bench: Bench) -> Found:
    """The last rank cannot write, once for each reason, behind and at once; all ranks hear it."""
    from gpt2_ds.config.launcher import rank

    found: Found = {}
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x/step_2.tmp/a.pt")
    reasons = {"full": full, "odd": RuntimeError("unexpected pos 64 vs 0\nand so on")}
    for behind in ("true", "false"):
        for name, reason in reasons.items():
            run = bench.folder / f"failing_{name}_{behind}"
            saver = bench.checkpoints(run.name, f"checkpoint.write_behind={behind}")
            saver.begin(progress(1))
            saver.finish()
            torch.distributed.barrier()
            before = contents(run / "checkpoints")

            def failing(save: Any, state: Any, target: Any, reason: Exception = reason) -> None:
                if rank() == bench.world_size - 1:
                    raise reason
                save(state, target)

            with saving(failing):
                message = raised(lambda: (saver.begin(progress(2)), saver.finish()))  # noqa: B023
            saver.close()
            after = contents(run / "checkpoints")
            found[f"{name} {behind}"] = (
                message.replace(str(bench.folder), ""),
                before.items() <= after.items(),
                sorted(path.name for path in (run / "checkpoints").glob("step_*")),
                saver.last_saved,
            )
    return found


def little_memory(bench: Bench) -> Found:
    """There is no room for a copy: what is written by which thread, when `begin` returns."""
    from gpt2_ds.parallel import captured_state

    found: Found = {}
    plain_memory = captured_state.free_memory
    for name, free in (("little", lambda: 1000), ("enough", plain_memory)):
        by_thread: dict[str, list[str]] = {}

        def watched(save: Any, state: Any, target: Any, to: Any = by_thread) -> None:
            to.setdefault(threading.current_thread().name, []).append(name_of(target))
            save(state, target)

        captured_state.free_memory = free
        saver = bench.checkpoints(f"memory_{name}")
        try:
            with saving(watched):
                saver.begin(progress(1))
                saver.finish()
        finally:
            captured_state.free_memory = plain_memory
        saver.close()
        found[name] = sorted(by_thread.get("MainThread", []))
    with_room, without = bench.folder / "memory_enough", bench.folder / "memory_little"
    found["same"] = hashes(with_room, 1) == hashes(without, 1)
    return found


def lost_weights(bench: Bench) -> Found:
    """The loss of the probe batch is no number."""
    run = bench.folder / "lost"
    whole = bench.checkpoints("lost")
    whole.begin(progress(1))
    whole.finish()
    whole.close()
    found: Found = {"before": contents(run / "checkpoints")}
    saver = bench.checkpoints("lost", probe_loss=math.nan)
    found["message"] = raised(lambda: saver.begin(progress(2))).replace(str(bench.folder), "")
    found["pending"] = saver.written
    saver.finish()
    found["after"] = contents(run / "checkpoints")
    return found


def kept(bench: Bench) -> Found:
    """Ten saves under each rule; step 4 has the best validation loss."""
    rules = {
        "last": ("checkpoint.keep_last=3", "checkpoint.keep_best=false"),
        "every": ("checkpoint.keep_every_steps=4", "checkpoint.keep_best=false"),
        "best": ("checkpoint.keep_last=1", "checkpoint.keep_best=true"),
    }
    found: Found = {}
    for name, rule in rules.items():
        saver = bench.checkpoints(f"kept_{name}", *rule)
        run = bench.folder / f"kept_{name}"
        lines = (f'{{"step": {s}, "validation_loss": {abs(s - 4) + 1}}}\n' for s in range(1, 11))
        (run / "metrics.jsonl").write_text("".join(lines))
        latest = []
        for step in range(1, 11):
            saver.begin(progress(step))
            saver.finish()
            latest.append((run / "checkpoints/latest").read_text())
        found[name] = [manifest.step for _, manifest in complete_checkpoints(run)]
        found[f"{name} latest"] = latest == [f"step_{step:08d}" for step in range(1, 11)]
        saver.close()
    return found


def brought_to_the_disk(bench: Bench) -> Found:
    """What is synced, in order, by the name that it has then; and what takes its name, when."""
    from gpt2_ds.train import checkpoint

    run, seen = bench.folder / "synced", []
    catch_state = checkpoint.catch_state
    plain = {"fsync": os.fsync, "rename": os.rename, "replace": os.replace}

    def fsync(file: int) -> None:
        plain["fsync"](file)
        path = Path(f"/proc/self/fd/{file}").readlink()
        if path.is_relative_to(run):
            seen.append(str(path.relative_to(run)))

    def renamed(name: str) -> Any:
        def act(path: Any, target: Any) -> None:
            plain[name](path, target)
            seen.append(f"-> {Path(target).relative_to(run)}")

        return act

    def with_rows(engine: Any, folder: Path, keep: Any) -> None:
        """As with the optimizer on NVMe."""
        catch_state(engine, folder, keep)
        (folder / "offloaded_tensors/rank00").mkdir(parents=True)
        (folder / "offloaded_tensors/rank00/0_1.tensor.swp").write_bytes(b"row")

    saver = bench.checkpoints("synced")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    os.fsync, os.rename, os.replace = fsync, renamed("rename"), renamed("replace")
    checkpoint.catch_state = with_rows
    try:
        saver.begin(progress(1))
        saver.finish()
    finally:
        os.fsync, os.rename, os.replace = plain["fsync"], plain["rename"], plain["replace"]
        checkpoint.catch_state = catch_state
    saver.close()
    on_disk = (run / "checkpoints/step_00000001").rglob("*")
    names = [str(path.relative_to(run / "checkpoints/step_00000001")) for path in on_disk]
    return {"seen": seen, "names": names}


def latest_that_cannot_be_written(bench: Bench) -> Found:
    """`latest` is the last thing: where it fails, the checkpoint is there already."""
    run = bench.folder / "latest"
    (run / "checkpoints/latest.tmp").mkdir(parents=True, exist_ok=True)
    saver = bench.checkpoints("latest")
    saver.begin(progress(1))
    message = raised(saver.finish).replace(str(bench.folder), "")
    return {"message": message, "steps": [m.step for _, m in complete_checkpoints(run)]}


def one_rank(data: Path, folder: Path) -> dict[str, Found]:
    bench = Bench(data, folder, 1)
    scenarios = (both_ways, while_it_writes, little_memory, lost_weights, kept)
    found = {scenario.__name__: scenario(bench) for scenario in scenarios}
    found["synced"] = brought_to_the_disk(bench)
    return found | {"latest": latest_that_cannot_be_written(bench)}


def two_ranks(data: Path, folder: Path) -> dict[str, Found]:
    bench = Bench(data, folder, 2)
    return {"failures": failures(bench), "both_ways": both_ways(bench)}


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


@pytest.mark.parametrize("behind", ["true", "false"])
@pytest.mark.parametrize("name", ["full", "odd"])
def test_a_rank_that_cannot_write_is_named_on_every_rank(
    name: str, behind: str, both: list[dict[str, Found]]
) -> None:
    (message, untouched, names, last), other = (
        each["failures"][f"{name} {behind}"] for each in both
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


def test_what_cannot_be_deleted_is_in_the_way_only_of_its_own_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On NFS a folder with a file that someone has open stays."""
    busy, other = tmp_path / "step_00000003.tmp", tmp_path / "step_00000006.tmp"
    for path in (busy, other):
        path.mkdir()
    plain = checkpoint_folder.delete

    def delete(path: Path) -> None:
        if path == busy:
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path / ".nfs01"))
        plain(path)

    monkeypatch.setattr(checkpoint_folder, "delete", delete)
    remove_partial(tmp_path, needed=other)
    assert list(tmp_path.iterdir()) == [busy]
    assert capsys.readouterr().out == (
        f"warning: {busy}: cannot be deleted (Directory not empty); it is left there\n"
    )
    with pytest.raises(OSError, match="Directory not empty"):
        remove_partial(tmp_path, needed=busy)


def test_damaged_checkpoints_are_put_aside_and_kept(tmp_path: Path) -> None:
    folder = tmp_path / "step_00000003"
    put_aside(folder)  # is not there
    for number in range(3):
        folder.mkdir()
        (folder / "number").write_text(str(number))
        put_aside(folder)
    assert {path.parent.name: path.read_text() for path in tmp_path.glob("*/number")} == {
        "step_00000003.damaged": "0",
        "step_00000003.damaged2": "1",
        "step_00000003.damaged3": "2",
    }
    folder.symlink_to(tmp_path / "nowhere")
    put_aside(folder)
    assert (tmp_path / "step_00000003.damaged4").readlink() == tmp_path / "nowhere"
    assert not folder.is_symlink()
