"""The probe batch says whether what was loaded is what was saved."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from gpt2_ds.config.errors import RunError
from gpt2_ds.train.probe import check_probe, probe_tokens
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
