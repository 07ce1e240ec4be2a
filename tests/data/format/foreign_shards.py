"""Shards as other projects write them, byte by byte, without a line of the code under test."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LLM_C = {"H": (20240520, 1), "I": (20240801, 7)}
MEGATRON_CODES = {"i": 4, "H": 8}


def write_llm_c(path: Path, tokens: Sequence[int], letter: str = "H") -> None:
    """As llm.c's dev/data and modded-nanogpt's data/ do; `letter` is that of `struct`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = [*LLM_C[letter], len(tokens), *[0] * 253]
    path.write_bytes(
        struct.pack("<256i", *header) + struct.pack(f"<{len(tokens)}{letter}", *tokens)
    )


def write_npy(path: Path, tokens: Sequence[int], letter: str = "H") -> None:
    """As build-nanogpt's fineweb.py does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, np.array(tokens, dtype=letter))


def write_megatron(
    path: Path,
    documents: Sequence[Sequence[Sequence[int]]],
    letter: str = "i",
    *,
    with_modes: bool = False,
) -> None:
    """As Megatron-LM's preprocess_data.py does: `.bin` and `.idx` of documents of sequences."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sequences = [sequence for document in documents for sequence in document]
    lengths, pointers, bounds, here = [], [], [0], 0
    for sequence in sequences:
        lengths.append(len(sequence))
        pointers.append(here)
        here += len(sequence) * struct.calcsize(letter)
    for document in documents:
        bounds.append(bounds[-1] + len(document))
    path.write_bytes(b"".join(struct.pack(f"<{len(x)}{letter}", *x) for x in sequences))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, MEGATRON_CODES[letter])
    index += struct.pack("<QQ", len(lengths), len(bounds))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(bounds)}q", *bounds)
    index += bytes(len(lengths)) if with_modes else b""
    path.with_suffix(".idx").write_bytes(index)
