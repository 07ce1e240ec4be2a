"""The tests of one file run on one worker, and share what it builds."""

from __future__ import annotations

import pytest


def test_xdist_knows_the_group_of_a_test(request: pytest.FixtureRequest) -> None:
    """With pytest 9.2 it does not, and says nothing: pytest-dev/pytest-xdist#1386."""
    if hasattr(request.config, "workerinput"):
        assert request.node.nodeid.endswith(f"@{request.path}")
