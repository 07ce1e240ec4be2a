"""A small engine that saves in every way; what was seen comes back to the tests from each rank."""

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
import torch

from gpt2_ds.checkpoint.manifest import complete_checkpoints
from gpt2_ds.config.errors import RunError
from gpt2_ds.config.recipe_file import load_stored
from tests.checkpoint.saved_files import contents
from tests.small_run import small_plan

Found = dict[str, Any]
WEIGHT = "transformer.wte.weight"


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
        from gpt2_ds.checkpoint.checkpoint import Checkpoints, RunFacts
        from gpt2_ds.parallel.agreement import by_rank_0
        from gpt2_ds.record.run_directory import write_run_files

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
    from gpt2_ds.checkpoint.checkpoint import Progress

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
    (run / "recipe.yaml").write_text("changed by hand while it trains")
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
    stored = load_stored(run / "checkpoints/step_00000001/recipe.yaml")
    found["recipe is what trained"] = stored.recipe == bench.plan("held").recipe
    return found


def failures(bench: Bench) -> Found:
    """The last rank cannot write, once for each reason, behind and at once; all ranks hear it."""
    from gpt2_ds.hosts.launcher import rank

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
    from gpt2_ds.parallel.states import captured_state

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
    """The loss of the probe batch is not finite."""
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
    from gpt2_ds.checkpoint import checkpoint

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
