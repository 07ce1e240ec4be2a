from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pytest

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.data.preparation import encoding_pool
from gpt2_ds.data.preparation.blocks import Block
from gpt2_ds.data.preparation.encoding_pool import Encoded, encode_blocks, encode_documents
from tests.data.preparation.prepared_text import BYTES


def block(number: int) -> Block:
    return Block(is_validation=False, texts=[f"{number}".encode(), b"\xc3\xa9" * (number % 3)])


def check(number: int, encoded: Encoded) -> None:
    texts = block(number).texts
    wanted = [token for text in texts for token in [256, *text]]
    assert encoded.tokens.tolist() == wanted
    assert encoded.tokens.dtype == "uint16"
    assert encoded.lengths.tolist() == [len(text) + 1 for text in texts]
    assert [bytes(digest) for digest in encoded.digests] == [
        hashlib.sha256(text).digest() for text in texts
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_blocks_come_back_in_order(workers: int) -> None:
    results = list(encode_blocks(map(block, range(30)), BYTES, workers))
    assert len(results) == 30
    for number, (given, encoded) in enumerate(results):
        assert given == block(number)
        check(number, encoded)


def test_no_document() -> None:
    encoded = encode_documents(BYTES, [])
    assert (len(encoded.tokens), len(encoded.lengths)) == (0, 0)
    assert encoded.digests.shape == (0, 32)
    assert encoded.tokens.dtype == "uint16"


@pytest.mark.parametrize("workers", [1, 2])
def test_few_blocks_are_in_flight(workers: int) -> None:
    n_read = 0

    def read() -> Iterator[Block]:
        nonlocal n_read
        for number in range(40):
            n_read += 1
            yield block(number)

    for number, _ in enumerate(encode_blocks(read(), BYTES, workers)):
        assert n_read - number <= (2 * workers + 1 if workers > 1 else 1)


def out_of_memory(texts: list[bytes]) -> Encoded:
    raise MemoryError


def test_a_worker_that_lacks_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding_pool, "_encode_in_worker", out_of_memory)
    with pytest.raises(RunError, match=r"a worker process died, perhaps for want of memory. Use f"):
        list(encode_blocks(map(block, range(3)), BYTES, 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_what_comes_before_a_failure_comes_back(workers: int) -> None:
    def read() -> Iterator[Block]:
        yield from map(block, range(3))
        raise user_error("here", "wrong", "Mend it.")

    results = encode_blocks(read(), BYTES, workers)
    for number in range(3):
        check(number, next(results)[1])
    with pytest.raises(UserError, match=r"here: wrong. Mend it."):
        next(results)
