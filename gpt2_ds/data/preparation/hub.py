"""The documents of a dataset of the Hugging Face hub, or of a local folder `datasets` reads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.data.preparation.document import RENAMED, Bad, Document, Place, checked_text, no_field

if TYPE_CHECKING:
    import datasets

# A state is a copy of a dictionary: too much for each row, and rows after it are read again.
STATE_ROWS = 256


@dataclass(frozen=True)
class HubDataset:
    """Which rows to read.

    Args:
        path: OWNER/NAME, or a local folder.
        config: the dataset's configuration; None: its only one.
        split: of it.
        revision: the commit; None for a local folder.
    """

    path: str
    config: str | None
    split: str
    revision: str | None


def commit_of(path: str, revision: str | None) -> str:
    """The commit that a branch, a tag or the default branch stands for now.

    Raises:
        UserError: the hub does not know the dataset or the revision, or cannot be reached.
    """
    import huggingface_hub

    try:
        commit = huggingface_hub.HfApi().dataset_info(path, revision=revision).sha
    # The library's exceptions have no common base: HTTP, connection, validation, offline mode.
    except Exception as error:
        at = f" at {revision!r}" if revision else ""
        raise user_error(
            f"input hf:{path}",
            f"the Hugging Face hub could not name the commit{at} ({_first_line(error)})",
            "Check the name (OWNER/NAME), --revision and the network; a dataset that asks for "
            "permission needs HF_TOKEN.",
        ) from error
    assert commit is not None
    return commit


def hub_documents(
    dataset: HubDataset, text_field: str, place: Place | None
) -> Iterator[Document | Bad]:
    """The documents of a dataset, a row each, while it is downloaded.

    Args:
        dataset: to read.
        text_field: of a row, its text.
        place: where to resume: (a state of the library, rows after it, rows in all).

    Raises:
        UserError: there is no such dataset, configuration, split or field.
        RunError: reading failed, perhaps because of the network.
    """
    opened = _opened(dataset, text_field)
    state, n_after, n_rows = place or (None, 0, 0)
    if state is not None:
        opened.load_state_dict(state)
    skip = n_after
    try:
        for row in opened:
            if skip:
                skip -= 1
                continue
            n_rows, n_after = n_rows + 1, n_after + 1
            if n_after == STATE_ROWS:
                state, n_after = opened.state_dict(), 0
            where = f"hf:{dataset.path}: row {n_rows}"
            if text_field not in row:
                yield Bad("no_text_field", where, no_field(text_field, row), RENAMED, 0)
            else:
                yield checked_text(row[text_field], where, 0, (state, n_after, n_rows))
    except UserError:
        raise
    except Exception as error:  # of the network, the file formats and the library itself
        raise RunError(
            f"hf:{dataset.path}: reading failed after row {n_rows} ({_first_line(error)})."
        ) from error


def _opened(dataset: HubDataset, text_field: str) -> datasets.IterableDataset:
    import datasets

    datasets.disable_progress_bars()
    try:
        opened = datasets.load_dataset(
            dataset.path,
            name=dataset.config,
            split=dataset.split,
            revision=dataset.revision,
            streaming=True,
        )
    except Exception as error:  # as many kinds as there are ways to store a dataset
        raise user_error(
            f"input hf:{dataset.path}",
            f"--config {dataset.config}, --split {dataset.split}, --revision {dataset.revision} "
            f"cannot be opened ({_first_line(error)})",
            "Name a configuration and a split that the dataset has.",
        ) from error
    names: list[str] | None = opened.column_names
    if names is None:
        return opened
    if text_field not in names:
        raise user_error(f"input hf:{dataset.path}", no_field(text_field, names), RENAMED)
    return opened.select_columns([text_field])


def _first_line(error: Exception) -> str:
    lines: list[Any] = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
