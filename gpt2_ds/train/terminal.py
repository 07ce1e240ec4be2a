"""What a person sees while a run goes on."""

from __future__ import annotations

from gpt2_ds.config.launcher import rank


def say(text: str) -> None:
    """Print on rank 0."""
    if rank() == 0:
        print(text, flush=True)
