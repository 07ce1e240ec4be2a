"""From a recipe file and `--set` to a checked `Recipe`, with the origin of every value."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gpt2_ds.config.errors import Fault, UserError, nearest, user_error
from gpt2_ds.config.recipe import Recipe
from gpt2_ds.config.section import ABSENT, STORED
from gpt2_ds.config.twin import twin_values
from gpt2_ds.config.yaml_document import parse_yaml, read_text, scalar


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe and where each value came from.

    Args:
        recipe: the values.
        file: the file, as the user named it.
        origins: key path ("model.n_head") to "recipes/x.yaml:12", "--set" or "--twin"; a key that
            is absent has its default.
        twin: it is the small twin of the file's.
    """

    recipe: Recipe
    file: str
    origins: dict[str, str]
    twin: bool = False

    @property
    def name(self) -> str:
        """The recipe's name: the file's, without its ending; a twin's says so."""
        return Path(self.file).stem + ("_twin" if self.twin else "")

    def where(self, key: str) -> str:
        """How a message names `key`: *file: key*, or *--set: key* for an override."""
        return f"{'--set' if _is_override(key, self.origins) else self.file}: {key}"

    def origin(self, key: str) -> str:
        """Where the value of `key` came from, for a listing."""
        return "--set" if _is_override(key, self.origins) else self.origins.get(key, "default")


def load_recipe(
    path: Path, overrides: Sequence[str] = (), *, twin_ranks: int | None = None
) -> LoadedRecipe:
    """Read and check a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value` words, each with the same rules as the file.
        twin_ranks: make it small first, for so many ranks (`twin_values`); the overrides change
            the twin. None: leave it as it is.

    Raises:
        UserError: every mistake of the file and the overrides at once.
    """
    file = str(path)
    values, lines = parse_yaml(read_text(path, "recipe", ".yaml"), file)
    origins = {".".join(key): f"{file}:{line}" for key, line in lines.items()}
    if twin_ranks is not None:
        small = twin_values(load_recipe(path).recipe, twin_ranks)
        before = dict(flatten(values))
        origins |= {
            key: "--twin" for key, value in flatten(small) if before.get(key, value) != value
        }
        values = small
    faults: list[Fault] = []
    for override in overrides:
        try:
            _apply_override(values, origins, override)
        except UserError as error:
            faults.extend(error.faults)
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        for detail in error.errors():
            fault = fault_of(detail, Recipe, file, origins)
            if fault not in faults:
                faults.append(fault)
    if faults:
        raise UserError(*faults)
    return LoadedRecipe(recipe, file, origins, twin_ranks is not None)


def load_stored(path: Path) -> LoadedRecipe:
    """`parse_stored` of a recipe.yaml in a run directory or a checkpoint."""
    return parse_stored(read_text(path, "recipe", ".yaml"), str(path))


def parse_stored(text: str, file: str) -> LoadedRecipe:
    """The recipe that a run wrote down.

    A key that came after the run began has the value it was introduced with, never today's default.

    Args:
        text: of the recipe.yaml.
        file: its name, for messages.

    Raises:
        UserError: it is damaged, or of a version that knew other keys.
    """
    values, lines = parse_yaml(text, file)
    origins = {".".join(key): f"{file}:{line}" for key, line in lines.items()}
    try:
        return LoadedRecipe(Recipe.model_validate(values, context=STORED), file, origins)
    except ValidationError as error:
        raise UserError(*(_stored_fault(detail, file) for detail in error.errors())) from None


def _stored_fault(detail: ErrorDetails, file: str) -> Fault:
    fault = fault_of(detail, Recipe, file, {})
    if detail["type"] != "extra_forbidden":
        return fault
    what = f"is {_shown(detail['input'])}, and this version knows no such key"
    fix = "Use the version that wrote it: environment.json beside it has the commit."
    return Fault(fault.where, what, fix)


def _apply_override(values: dict[str, Any], origins: dict[str, str], override: str) -> None:
    """Put one `section.key=value` into the parsed file."""
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not all(part.isidentifier() for part in key.split(".")):
        raise user_error(
            f"--set {override}", "not of the form section.key=value", "For example: --set seed=2."
        )
    try:
        parsed, _ = parse_yaml(f"value: {text.strip()}", "")
    except UserError as error:
        fix = f"Quote text: --set '{key}=\"...\"'."
        raise user_error(f"--set {key}", error.faults[0].what, fix) from None
    if set(parsed) != {"value"}:
        raise user_error(f"--set {key}", "more than one value", "Give one: --set key=value.")
    *sections, last = key.split(".")
    target = values
    for depth, section in enumerate(sections):
        if target.get(section) is None:
            target[section] = {}
        inner = target[section]
        if not isinstance(inner, dict):
            here = ".".join(sections[: depth + 1])
            raise user_error(
                f"--set {key}", f"{here} is a value, not a section", f"Set {here} itself."
            )
        target = inner
    target[last] = parsed["value"]
    origins[key] = "--set"


