"""The probe batch says whether what was loaded is what was saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.checkpoint.probe import check_probe, probe_tokens
from gpt2_ds.config.errors import RunError
from tests.ranks import run_ranks
from tests.small_run import small_corpus, small_dataset, small_plan


def test_it_is_the_beginning_of_the_validation_data(tmp_path: Path) -> None:
    data = small_dataset(tmp_path)
    corpus = small_corpus(data)
    first = (
        next(iter(corpus.datasets.values()))
        .split("validation")
        .windows(np.zeros(1, dtype=np.int64), 32)
    )
    assert probe_tokens(small_plan(data, tmp_path / "run"), corpus).tolist() == first.tolist()
    compiled = small_plan(data, tmp_path / "run", "model.compile=true")
    assert probe_tokens(compiled, corpus).tolist() == [*first.tolist(), *first.tolist()]


@pytest.mark.parametrize("loaded", [2.0, 2.0019, 1.9981])
def test_rounding_passes(loaded: float) -> None:
    check_probe(Path("x"), 2.0, loaded)


@pytest.mark.parametrize("saved, loaded", [(2.0, 2.0021), (2.0, math.nan), (0.5, 0.4989)])
def test_anything_else_stops_the_run(saved: float, loaded: float) -> None:
    with pytest.raises(RunError) as error:
        check_probe(Path("c/step_1"), saved, loaded)
    assert str(error.value) == (
        f"c/step_1/probe.npy: its loss is {loaded:.6f} after loading and was {saved:.6f} when "
        "saved: these are not the weights of that step. Training stops before it harms the run; go "
        "back to the versions that environment.json names, or report this."
    )


def _checked(losses: list[float]) -> tuple[str, bool]:
    """The error of a rank, and whether rank 0 alone prints it."""
    from gpt2_ds.hosts.launcher import rank

    try:
        check_probe(Path("c/step_1"), 2.0, losses[rank()])
    except RunError as error:
        return str(error), error.said_by_rank_0
    return "no error", False


def test_one_rank_with_another_loss_ends_all(tmp_path: Path) -> None:
    zero, one = run_ranks(_checked, 2, tmp_path, [2.0, 2.5])
    assert zero == one
    assert zero[0].startswith(
        "c/step_1/probe.npy: its loss is 2.500000 after loading on rank 1 and was 2.000000 when"
    )
    assert zero[1]
