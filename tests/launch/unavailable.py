"""What a machine lacks for a test: it is skipped, but where all is known to be there it fails."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

REQUIRED = "GPT2_DS_TEST_HOSTS"
"""Set to `required` by .ci/run where packages, root and namespaces are there."""


def unavailable(reason: str) -> NoReturn:
    """Skip this test, and say why; fail it where the machine should have all.

    Args:
        reason: what is missing, and what to type.
    """
    if os.environ.get(REQUIRED) == "required":
        pytest.fail(f"{REQUIRED}=required, and this test cannot run: {reason}")
    pytest.skip(reason)
