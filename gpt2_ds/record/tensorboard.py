"""One curve in TensorBoard for a run of many jobs. DeepSpeed makes the writer."""

from __future__ import annotations

import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def end_curves_at(monitor: Any, step: int) -> None:
    """Have TensorBoard drop the points of steps that will be done again, whoever wrote them.

    What torch's SummaryWriter writes when it is made with `purge_step`; DeepSpeed makes it without.

    Args:
        monitor: DeepSpeed's; nothing is done where it writes no TensorBoard events.
        step: the last step that counts.
    """
    writer = getattr(getattr(monitor, "tb_monitor", None), "summary_writer", None)
    if writer is None:
        return
    from tensorboard.compat.proto.event_pb2 import (  # type: ignore[import-untyped]
        Event,
        SessionLog,
    )

    writer = monitor.tb_monitor.summary_writer = _last_in_order(writer)
    writer.file_writer.add_event(
        Event(step=step + 1, session_log=SessionLog(status=SessionLog.START))
    )
    writer.flush()


def _last_in_order(writer: Any) -> Any:
    """A writer whose file TensorBoard reads last: the given one, or another.

    The order is that of the times in the files' names; after a clock was set back, the files of
    the job before have the later ones, and would end the curve of this one.
    """
    names = (path.name for path in Path(writer.log_dir).glob("events.out.tfevents.*"))
    times = (int(found[0]) for name in names if (found := re.findall("[0-9]+", name)))
    newest = max(times, default=0)
    if newest <= time.time():
        return writer
    from tensorboard.summary.writer import event_file_writer  # type: ignore[import-untyped]
    from torch.utils.tensorboard import SummaryWriter

    writer.close()
    # The name begins with the time, and nothing else can be put there (tensorboard 2.21): a suffix
    # comes last, and a file that is written cannot be renamed, as each flush opens it by its name.
    event_file_writer.time = SimpleNamespace(time=lambda: newest + 1)
    try:
        return SummaryWriter(log_dir=writer.log_dir)
    finally:
        event_file_writer.time = time
