"""`manifest.json`: what a dataset is made of. It is written last: it makes a folder a dataset."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.files.durable_file import write_durably

MANIFEST_FILE = "manifest.json"
FORMAT: Final = 2

_RESTORE = "Restore it, or prepare the dataset again."

SplitName = Literal["train", "validation"]
Layout = Literal["llm.c", "npy", "megatron"]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _inside(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or path.suffix not in (".bin", ".npy"):
        raise ValueError(f"{file!r} is not a .bin or .npy file inside the dataset")
    return file


class ShardEntry(_Part):
    """One shard.

    Args:
        split: which split it belongs to.
        file: relative to the dataset, with forward slashes.
        layout: how its tokens lie in the file; `llm.c` is our own.
        tokens: end-of-text tokens included.
        documents: how many begin (and end) in it.
        bytes: of the file.
        sha256: of the file.
        block_crc32: of each MiB of the file, so that damage can be found to the MiB.
        index_sha256: of the `.idx` beside it; None: there is none.
        index_bytes: of the `.idx`.
    """

    split: SplitName
    file: Annotated[str, AfterValidator(_inside)]
    layout: Layout = "llm.c"
    tokens: Count
    documents: Count
    bytes: Count
    sha256: Sha256
    block_crc32: tuple[Count, ...]
    index_sha256: Sha256 | None
    index_bytes: Count = 0


class TokenizerEntry(_Part):
    """The tokenizer in `tokenizer/`: its name, and the sha256 of ranks, pattern and specials."""

    name: str
    sha256: Sha256


class InputEntry(_Part):
    """One input as it was typed, and what it was.

    Args:
        name: as it was typed.
        files: how many; 0 for a dataset of the Hugging Face hub.
        bytes: of all files; 0 where it is not known before reading.
        config: of a dataset of the hub: its configuration.
        split: of a dataset of the hub.
        revision: of a dataset of the hub: the commit.
    """

    name: str
    files: Count
    bytes: Count
    config: str | None = None
    split: str | None = None
    revision: str | None = None


class SkippedDocuments(_Part):
    """Bad documents skipped for one reason: how many, and where the first few were."""

    count: Count
    first: tuple[str, ...]


class Source(_Part):
    """Where the documents came from, and which of them were taken.

    Args:
        inputs: of both splits, or of train alone when there are `validation_inputs`.
        validation_inputs: all of these are validation.
        validation_fraction: of the documents of `inputs`, chosen by a hash of the text.
        text_field: of a row of JSON lines, parquet or a dataset of the hub.
        document_separator: the line that stood between documents of a text file, if one did.
        shuffle_seed: of the order of documents within each shard; None: as they were read.
        duplicates: documents skipped because an equal one came before; None: not looked for.
        skipped: bad documents, by why.
    """

    inputs: tuple[InputEntry, ...]
    validation_inputs: tuple[InputEntry, ...]
    validation_fraction: float
    text_field: str
    document_separator: str | None
    shuffle_seed: int | None
    duplicates: Count | None
    skipped: dict[str, SkippedDocuments]


class Manifest(_Part):
    """All of `manifest.json` but its last key, the sha256 of the rest.

    Args:
        format: of this file and the directory around it.
        dtype: of the tokens in every shard.
        tokenizer: what the tokens mean.
        source: what the tokens were made of; None: made elsewhere, and adopted.
        versions: of the tools that made them: name -> version.
        shards: in the order of their tokens, train before validation.
    """

    format: Literal[2]
    dtype: Literal["uint16", "uint32", "int32"]
    tokenizer: TokenizerEntry
    source: Source | None
    versions: dict[str, str]
    shards: tuple[ShardEntry, ...]

    @field_validator("shards")
    @classmethod
    def _each_once(cls, shards: tuple[ShardEntry, ...]) -> tuple[ShardEntry, ...]:
        seen: set[PurePosixPath] = set()
        for shard in shards:
            if (path := PurePosixPath(shard.file)) in seen:
                raise ValueError(f"{shard.file!r} is there twice")
            seen.add(path)
        return shards

    @property
    def fingerprint(self) -> str:
        """The sha256 over what training sees, in order: 64 hexadecimal digits.

        That is the type of the tokens, the tokenizer, and per shard its split, token count and
        sha256. Names of files, inputs and tool versions do not count: the same tokens made
        elsewhere, or by a newer version, are the same data.
        """
        seen = [
            self.dtype,
            self.tokenizer.sha256,
            [[shard.split, shard.tokens, shard.sha256] for shard in self.shards],
        ]
        return hashlib.sha256(json.dumps(seen).encode()).hexdigest()

    def write(self, directory: Path) -> None:
        """Write it into `directory`, complete or not at all."""
        content = self.model_dump(mode="json")
        text = json.dumps(content | {"sha256": _digest(content)}, indent=1, ensure_ascii=False)
        write_durably(directory / MANIFEST_FILE, [text.encode() + b"\n"])


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the dataset in `directory`.

    Raises:
        UserError: there is no dataset, or its manifest is damaged or not one this version reads.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        what = "there, but without a manifest.json" if directory.exists() else "no such dataset"
        raise user_error(
            str(directory),
            what,
            f"Make it: python launch/prepare_data.py INPUT ... --out {directory}",
        )
    return parse_manifest(path.read_bytes(), str(path))


def parse_manifest(raw: bytes, path: str) -> Manifest:
    """The manifest in the bytes of a file.

    Args:
        raw: all of the file.
        path: or address of it, for messages.

    Raises:
        UserError: it is damaged or not one this version reads.
    """
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise user_error(path, f"not JSON ({error})", _RESTORE) from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise user_error(
            f"{path}: format",
            f"{version!r}, and this version of the code reads {FORMAT}",
            "Use the version that made it, or prepare the dataset again.",
        )
    said = found.pop("sha256", None)
    try:
        manifest = Manifest.model_validate_json(json.dumps(found))
    except ValidationError as error:
        raise UserError(
            *(
                Fault(f"{path}: {'.'.join(map(str, wrong['loc']))}", wrong["msg"], _RESTORE)
                for wrong in error.errors()
            )
        ) from error
    if (got := _digest(found)) != said:
        raise user_error(f"{path}: sha256", f"{said}, and the rest has {got}: damaged", _RESTORE)
    return manifest
