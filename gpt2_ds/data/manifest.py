"""`manifest.json`: what a dataset is made of. Written last: a dataset without it is not one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from gpt2_ds.config.errors import Fault, UserError, user_error
from gpt2_ds.data.durable_file import write_durably

MANIFEST_FILE = "manifest.json"
FORMAT: Final = 1

SplitName = Literal["train", "validation"]
Count = Annotated[int, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _inside(file: str) -> str:
    path = PurePosixPath(file)
    if path.is_absolute() or ".." in path.parts or path.suffix != ".bin":
        raise ValueError(f"{file!r} is not a .bin file inside the dataset")
    return file


class ShardEntry(_Part):
    """One shard.

    Args:
        split: which split it belongs to.
        file: relative to the dataset, with forward slashes.
        tokens: end-of-text tokens included.
        documents: how many begin (and end) in it.
        bytes: of the file.
        sha256: of the file.
    """

    split: SplitName
    file: Annotated[str, AfterValidator(_inside)]
    tokens: Count
    documents: Count
    bytes: Count
    sha256: Sha256


class TokenizerEntry(_Part):
    """The tokenizer in `tokenizer/`: its name, and the sha256 of ranks, pattern and specials."""

    name: str
    sha256: Sha256


class InputEntry(_Part):
    """One input as it was typed, and how many files and bytes it was."""

    name: str
    files: Count
    bytes: Count


class Source(_Part):
    """Where the documents came from, and which of them were taken.

    Args:
        inputs: of both splits, or of train alone when there are `validation_inputs`.
        validation_inputs: all of these are validation.
        validation_fraction: of the documents of `inputs`, chosen by a hash of the text.
        text_field: of a row of JSON lines.
        skipped: bad rows left out: why -> how many.
    """

    inputs: tuple[InputEntry, ...]
    validation_inputs: tuple[InputEntry, ...]
    validation_fraction: float
    text_field: str
    skipped: dict[str, Count]


class Manifest(_Part):
    """The whole of `manifest.json`.

    Args:
        format: of this file and the directory around it.
        dtype: of the tokens in every shard.
        tokenizer: what the tokens mean.
        source: what the tokens were made of.
        versions: of the tools that made them: name -> version.
        shards: in the order of their tokens, train before validation.
    """

    format: Literal[1]
    dtype: Literal["uint16", "uint32"]
    tokenizer: TokenizerEntry
    source: Source
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
        sha256. Names of files, inputs and tool versions are left out: the same tokens made
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
        text = json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_durably(directory / MANIFEST_FILE, [text.encode() + b"\n"])


def read_manifest(directory: Path) -> Manifest:
    """The manifest of the dataset in `directory`.

    Raises:
        UserError: there is no dataset, or its manifest is not one this version reads.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        what = "there, but without a manifest.json" if directory.exists() else "no such dataset"
        raise user_error(
            str(directory),
            what,
            f"Make it: python launch/prepare_data.py INPUT ... --out {directory}",
        )
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise user_error(
            str(path), f"not JSON ({error})", "Restore it, or prepare the dataset again."
        ) from error
    version = found.get("format") if isinstance(found, dict) else None
    if version != FORMAT:
        raise user_error(
            f"{path}: format",
            f"{version!r}, and this version of the code reads {FORMAT}",
            "Prepare the dataset again with launch/prepare_data.py.",
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise UserError(
            *(
                Fault(
                    f"{path}: {'.'.join(map(str, each['loc']))}",
                    each["msg"],
                    "Restore it, or prepare the dataset again.",
                )
                for each in error.errors()
            )
        ) from error
