"""One dataset and one unbroken run, that broken ones are held against."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.small_run import small_dataset


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_dataset(tmp_path_factory.mktemp("data"))
