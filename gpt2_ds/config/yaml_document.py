"""Reads a YAML file as the user meant it, and remembers the line of every key.

PyYAML alone reads `6e-4` as a string, keeps the last of two equal keys, and turns `no` into False.
"""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml

from gpt2_ds.config.errors import Fault, UserError, user_error

_INTEGER = re.compile(r"[-+]?[0-9][0-9_]*$")
_NUMBER = re.compile(
    r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9][0-9_]*(?=[eE]))([eE][-+]?[0-9]+)?$"
)
_MOST_DIGITS = 300  # past it a number is a typing slip, and an integer would fill the memory
_DEEPEST = 50  # a recipe has three levels; PyYAML's scan of open brackets takes quadratic time
_OPENING = (
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
)
_CLOSING = (yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken, yaml.BlockEndToken)


def scalar(text: str) -> object:
    """One plain YAML word as a Python value.

    Numbers may be written 6e-4, 300e9 or 1_048_576; a whole number in scientific notation is an
    integer. Only true, false and null are words of their own: `no` and `on` are strings.

    >>> scalar("300e9"), scalar("6e-4"), scalar("1_048_576"), scalar("no"), scalar("true")
    (300000000000, 0.0006, 1048576, 'no', True)
    """
    if text in ("true", "false"):
        return text == "true"
    if text in ("", "null", "~"):
        return None
    if _INTEGER.match(text) and len(text) <= _MOST_DIGITS:
        return int(text.replace("_", ""))
    if _NUMBER.match(text):
        number = float(text.replace("_", ""))
        if "e" in text.lower() and number.is_integer() and 1 <= abs(number) < 1e300:
            exact = Decimal(text.replace("_", ""))  # a float is exact only below 2^53
            return int(exact) if exact == exact.to_integral_value() else number
        return number
    return text


class _Reader:
    """Walks the parsed nodes of one document into plain values."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[tuple[str, ...], int] = {}
        self.faults: list[Fault] = []

    def value(self, node: yaml.Node, path: tuple[str, ...]) -> object:
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, str(i))) for i, item in enumerate(node.value)]
        plain = getattr(node, "style", None) is None  # a quoted word is text, whatever it says
        return scalar(node.value) if plain else node.value

    def mapping(self, node: yaml.MappingNode, path: tuple[str, ...]) -> dict[str, object]:
        result: dict[str, object] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                self.faults.append(
                    Fault(f"{self.file}:{line}", "this key is a list or a mapping", "Name it.")
                )
                continue
            key = str(key_node.value)
            here = (*path, key)
            if key in result:
                what = f"given twice, on lines {self.lines[here]} and {line}"
                self.faults.append(
                    Fault(f"{self.file}: {'.'.join(here)}", what, "Remove one of them.")
                )
                continue
            self.lines[here] = line
            result[key] = self.value(value_node, here)
        return result


def parse_yaml(text: str, file: str) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """The mapping that `text` holds, and the line of each key path.

    Args:
        text: a YAML document.
        file: its name, for messages.

    Raises:
        UserError: not YAML, not a mapping, a key given twice, an anchor or a tag.
    """
    try:
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
            if depth > _DEEPEST:
                line = token.start_mark.line + 1
                raise user_error(f"{file}:{line}", "nested too deep to be a recipe", "Flatten it.")
            if isinstance(token, yaml.AnchorToken | yaml.AliasToken | yaml.TagToken):
                raise user_error(
                    f"{file}:{token.start_mark.line + 1}",
                    "anchors (&), aliases (*) and tags (!) are not read here",
                    "Write the value out, or quote it if it is text.",
                )
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise user_error(f"{file}{line}", f"not YAML: {error.problem}", "Mend this line.") from None
    except yaml.reader.ReaderError as error:
        raise user_error(
            file,
            f"not YAML: character {error.position + 1} is {chr(error.character)!r}",
            "Save it as UTF-8 text.",
        ) from None
    if node is None:
        return {}, {}
    if not isinstance(node, yaml.MappingNode):
        raise user_error(file, "not a mapping of keys to values", "Write `section:` lines.")
    reader = _Reader(file)
    values = reader.mapping(node, ())
    if reader.faults:
        raise UserError(*reader.faults)
    return values, reader.lines


def read_text(path: Path, what: str, suffix: str) -> str:
    """The text of a file that the user named.

    Args:
        path: the file.
        what: "recipe" or "template", for messages.
        suffix: ".yaml" or ".json": files of that kind beside `path` are named when it is missing.

    Raises:
        UserError: missing, a directory, unreadable or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark
    except FileNotFoundError:
        beside = sorted(str(file) for file in path.parent.glob(f"*{suffix}"))
        there = f"In that folder: {', '.join(beside)}." if beside else "Check the path."
        raise user_error(str(path), f"no such {what} (from {Path.cwd()})", there) from None
    except UnicodeDecodeError as error:
        raise user_error(
            str(path), f"not UTF-8 text at byte {error.start}", "Save it as UTF-8."
        ) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", error)
        raise user_error(
            str(path), f"cannot be read: {why}", f"Name a readable {what} file."
        ) from None
