from __future__ import annotations

import hashlib
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2_ds.files import checksum


@given(st.lists(st.binary(max_size=40)), st.integers(1, 9))
def test_a_checksum_is_the_same_however_the_bytes_come(parts: list[bytes], block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksum, "BLOCK_BYTES", block)
        made = checksum.Checksum()
        for part in parts:
            made.update(part)
    whole = b"".join(parts)
    assert made.n_bytes == len(whole)
    assert made.sha256 == hashlib.sha256(whole).hexdigest()
    blocks = [whole[i : i + block] for i in range(0, len(whole), block)]
    assert made.block_crc32 == tuple(map(zlib.crc32, blocks))
