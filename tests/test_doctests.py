"""Every example in a docstring is run."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = [path for path in sorted((ROOT / "gpt2_ds").rglob("*.py")) if ">>> " in path.read_text()]


def test_examples(subtests: pytest.Subtests) -> None:
    for path in MODULES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        with subtests.test(name):
            result = doctest.testmod(importlib.import_module(name))
            assert result.attempted
            assert not result.failed
