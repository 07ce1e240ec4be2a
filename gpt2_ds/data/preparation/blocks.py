"""Documents in blocks, each large enough to be worth sending to another process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gpt2_ds.config.errors import RunError, UserError, user_error
from gpt2_ds.data.preparation.document import Bad, Document
from gpt2_ds.data.preparation.reading import Position, read_documents
from gpt2_ds.data.preparation.request import OnBad
from gpt2_ds.data.preparation.sources import Input

BLOCK_BYTES = 2**20
BLOCK_DOCUMENTS = 2**14


@dataclass
class Block:
    """Consecutive documents, and the bad ones among them.

    Args:
        is_validation: whether all are validation, whatever their hash.
        texts: of the documents, in UTF-8.
        positions: after each document.
        bad: of each bad document: how many of the block come before it, why, where.
        text_bytes: of all documents.
        input_bytes: that were read for all of them.
    """

    is_validation: bool
    texts: list[bytes] = field(default_factory=list)
    positions: list[Position] = field(default_factory=list)
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    text_bytes: int = 0
    input_bytes: int = 0

    def add(self, position: Position, item: Document | Bad) -> None:
        """Add what comes next."""
        self.input_bytes += item.input_bytes
        if isinstance(item, Bad):
            self.bad.append((len(self.texts), item.why, item.where))
        else:
            self.texts.append(item.data)
            self.positions.append(position)
            self.text_bytes += len(item.data)

    @property
    def is_full(self) -> bool:
        """Whether it is large enough to be sent."""
        return self.text_bytes >= BLOCK_BYTES or len(self.texts) + len(self.bad) >= BLOCK_DOCUMENTS


def read_blocks(
    train: Sequence[Input],
    validation: Sequence[Input],
    *,
    text_field: str,
    document_separator: str | None,
    on_bad: OnBad,
    start: Position,
) -> Iterator[Block]:
    """All documents from `start` on, in order; no block is of both kinds of input.

    Args:
        train: come first.
        validation: come after; all their documents are validation.
        text_field: of a row, its text.
        document_separator: the line between documents of a text file, if there is one.
        on_bad: whether a bad document is an error, or skipped and counted.
        start: in `train` and `validation`, counted together.

    Raises:
        UserError: a bad document where that is an error; or as `read_documents`.
    """
    inputs = [*train, *validation]
    block = Block(is_validation=start.input >= len(train))
    documents = read_documents(
        inputs, text_field=text_field, document_separator=document_separator, start=start
    )
    try:
        for position, item in documents:
            is_validation = position.input >= len(train)
            if block.is_full or block.is_validation != is_validation:
                yield block
                block = Block(is_validation)
            if isinstance(item, Bad) and on_bad == "error" and not inputs[position.input].lenient:
                raise user_error(
                    item.where,
                    item.what,
                    f"{item.fix} Or use --on-bad skip, which skips and counts such documents.",
                )
            block.add(position, item)
    except (UserError, RunError):
        yield block  # what came before is good
        raise
    yield block
