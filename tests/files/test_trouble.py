from __future__ import annotations

import pytest

from gpt2_ds.files.trouble import FILE_TROUBLES, file_trouble


@pytest.mark.parametrize("number", sorted(FILE_TROUBLES))
def test_each_trouble_of_a_file_has_a_fix(number: int) -> None:
    said = file_trouble(OSError(number, "words", "a/b"))
    assert said == f"a/b: words. {FILE_TROUBLES[number]}."


def test_trouble_without_a_file_or_of_another_kind() -> None:
    assert file_trouble(OSError("odd")) == "odd. Mend it, then give the same command again."