def fault_of(
    detail: ErrorDetails, schema: type[BaseModel], file: str, origins: dict[str, str]
) -> Fault:
    """One of pydantic's findings in this project's words."""
    kind, given = detail["type"], _shown(detail["input"])
    if detail["input"] is ABSENT:
        kind = "missing"
    place = _locate(detail["loc"], schema)
    field = place.field
    *around, last = place.path or [""]
    section = ".".join(around)
    key = ".".join([*place.path, "name"] if kind.startswith("union_tag") else place.path)
    where = f"{'--set' if _is_override(key, origins) else file}: {key}"
    meaning = f"It is: {_one_line(field.description)}" if field and field.description else ""
    if kind == "extra_forbidden":
        if others := [_tag(other) for other in place.variants if last in other.model_fields]:
            return Fault(
                where,
                f"not a key of a {_tag(place.section)} {section}",
                f"Remove it, or set {section}.name to {' or '.join(others)}.",
            )
        return Fault(where, "no such key", nearest(last, list(place.section.model_fields)))
    if kind == "missing":
        return Fault(where, "missing", f"Add it. {meaning}".strip())
    if kind == "union_tag_not_found":
        known = sorted(map(_tag, sections_of(field.annotation if field else None)))
        return Fault(where, "missing", f"Known here: {', '.join(known)}.")
    if kind == "union_tag_invalid":
        known_tags = detail["ctx"]["expected_tags"].replace("'", "")
        name = _shown(detail["input"]["name"])
        return Fault(where, f"no such {last}: {name}", f"Known here: {known_tags}.")
    if kind in ("model_type", "model_attributes_type"):
        return Fault(where, f"is {given}, not a section", "Give it its keys.")
    wanted = detail["msg"].partition(" should ")[2].removesuffix(f", not {_length(detail)}")
    for theirs, ours in _WORDS.items():
        wanted = wanted.replace(theirs, ours)
    return Fault(where, f"is {given}, must {wanted}", meaning or "Change it.")


_WORDS = {
    "a valid integer": "an integer",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid ": "a ",
    " after validation": "",
}


def _length(detail: ErrorDetails) -> object:
    return detail.get("ctx", {}).get("actual_length")


def _shown(value: object) -> str:
    """A value as a user writes it, cut to a readable length."""
    if value is None:
        return "empty"
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:40]}... ({len(text)} characters)"


def _is_override(key: str, origins: dict[str, str]) -> bool:
    """Whether --set gave `key`, a section around it, or all there is below it."""
    below = [origin for known, origin in origins.items() if known.startswith(f"{key}.")]
    made = key not in origins and bool(below) and set(below) == {"--set"}
    return made or any(origins.get(prefix) == "--set" for prefix in _prefixes(key))


def _prefixes(key: str) -> Iterator[str]:
    parts = key.split(".")
    return (".".join(parts[:length]) for length in range(len(parts), 0, -1))


def _one_line(text: str) -> str:
    return " ".join(text.split())


class _Place(NamedTuple):
    """Where in a schema a finding is."""

    path: list[str]  # the key, in parts
    section: type[BaseModel]  # the innermost that holds it
    variants: list[type[BaseModel]]  # of which the section is one, chosen by `name`; or none
    field: FieldInfo | None  # the key's, or that of the mapping or list around it


def _locate(loc: tuple[int | str, ...], schema: type[BaseModel]) -> _Place:
    """The place that pydantic's `loc` means; there the name of a variant is a step of its own."""
    path: list[str] = []
    section, variants, field = schema, list[type[BaseModel]](), None
    inside: object = schema
    for step in loc:
        sections = sections_of(inside)
        if len(sections) > 1:
            variants = sections
            inside = next(variant for variant in variants if _tag(variant) == step)
            continue
        path.append(str(step))
        if sections:
            section = sections[0]
            field = section.model_fields.get(str(step))
            inside = field.annotation if field else None
        else:
            inside = item_of(inside)
    return _Place(path, section, variants if section in variants else [], field)


def sections_of(annotation: object) -> list[type[BaseModel]]:
    """The section that a value is, or the variants that it may be; none for plain values."""
    options = _options(annotation)
    return [
        option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
    ]


def item_of(annotation: object) -> object:
    """The annotation of what is in a mapping or a list; None for any other."""
    for option in _options(annotation):
        if typing.get_origin(option) in (dict, list):
            return typing.get_args(option)[-1]
    return None


def _options(annotation: object) -> list[object]:
    """The types that an annotation takes: itself, or the members of a union."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _options(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(annotation) for option in _options(part)]
    return [annotation]


def _tag(variant: type[BaseModel]) -> str:
    """The name that a variant is chosen by."""
    return str(typing.get_args(variant.model_fields["name"].annotation)[0])


def flatten(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Key paths and values of nested sections, in order.

    >>> dict(flatten({"a": {"b": 1}, "c": [2]}))
    {'a.b': 1, 'c': [2]}
    """
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class _PlainDumper(yaml.SafeDumper):
    """Writes floats and text so that `parse_yaml` and any YAML reader give the same back."""


def _represent_float(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    # 0E0 is text for PyYAML, which leaves it bare, and a number for `parse_yaml`.
    style = None if isinstance(scalar(value), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_PlainDumper.add_representer(float, _represent_float)
_PlainDumper.add_representer(str, _represent_text)


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every value written, readable by `load_recipe`."""
    return yaml.dump(
        recipe.model_dump(), Dumper=_PlainDumper, sort_keys=False, default_flow_style=None
    )
