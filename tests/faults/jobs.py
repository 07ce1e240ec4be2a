"""Real jobs for faults: started as a user starts them, watched and hurt from outside."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from gpt2_ds.record.ledger import read_ledger
from tests.conftest import REPOSITORY
from tests.ranks import free_port
from tests.small_run import SETTINGS, metrics_of

TRAIN = REPOSITORY / "launch/train.py"


class Job:
    """A training job of some ranks, and what it printed.

    Args:
        run_dir: where it writes; its output goes to a file beside it.
        data: a dataset of bytes.
        settings: recipe overrides after `tests.small_run.SETTINGS`.
        words: further words of launch/train.py.
        ranks: processes.
        template: of ds_configs.
        deepspeed: through the `deepspeed` command; otherwise the ranks alone, which starts faster.
        environment: added to this process's own.
        port: of the rendezvous; None: a free one.
    """

    def __init__(
        self,
        run_dir: Path,
        data: Path,
        *settings: str,
        words: tuple[str, ...] = (),
        ranks: int = 2,
        template: str = "zero1",
        deepspeed: bool = False,
        environment: dict[str, str] | None = None,
        port: int | None = None,
    ) -> None:
        self.run_dir, self._words = run_dir, words
        sets = [
            word
            for setting in (*SETTINGS, f"data.path={data}", *settings)
            for word in ("--set", setting)
        ]
        command = [
            str(TRAIN),
            *("--recipe", str(REPOSITORY / "recipes/quickstart.yaml")),
            *("--template", str(REPOSITORY / f"ds_configs/{template}.json")),
            *("--run-dir", str(run_dir)),
            *sets,
            *words,
        ]
        self.output = run_dir.with_name(f"{run_dir.name}.log")
        base = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            **(environment or {}),
        }
        master_port = str(free_port() if port is None else port)
        with self.output.open("ab") as output:
            self._begin = output.tell()

            def start(words: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
                return subprocess.Popen(
                    words,
                    cwd=REPOSITORY,
                    env=environment,
                    stdout=output,
                    stderr=output,
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                    # Whoever runs the tests in the background may ignore it, and children do too.
                    preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
                )

            if deepspeed:
                launcher = [str(Path(sys.executable).with_name("deepspeed"))]
                count = ["--num_gpus", str(ranks), "--master_port", master_port]
                self.processes = [start([*launcher, *count, *command], base)]
            else:
                self.processes = [
                    start(
                        [sys.executable, "-u", *command],
                        base
                        | {
                            "RANK": str(rank),
                            "LOCAL_RANK": str(rank),
                            "WORLD_SIZE": str(ranks),
                            "LOCAL_SIZE": str(ranks),
                            "MASTER_ADDR": "127.0.0.1",
                            "MASTER_PORT": master_port,
                        },
                    )
                    for rank in range(ranks)
                ]

    def text(self) -> str:
        """What this job printed so far."""
        return self.output.read_bytes()[self._begin :].decode(errors="replace")

    def running(self) -> bool:
        return any(process.poll() is None for process in self.processes)

    def wait(self, seconds: float = 120.0) -> list[int]:
        """The exit codes of what was started."""
        end = time.monotonic() + seconds
        return [process.wait(max(0.1, end - time.monotonic())) for process in self.processes]

    def until(self, condition: Callable[[], Any], seconds: float = 90.0) -> None:
        """Wait for something; fails when the job ends before, or in too long a time."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.running(), self.text()
            assert time.monotonic() < end, self.text()
            time.sleep(0.02)

    def until_step(self, step: int, seconds: float = 90.0) -> None:
        """Wait until the metrics hold a step."""
        self.until(lambda: newest_step(self.run_dir) >= step, seconds)

    def rank_processes(self) -> list[int]:
        """Process ids of the ranks that train, in order of rank."""
        return self._training_processes("--restarts" in self._words)

    def supervisors(self) -> list[int]:
        """Process ids of the ranks' supervisors, in order of rank."""
        return self._training_processes(False)

    def _training_processes(self, supervised: bool) -> list[int]:
        found = {}
        for pid in self.left():
            environment = environment_of(pid)
            trains = ("GPT2_DS_SUPERVISED" in environment) == supervised
            if trains and "RANK" in environment and str(TRAIN) in words_of(pid)[:3]:
                found[int(environment["RANK"])] = pid
        return [found[rank] for rank in sorted(found)]

    def left(self) -> list[int]:
        """Process ids of all that lives of this job."""
        return family([process.pid for process in self.processes])

    def launcher_process(self) -> int:
        """Process id of `deepspeed.launcher.launch`."""
        (pid,) = [pid for pid in self.left() if "deepspeed.launcher.launch" in words_of(pid)]
        return pid

    def kill(self) -> None:
        """End everything at once, as a power cut would."""
        for pid in self.left():
            with_no_process(partial(os.kill, pid, signal.SIGKILL))
        for process in self.processes:
            process.wait()


@contextmanager
def job(*args: Any, **named: Any) -> Iterator[Job]:
    """A job that is gone when the test ends, whatever happens."""
    started = Job(*args, **named)
    try:
        yield started
    finally:
        started.kill()


def gone(started: Job, seconds: float = 30.0) -> None:
    """Wait until no process of a job is left."""
    end = time.monotonic() + seconds
    while left := started.left():
        assert time.monotonic() < end, (left, started.text())
        time.sleep(0.05)


def newest_step(run_dir: Path) -> int:
    """The last step in the metrics; 0 when there is none."""
    if not (run_dir / "metrics.jsonl").exists():
        return 0
    try:
        return max((step for step, _ in metrics_of(run_dir, "step", "loss")), default=0)
    except ValueError:  # a line that is being written
        return 0


def words_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def environment_of(pid: int) -> dict[str, str]:
    try:
        pairs = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def family(roots: list[int]) -> list[int]:
    """Processes with all that they started, of the sessions that they lead: orphans too."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) in roots and fields[0] != "Z":
            found.append(int(folder.name))
    return found


def with_no_process(act: Callable[[], None]) -> None:
    """Do something to a process that may be gone."""
    with suppress(ProcessLookupError):
        act()


def length(steps: int) -> tuple[str, ...]:
    """Settings of a run of so many steps."""
    return (
        f"schedule.total_tokens={steps * 256}",
        f"schedule.decay_tokens={steps * 256}",
        "evaluation.interval_steps=7",
    )


def events_of(run_dir: Path, event: str) -> list[dict[str, Any]]:
    """The lines of a run's ledger about one kind of event."""
    return [line for line in read_ledger(run_dir / "ledger.jsonl") if line["event"] == event]


def losses_of(run_dir: Path) -> list[tuple[Any, ...]]:
    """Every number of a run that must not hang on how often it was broken."""
    trained = metrics_of(run_dir, "step", "loss", "learning_rate", "gradient_norm", "tokens_seen")
    validated = metrics_of(run_dir, "step", "validation_loss")
    return [*trained, *validated]


def curve_of(run_dir: Path, tag: str) -> dict[int, float]:
    """The points that TensorBoard shows of a run, by step; fails where a step has two."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (folder,) = {path.parent for path in run_dir.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    points = [(event.step, event.value) for event in events.Scalars(tag)]
    assert len(points) == len(dict(points)), points
    return dict(points)
