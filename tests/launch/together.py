"""Several commands at once, as they are given on the nodes of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from tests.conftest import REPOSITORY
from tests.faults.jobs import family, with_no_process

Started = list[subprocess.Popen[bytes]]


def run_together(
    scripts: list[str],
    *,
    number: str = "NODE",
    meanwhile: Callable[[Started], None] = lambda started: None,
    seconds: float = 240,
) -> list[tuple[int, str]]:
    """Exit code and output of each script of bash, run in the repository at the same time.

    Nothing that they started is left.

    Args:
        scripts: one for each node.
        number: the variable that holds a node's number.
        meanwhile: called with the processes, once all have started.
        seconds: for each to end.
    """
    base = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for _ in scripts]
        started = [
            subprocess.Popen(
                ["bash", "-euc", script],
                cwd=REPOSITORY,
                env=base | {number: str(node)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            for node, (script, output) in enumerate(zip(scripts, outputs, strict=True))
        ]
        try:
            meanwhile(started)
            codes = [one.wait(seconds) for one in started]
        finally:
            for pid in family([one.pid for one in started]):
                with_no_process(partial(os.kill, pid, signal.SIGKILL))
            for one in started:
                one.wait()
            texts = []
            for output in outputs:
                output.seek(0)
                texts.append(output.read().decode(errors="replace"))
    return list(zip(codes, texts, strict=True))
