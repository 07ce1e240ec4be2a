from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ds.data.format.dataset import Dataset
from gpt2_ds.data.format.shards import map_tokens, read_header, read_index
from gpt2_ds.data.preparation import blocks
from gpt2_ds.data.preparation.held_documents import DOCUMENTS_AT_ONCE, shuffled
from gpt2_ds.data.preparation.reading import BEGINNING
from gpt2_ds.data.preparation.units import are_validation
from tests.data.preparation.prepared_text import (
    BYTES,
    contents,
    find,
    prepare_texts,
    texts,
    write_rows,
)


def is_validation(text: str, fraction: float) -> bool:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) < fraction * 2**64


def cut(documents: list[str], shard_tokens: int) -> list[list[str]]:
    """Into lists that end as soon as they hold so many tokens: a byte is one, and each end."""
    lists: list[list[str]] = [[]]
    for text in documents:
        lists[-1].append(text)
        if sum(len(each.encode()) + 1 for each in lists[-1]) >= shard_tokens:
            lists.append([])
    return [each for each in lists if each]


def cut_to_units(
    documents: list[str], fraction: float, shard_tokens: int
) -> tuple[list[list[str]], list[list[str]]]:
    """Train and validation shards, as they are described: written anew, and slowly."""
    train: list[list[str]] = []
    validation: list[str] = []
    held: dict[bool, list[str]] = {False: [], True: []}
    for text in [*documents, None]:
        if text is not None:
            held[is_validation(text, fraction)].append(text)
        sizes = [sum(len(each.encode()) + 1 for each in texts) for texts in held.values()]
        if text is None or max(sizes) >= shard_tokens:
            train += [held[False]] if held[False] else []
            validation += held[True]
            held = {False: [], True: []}
    return train, cut(validation, shard_tokens)


def shards_of(out: Path, split: str) -> list[list[str]]:
    shards = []
    for path in sorted((out / split).glob("*.bin")):
        header = read_header(path)
        tokens, starts = map_tokens(path, header), read_index(path, header).tolist()
        ends = [*starts[1:], len(tokens)]
        shards.append([BYTES.decode(tokens[a + 1 : b]) for a, b in zip(starts, ends, strict=True)])
    return shards


@settings(max_examples=60)
@given(
    st.lists(st.text("ab\u00e9", min_size=1, max_size=12), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.3, 0.9]),
    st.integers(1, 40),
    st.integers(1, 60),
    st.booleans(),
)
def test_units_are_cut_as_described(
    documents: list[str], fraction: float, shard_tokens: int, block_bytes: int, unique: bool
) -> None:
    kept = list(dict.fromkeys(documents)) if unique else documents
    train, validation = cut_to_units(kept, fraction, shard_tokens)
    if not train:
        return
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(blocks, "BLOCK_BYTES", block_bytes)
        out = Path(folder) / "out"
        manifest = prepare_texts(
            [write_rows(Path(folder) / "a.jsonl", documents)],
            out,
            validation_fraction=fraction,
            shard_tokens=shard_tokens,
            deduplicate=unique,
        )
        assert shards_of(out, "train") == train
        assert shards_of(out, "validation") == validation
        Dataset.open(out).verify()
        assert manifest.source is not None
        assert manifest.source.duplicates == (len(documents) - len(kept) if unique else None)
        assert [shard.documents for shard in manifest.shards] == [
            len(shard) for shard in train + validation
        ]


def test_the_choice_of_validation() -> None:
    texts = [str(i) for i in range(2000)]
    hashes = b"".join(hashlib.sha256(text.encode()).digest() for text in texts)
    digests = np.frombuffer(hashes, np.uint8).reshape(-1, 32)
    for fraction in (0.0, 1e-3, 0.1, 0.5, 1 - 2**-53):
        wanted = [is_validation(text, fraction) for text in texts]
        assert are_validation(digests, fraction).tolist() == wanted
    edge = np.zeros((3, 32), np.uint8)
    edge[0, 0], edge[1, :8], edge[2, 0] = 0x80, 0xFF, 0x7F
    assert are_validation(edge, 0.5).tolist() == [False, False, True]
    assert are_validation(edge, 2**-64).tolist() == [False, False, False]
    for fraction in (2**-64, 2**-65):
        assert are_validation(np.zeros((1, 32), np.uint8), fraction).tolist() == [True]


