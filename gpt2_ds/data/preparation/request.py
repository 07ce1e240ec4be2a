"""What a preparation was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.format.manifest import InputEntry, Source
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.preparation.partial_folder import Counts, Job
from gpt2_ds.data.preparation.sources import HubChoice, Input
from gpt2_ds.data.preparation.units import Cutting

SHARD_TOKENS = 2**25  # 64 MiB of uint16
MAX_SHARD_TOKENS = 2**30
COMMITS = "commits"  # in a job: name of a dataset of the hub -> its commit


@dataclass(frozen=True)
class Request:
    """All that the result depends on, but for the bytes of the inputs.

    Args:
        out: where the dataset will be.
        tokenizer: goes into it.
        train: inputs.
        validation: inputs that are the whole validation split; none: it is cut off from `train`.
        cutting: how documents become shards.
        choice: what to read of a dataset of the hub.
        text_field: of a row, its text.
        document_separator: the line between documents of a text file, if there is one.
    """

    out: Path
    tokenizer: Tokenizer
    train: tuple[Input, ...]
    validation: tuple[Input, ...]
    cutting: Cutting
    choice: HubChoice
    text_field: str
    document_separator: str | None

    @property
    def total_bytes(self) -> int | None:
        """Of all inputs; None where one does not say before it is read."""
        inputs = [*self.train, *self.validation]
        if any(each.is_one_stream for each in inputs):
            return None
        return sum(each.n_bytes for each in inputs)

    @property
    def has_hub(self) -> bool:
        """Whether an input is a dataset that the `datasets` library reads."""
        return any(each.hub for each in (*self.train, *self.validation))

    @property
    def job(self) -> Job:
        """In words and numbers, with sizes and times of the files: what a second start must match.

        Not whether a bad document is an error: to leave it out goes on from where it was found.
        """
        inputs = [*self.train, *self.validation]
        hub = {each.name: each.hub.revision for each in inputs if each.hub and each.hub.revision}
        stats = {str(file): file.stat() for each in inputs for file in each.files}
        files = {
            f"size and time of {name}": [stat.st_size, stat.st_mtime_ns]
            for name, stat in stats.items()
        }
        return {
            "INPUT": [each.name for each in self.train],
            "--validation": [each.name for each in self.validation],
            "--tokenizer": f"{self.tokenizer.name}, sha256 {self.tokenizer.sha256}",
            "--text-field": self.text_field,
            "--validation-fraction": self.cutting.validation_fraction,
            "--document-separator": self.document_separator,
            "--deduplicate": self.cutting.deduplicate,
            "--shuffle-seed": self.cutting.shuffle_seed,
            "--shard-tokens": self.cutting.shard_tokens,
            "--config": self.choice.config,
            "--split": self.choice.split,
            "--revision": self.choice.revision,
            COMMITS: hub,
            **files,
        }

    def source(self, counts: Counts) -> Source:
        """What the manifest says of where the documents came from."""
        return Source(
            inputs=_entries(self.train),
            validation_inputs=_entries(self.validation),
            validation_fraction=self.cutting.validation_fraction,
            text_field=self.text_field,
            document_separator=self.document_separator,
            shuffle_seed=self.cutting.shuffle_seed,
            duplicates=counts.duplicates if self.cutting.deduplicate else None,
            skipped=dict(sorted(counts.skipped.items())),
        )


def _entries(inputs: Sequence[Input]) -> tuple[InputEntry, ...]:
    return tuple(
        InputEntry(
            name=each.name,
            files=len(each.files),
            bytes=each.n_bytes,
            config=each.hub.config if each.hub else None,
            split=each.hub.split if each.hub else None,
            revision=each.hub.revision if each.hub else None,
        )
        for each in inputs
    )


def check_arguments(workers: int, cutting: Cutting) -> None:
    """See to it that the numbers are in their ranges.

    Raises:
        UserError: one is not.
    """
    if workers < 1:
        raise user_error("--workers", f"{workers} is below 1", "Use 1 or more.")
    if not 0 <= (fraction := cutting.validation_fraction) < 1:
        raise user_error("--validation-fraction", f"{fraction} is not in [0, 1)", "Use 0.001, say.")
    if not 1 <= cutting.shard_tokens <= MAX_SHARD_TOKENS:
        raise user_error(
            "--shard-tokens",
            f"{cutting.shard_tokens} is not in 1..{MAX_SHARD_TOKENS}",
            f"Leave it out: it is {SHARD_TOKENS} then.",
        )


def check_hub_flags(choice: HubChoice, inputs: Sequence[Input]) -> None:
    """See to it that flags for datasets are not given without one.

    Raises:
        UserError: one is.
    """
    for flag, value in (("--config", choice.config), ("--revision", choice.revision)):
        if value is not None and not any(each.hub for each in inputs):
            raise user_error(
                flag, f"{value}, and no input is a dataset", "Leave it out, or name hf:OWNER/NAME."
            )
