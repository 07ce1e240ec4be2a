"""How long it took from the command to the first step."""

from __future__ import annotations

import os

from gpt2_ds.hosts.process import Process, launchers


def start_up_words() -> str:
    """For now: after the first step. Its seconds from the command, and how many the launcher took.

    The command is `deepspeed` or torchrun where one of them started this process on this machine.
    """
    this = Process.find(os.getpid())
    assert this is not None
    own = this.age_seconds()
    above = launchers(Process.find(os.getppid()))
    if not above:
        return f"first step done {own:.1f} s after the command"
    whole = above[-1].age_seconds()
    launcher = f"{whole - own:.1f} s of it its launcher"
    return f"first step done {whole:.1f} s after the command, {launcher}"
