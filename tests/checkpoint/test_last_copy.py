"""A run that is done but for the copy of its last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from gpt2_ds.checkpoint.manifest import MANIFEST, step_name
from gpt2_ds.config.errors import EXIT_DONE, EXIT_PREEMPTED
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_dataset, small_plan

LAST = step_name(8)


def stopped_and_given_again(data: Path, folder: Path) -> list[tuple[int, bool]]:
    """A signal while the last copy is sent; then the same command. Codes; is the copy there?"""
    from gpt2_ds.checkpoint.remote import RemoteCheckpoints
    from gpt2_ds.train.run import train

    away = folder / "away"
    plan = small_plan(data, folder / "run", f"checkpoint.copy_to={away}", world_size=2)
    corpus, send = small_corpus(data), RemoteCheckpoints.upload

    def slow(self: RemoteCheckpoints, checkpoint: Path) -> None:
        if checkpoint.name == LAST:
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(100)
        send(self, checkpoint)

    found = []
    for upload in (slow, send):
        RemoteCheckpoints.upload = upload  # type: ignore[method-assign]
        code = train(plan, corpus)
        found.append((code, (away / "run" / LAST / MANIFEST).exists()))
    return found


@pytest.mark.heavy
def test_a_stop_is_heard_while_the_last_copy_is_sent(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    began = time.monotonic()
    found = run_ranks(stopped_and_given_again, 2, tmp_path, data, tmp_path)
    assert time.monotonic() - began < 95
    assert [code for code, _ in found[0]] == [EXIT_PREEMPTED, EXIT_DONE]
    assert [code for code, _ in found[1]] == [EXIT_PREEMPTED, EXIT_DONE]
    assert [there for _, there in found[0]] == [False, True]
    ledger = [json.loads(line) for line in (tmp_path / "run/ledger.jsonl").read_text().splitlines()]
    assert [line["event"] for line in ledger] == ["start", "stop", "resume", "done"]
