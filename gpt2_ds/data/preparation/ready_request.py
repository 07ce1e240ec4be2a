"""A request whose inputs were found: what is prepared, and what its journal and manifest say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2_ds.data.format.manifest import InputEntry, Source
from gpt2_ds.data.format.tokenizer import Tokenizer
from gpt2_ds.data.preparation.partial_folder import Counts, Job
from gpt2_ds.data.preparation.request import Request, flag_of
from gpt2_ds.data.preparation.sources import Input

COMMITS = "commits"  # in a job: name of a dataset of the hub -> its commit


@dataclass(frozen=True)
class ReadyRequest:
    """A request, and the inputs and tokenizer that it names.

    Args:
        request: as it was made.
        tokenizer: goes into the dataset.
        train: inputs.
        validation: inputs that are the whole validation split; none: a share of `train` is.
    """

    request: Request
    tokenizer: Tokenizer
    train: Sequence[Input]
    validation: Sequence[Input]

    @property
    def total_bytes(self) -> int | None:
        """Of all inputs; None where one does not say before it is read."""
        if any(source.is_one_stream for source in self._inputs):
            return None
        return sum(source.n_bytes for source in self._inputs)

    @property
    def has_hub(self) -> bool:
        """Whether an input is a dataset that the `datasets` library reads."""
        return any(source.hub for source in self._inputs)

    @property
    def job(self) -> Job:
        """In words and numbers, with sizes and times of the files: what a second start must match.

        Without `on_bad`: a preparation that a bad document ended resumes with --on-bad skip.
        """
        options = self.request.model_dump(mode="json")
        stats = {str(file): file.stat() for source in self._inputs for file in source.files}
        return {
            **{flag_of(name): value for name, value in options.items()},
            flag_of("tokenizer"): f"{self.tokenizer.name}, sha256 {self.tokenizer.sha256}",
            COMMITS: {
                source.name: source.hub.revision
                for source in self._inputs
                if source.hub and source.hub.revision
            },
            **{
                f"size and time of {name}": [stat.st_size, stat.st_mtime_ns]
                for name, stat in stats.items()
            },
        }

    def source(self, counts: Counts) -> Source:
        """What the manifest says of where the documents came from."""
        request = self.request
        return Source(
            inputs=_entries(self.train),
            validation_inputs=_entries(self.validation),
            validation_fraction=request.validation_fraction,
            text_field=request.text_field,
            document_separator=request.document_separator,
            shuffle_seed=request.shuffle_seed,
            duplicates=counts.duplicates if request.deduplicate else None,
            skipped=dict(sorted(counts.skipped.items())),
        )

    @property
    def _inputs(self) -> list[Input]:
        return [*self.train, *self.validation]


def _entries(inputs: Sequence[Input]) -> tuple[InputEntry, ...]:
    return tuple(
        InputEntry(
            name=source.name,
            files=len(source.files),
            bytes=source.n_bytes,
            config=source.hub.config if source.hub else None,
            split=source.hub.split if source.hub else None,
            revision=source.hub.revision if source.hub else None,
        )
        for source in inputs
    )
