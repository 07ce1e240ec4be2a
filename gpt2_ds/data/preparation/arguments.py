"""What can be typed after `launch/prepare_data.py`: the fields of `Request`, and --adopt."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, get_args, get_origin

from pydantic.fields import FieldInfo

from gpt2_ds.config.errors import user_error
from gpt2_ds.data.preparation.request import Request, flag_of


class Adoption(NamedTuple):
    """Shards to make a dataset of, in their own folder.

    Args:
        directory: of the shards.
        tokenizer: its name, or the file of its ranks.
    """

    directory: Path
    tokenizer: str


def parse(description: str | None, words: Sequence[str]) -> Request | Adoption:
    """What was typed.

    Args:
        description: shown by --help.
        words: after the name of the command.

    Raises:
        UserError: neither inputs and --out nor --adopt alone, or a number out of its range.
    """
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,  # what is not typed, the model sets
    )
    for name, field in Request.model_fields.items():
        _add(parser, name, field)
    parser.add_argument(
        "--adopt",
        type=Path,
        metavar="DIR",
        help="in place of INPUT and --out: make a dataset of a folder of token files that were "
        "made elsewhere, by putting a manifest and the tokenizer beside them",
    )
    typed = vars(parser.parse_args(words))
    inputs, out = typed.get("inputs", []), typed.get("out")
    if (directory := typed.get("adopt")) is not None:
        given = [*inputs, *([f"--out {out}"] if out else [])]
        if given:
            raise user_error(
                f"--adopt {directory}",
                f"{given[0]} is given too, and to adopt is to leave the files where they are",
                "Leave out one of the two.",
            )
        tokenizer = Request.model_fields["tokenizer"].default
        return Adoption(directory, typed.get("tokenizer", tokenizer))
    if not inputs:
        raise user_error("INPUT", "none is given", "Name one; --help lists the kinds.")
    if out is None:
        raise user_error("--out", "is not given", "Say where: --out data/NAME.")
    return Request(**typed)


def _add(parser: argparse.ArgumentParser, name: str, field: FieldInfo) -> None:
    """Make a field of `Request` an argument; what it takes follows from its type."""
    kind, about = field.annotation, (field.description or "").replace("%", "%%")
    if not field.is_required() and field.default not in (None, False, ()):
        about += f" ({field.default})"
    if name == "inputs":
        parser.add_argument(name, nargs="*", metavar=field.title, help=about)
        return
    takes: dict[str, Any] = {"metavar": field.title}
    if kind is bool:
        takes = {"action": "store_true"}
    elif get_origin(kind) is Literal:
        takes = {"choices": get_args(kind)}
    elif get_origin(kind) is Sequence:
        takes |= {"action": "append"}
    else:
        takes["type"] = next(type_ for type_ in get_args(kind) or (kind,) if type_ is not NoneType)
    parser.add_argument(flag_of(name), help=about, **takes)
