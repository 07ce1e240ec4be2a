"""What a preparation is asked for: each option once, for the command line and for `prepare`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gpt2_ds.config.errors import user_error

SHARD_TOKENS = 2**25  # 64 MiB of uint16
MAX_SHARD_TOKENS = 2**30

OnBad = Literal["error", "skip"]


class Request(BaseModel):
    """The options of `launch/prepare_data.py`.

    A field is an option: its docstring is the help, its title stands for the value there. Two
    preparations that differ in a field make different datasets, unless it has `exclude=True`.

    Raises:
        UserError: a number is out of its range.
    """

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True
    )

    inputs: Annotated[Sequence[str | Path], Field(title="INPUT")]
    """what to read, in this order. A text file is one document (unless there is a
    --document-separator); of JSON lines (.jsonl .ndjson .json) and .parquet a row is one; text and
    JSON lines may be compressed (.gz .zst). A folder is recursed and sorted, dot files skipped; a
    pattern ("data/*.jsonl.gz", in quotes) is sorted. - is standard input: JSON lines if it begins
    with {, else text. hf:OWNER/NAME is a dataset of the Hugging Face hub, read while it is
    downloaded, and hf:FOLDER a local one. python-stdlib is the sources of this Python's standard
    library"""
    out: Annotated[Path, Field(title="DIR", exclude=True)]
    """the dataset; must not be there yet"""
    text_field: Annotated[str, Field(title="NAME")] = "text"
    """of a row, its text"""
    config: Annotated[str | None, Field(title="NAME")] = None
    """of hf:, the dataset's configuration, if it has several"""
    split: Annotated[str, Field(title="NAME")] = "train"
    """of hf:, which split to read"""
    revision: Annotated[str | None, Field(title="REV")] = None
    """of hf:, a branch, tag or commit (the newest commit); the manifest has the commit"""
    document_separator: Annotated[str | None, Field(title="LINE")] = None
    """cut text files into documents at lines equal to it, say '<|endoftext|>'"""
    on_bad: Annotated[OnBad, Field(exclude=True)] = "error"
    """stop at a bad document, or skip and count it"""
    deduplicate: bool = False
    """skip a document whose text came before, in either split"""
    validation_fraction: Annotated[float, Field(title="X")] = 0.001
    """share of the documents, chosen by a hash of their text"""
    validation: Annotated[Sequence[str | Path], Field(title="INPUT")] = ()
    """an input that is the validation split, instead; repeatable"""
    tokenizer: Annotated[str, Field(title="gpt2|bytes|FILE")] = "gpt2"
    """GPT-2's, the 256 bytes, or a file of tiktoken ranks"""
    workers: Annotated[int, Field(title="N", exclude=True)] = 1
    """processes that encode"""
    shuffle_seed: Annotated[int | None, Field(title="N")] = None
    """put the documents within each train shard in an order of this seed (as read)"""
    shard_tokens: Annotated[int, Field(title="N")] = SHARD_TOKENS
    """about how many tokens a shard has"""

    @model_validator(mode="after")
    def _check_ranges(self) -> Request:
        if self.workers < 1:
            raise user_error("--workers", f"{self.workers} is below 1", "Use 1 or more.")
        if not 0 <= self.validation_fraction < 1:
            raise user_error(
                "--validation-fraction",
                f"{self.validation_fraction} is not in [0, 1)",
                "Use 0.001, say.",
            )
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            raise user_error(
                "--shard-tokens",
                f"{self.shard_tokens} is not in 1..{MAX_SHARD_TOKENS}",
                f"Leave it out: it is {SHARD_TOKENS} then.",
            )
        return self


def flag_of(field: str) -> str:
    """The name of a field of `Request` on the command line.

    >>> flag_of("text_field"), flag_of("inputs")
    ('--text-field', 'INPUT')
    """
    return "INPUT" if field == "inputs" else f"--{field.replace('_', '-')}"
