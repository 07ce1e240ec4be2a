"""What a person sees of a run on the terminal."""

from __future__ import annotations

import threading

from gpt2_ds.config.errors import warn
from gpt2_ds.files.trouble import FILE_TROUBLES, file_trouble
from gpt2_ds.hosts.launcher import rank


def say(text: str) -> None:
    """Print on rank 0."""
    if rank() == 0:
        print(text, flush=True)


def warn_on_rank_0(text: str) -> None:
    """Warn of what every rank has found."""
    if rank() == 0:
        warn(text)


def say_file_trouble(args: threading.ExceptHookArgs) -> None:
    """What a thread of a library could not write: TensorBoard's, when the disk is full."""
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in FILE_TROUBLES:
        warn(file_trouble(args.exc_value))
    else:
        threading.__excepthook__(args)
