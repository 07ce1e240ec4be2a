"""Text to prepare, in every form, and the documents of a dataset back."""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from gpt2_ds.data.format.manifest import Manifest
from gpt2_ds.data.format.shards import map_tokens, read_header, read_index
from gpt2_ds.data.format.tokenizer import Tokenizer, load_tokenizer
from gpt2_ds.data.preparation.prepare import prepare
from gpt2_ds.data.preparation.request import Request
from gpt2_ds.data.preparation.sources import Input, find_inputs

REPOSITORY = Path(__file__).resolve().parents[3]
COMMAND = REPOSITORY / "launch" / "prepare_data.py"
BYTES = load_tokenizer("bytes")
WORDS = ["the", "naïve", "日本", "\n", "<|endoftext|>", "🙂", "x = 1", "  "]


def texts(n: int, seed: int = 0) -> list[str]:
    """Different ones."""
    rng = random.Random(seed)
    return [f"{i} " + " ".join(rng.choices(WORDS, k=rng.randrange(1, 200))) for i in range(n)]


def rows_of(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def write_rows(path: Path, documents: list[str]) -> Path:
    """JSON lines or parquet, packed as the name says."""
    data = rows_of(documents)
    if path.suffix == ".parquet":
        table = pyarrow.table({"text": documents})
        pyarrow.parquet.write_table(table, path, row_group_size=70, write_page_checksum=True)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(data, mtime=0))
    elif path.suffix == ".zst":
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            file.write(data)
    else:
        path.write_bytes(data)
    return path


def prepare_texts(inputs: Sequence[str | Path], out: Path, **options: Any) -> Manifest:
    """Prepare, with the bytes for a tokenizer where none is named."""
    return prepare(Request(inputs=inputs, out=out, **{"tokenizer": "bytes", **options}))


def find(*inputs: str | Path, validation: Sequence[str | Path] = ()) -> list[Input]:
    """What the names stand for, those for validation last."""
    request = Request(inputs=inputs, validation=validation, out=Path("out"))
    train, rest = find_inputs(request, {})
    return train + rest


def documents_of(out: Path, split: str) -> list[str]:
    """The texts back, by the index of each shard."""
    found = []
    tokenizer = Tokenizer.open(out / "tokenizer")
    for shard in sorted((out / split).glob("*.bin")):
        header = read_header(shard)
        tokens = map_tokens(shard, header)
        starts = read_index(shard, header).tolist()
        assert starts[0] == 0
        for start, end in zip(starts, [*starts[1:], len(tokens)], strict=True):
            assert tokens[start] == tokenizer.eot_token
            found.append(tokenizer.decode(tokens[start + 1 : end]))
    return found


def contents(out: Path) -> dict[str, bytes]:
    """Every file, by its name in the folder."""
    return {
        str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()
    }