def test_shuffled_within_each_shard(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", texts(400))

    def shards(name: str, seed: int | None, split: str = "train") -> list[list[str]]:
        out = tmp_path / name
        if not out.exists():
            prepare_texts(
                [path], out, validation_fraction=0.2, shard_tokens=20_000, shuffle_seed=seed
            )
        return shards_of(out, split)

    plain, one, two = shards("plain", None), shards("one", 1), shards("two", 2)
    assert len(plain) > 5
    assert [sorted(each) for each in plain] == [sorted(each) for each in one]
    assert [sorted(each) for each in plain] == [sorted(each) for each in two]
    for each, other, third in zip(plain, one, two, strict=True):
        assert each != other != third != each
    orders = [[a.index(text) for text in b] for a, b in zip(plain, one, strict=True)]
    shortest = min(map(len, orders))
    firsts = {tuple(i for i in order if i < shortest) for order in orders}
    assert len(firsts) == len(orders)  # each shard has an order of its own
    assert shards("plain", None, "validation") == shards("one", 1, "validation")
    assert contents(tmp_path / "one").keys() == contents(tmp_path / "plain").keys()


def test_many_documents_are_shuffled_in_parts() -> None:
    n = 2 * DOCUMENTS_AT_ONCE + 5
    lengths = np.random.default_rng(0).integers(1, 4, n)
    tokens = np.repeat(np.arange(n, dtype=np.uint16), lengths)
    moved, moved_lengths = shuffled(tokens, lengths, seed=1, unit=0)
    which = moved[np.cumsum(moved_lengths) - moved_lengths]
    assert sorted(which.tolist()) == list(range(n))
    assert np.array_equal(moved, np.repeat(which, lengths[which]))
    assert np.mean(np.abs(which.astype(int) - np.arange(n)) > n // 10) > 0.7


def test_a_document_longer_than_a_shard(tmp_path: Path) -> None:
    documents = ["a" * 100, "b", "c" * 100]
    prepare_texts(
        [write_rows(tmp_path / "a.jsonl", documents)],
        tmp_path / "out",
        shard_tokens=10,
        validation_fraction=0,
    )
    assert shards_of(tmp_path / "out", "train") == [["a" * 100], ["b", "c" * 100]]


def test_validation_inputs_come_in_units_too(tmp_path: Path) -> None:
    (train, validation) = (texts(30), texts(300, seed=1))
    prepare_texts(
        [write_rows(tmp_path / "a.jsonl", train)],
        tmp_path / "out",
        shard_tokens=10_000,
        validation=[write_rows(tmp_path / "b.jsonl", validation)],
    )
    assert shards_of(tmp_path / "out", "train") == cut(train, 10_000)
    assert shards_of(tmp_path / "out", "validation") == cut(validation, 10_000)


def test_blocks_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 10)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n{}\n' * 40 + ('{"text": "' + "b" * 400 + '"}\n') * 20)
    (tmp_path / "b.txt").write_text("c")
    train, validation = find(path), find(tmp_path / "b.txt")
    found = list(
        blocks.read_blocks(
            train,
            validation,
            text_field="text",
            document_separator=None,
            on_bad="skip",
            start=BEGINNING,
        )
    )
    sizes = [(len(block.texts), len(block.bad)) for block in found]
    assert sizes == [(5, 5)] * 8 + [(3, 0)] * 6 + [(2, 0), (1, 0)]
    assert [block.is_validation for block in found] == [False] * 15 + [True]
    assert found[8].text_bytes == 1200
    assert sum(block.input_bytes for block in found) == path.stat().st_size + 1


def test_bad_documents_alone_fill_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_DOCUMENTS", 10)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a"}\n' + "{}\n" * 100 + '{"text": "b"}\n' + "[]\n" * 30)
    manifest = prepare_texts([path], tmp_path / "out", on_bad="skip", validation_fraction=0)
    assert shards_of(tmp_path / "out", "train") == [["a", "b"]]
    assert manifest.source is not None
    counts = {why: each.count for why, each in manifest.source.skipped.items()}
    assert counts == {"no_text_field": 100, "not_an_object": 30}
