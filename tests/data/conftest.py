from __future__ import annotations

import os
from pathlib import Path

import pytest

from gpt2_ds.data.gpt2_ranks import FILES, cached_name

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def gpt2_cache() -> Path:
    """A folder with the files of GPT-2's tokenizer."""
    folders = [REPOSITORY.parent / "shared" / "tiktoken_cache"]
    if named := os.environ.get("TIKTOKEN_CACHE_DIR"):
        folders.insert(0, Path(named))
    for folder in folders:
        if all((folder / cached_name(address)).is_file() for address in FILES):
            return folder
    pytest.skip("GPT-2's vocabulary is not here: set TIKTOKEN_CACHE_DIR to a folder that has it")
